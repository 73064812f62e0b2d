"""Trainings run where the base model lies, and leave everything there: what a GPU needs, tried without one."""

import pytest
import torch
from tiny_models import DOCUMENTS, make_policy, write_model

from clp_lightning.config.parameters import Sft
from clp_lightning.errors import ClpError
from clp_lightning.policy import loading
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.training import trainer
from clp_lightning.training.sft import SftModule


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture
def module(base):
    policy = make_policy(base, objectives=("likelihood",))
    return SftModule(policy, Sft(steps=2, batch_size=2, learning_rate=1e-3, rank=2), DOCUMENTS, DOCUMENTS, seed=0)


def test_the_experts_come_back_to_the_base_after_lightning_took_them_away(module, tmp_path, monkeypatch):
    def elsewhere(self):  # Lightning calls `cpu` when it ends; on this machine another precision is "elsewhere"
        seen.append("taken")
        return self.double()

    def back(self, device):
        seen.append(device)
        return self.float()  # as they were

    seen = []
    monkeypatch.setattr(type(module), "cpu", elsewhere)
    trainer.fit(module, checkpoints=tmp_path, every=1, show_progress=False)
    assert seen == ["taken"]
    monkeypatch.setattr(type(module), "to", back)
    trainer.fit(module, checkpoints=tmp_path, every=1, show_progress=False)
    assert seen[-2:] == ["taken", torch.device("cpu")]
    assert module.policy.generate(DOCUMENTS[:1], None) is not None


def test_they_come_back_after_a_training_that_failed_too(module, tmp_path, monkeypatch):
    moves = []
    monkeypatch.setattr(type(module), "cpu", lambda self: moves.append("taken") or self)
    monkeypatch.setattr(type(module), "to", lambda self, device: moves.append(device) or self)
    monkeypatch.setattr(type(module), "training_step", lambda self, batch, index: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, checkpoints=tmp_path, every=1, show_progress=False)
    assert moves[-2:] == ["taken", torch.device("cpu")]


def test_a_trainings_home_is_its_base_wherever_the_experts_were_left(module):
    module.policy.__dict__["model"] = torch.nn.Linear(1, 1, device="meta")
    module.policy.model.device = torch.device("meta")
    assert module.home == torch.device("meta") and next(module.parameters()).device.type == "cpu"


@pytest.mark.parametrize(
    ("home", "devices", "accelerator", "chosen"),
    [("cpu", 1, "cpu", 1), ("cpu", 2, "cpu", 2), ("cuda:0", 1, "cuda", [0]), ("cuda:3", 1, "cuda", [3]),
     ("cuda:0", 2, "cuda", 2)],
)  # fmt: skip
def test_a_training_runs_where_its_parameters_lie(home, devices, accelerator, chosen, module, tmp_path, monkeypatch):
    class Captured(Exception):
        pass

    def capture(**settings):
        raise Captured(settings)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # a GPU in the machine draws nothing to it
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(type(module), "home", property(lambda self: torch.device(home)))
    monkeypatch.setattr(trainer, "Trainer", capture)
    with pytest.raises(Captured) as raised:
        trainer.fit(module, checkpoints=tmp_path, every=1, devices=devices)
    settings = raised.value.args[0]
    assert settings["accelerator"] == accelerator and settings["devices"] == chosen
    if devices > 1:
        assert settings["strategy"]._process_group_backend == ("nccl" if accelerator == "cuda" else "gloo")


@pytest.mark.parametrize(
    ("setting", "gpu", "rank", "device"),
    [("auto", False, None, "cpu"), ("auto", True, None, "cuda:0"), ("auto", True, "2", "cuda:2"), ("cpu", True, "2", "cpu"),
     ("cuda", True, "1", "cuda:1"), (None, True, None, "cuda:0")],
)  # fmt: skip
def test_the_device_is_the_settings_and_of_several_the_ranks(setting, gpu, rank, device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert str(loading.chosen_device(setting)) == device


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ClpError, match=r"compute.device: cuda, but torch finds no GPU; use auto or cpu"):
        loading.chosen_device("cuda")


def test_more_processes_than_gpus_are_named_before_anything_is_loaded_or_trained(module, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ClpError, match=r"process 1 of this machine has no GPU: torch finds 1; lower training.devices"):
        loading.chosen_device()
    monkeypatch.setattr(type(module), "home", property(lambda self: torch.device("cuda:0")))
    with pytest.raises(ClpError, match=r"training.devices: 2, but torch finds 1 GPU\(s\)"):
        trainer.fit(module, checkpoints=tmp_path, every=1, devices=2)


def test_a_policy_that_is_asked_for_on_the_cpu_answers_in_the_cpus_precision(base, tmp_path, monkeypatch):
    make_policy(base).save(tmp_path / "saved", base_model=str(base))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    policy = SteerablePolicy.from_pretrained(tmp_path / "saved", device="cpu")
    assert policy.model.device.type == "cpu" and policy.model.dtype == torch.float32


def test_a_card_that_emulates_bfloat16_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    loading.hardware_dtype.cache_clear()
    try:
        assert loading.hardware_dtype("cuda") == torch.float32
    finally:
        loading.hardware_dtype.cache_clear()


def test_a_seed_draws_the_same_numbers_for_every_device(base):
    policy = make_policy(base)
    first = policy.random_numbers(2, torch.Generator().manual_seed(3), 4)
    assert torch.equal(first.cpu(), torch.rand(2, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
