"""What comes before and after a training, on a GPU: reward models and encoders, the sweep, serving, quantized bases."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from gpu_models import DEVICE, MIXED, copied, on, write_classifier
from tiny_models import DOCUMENTS, FAMILIES, GENERATION, OBJECTIVES, all_log_probs, make_policy, write_model
from torch.nn.modules.module import register_module_forward_pre_hook

from clp_lightning.config.data import Preferences, RewardModel
from clp_lightning.evaluation.sweep import Sweep, evaluate
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.rewards.models import Encoder, Learned
from clp_lightning.serving.batch import request
from clp_lightning.serving.engine import Engine
from clp_lightning.steering.experts import Experts
from clp_lightning.training.reward_model import train_reward_model

pytestmark = pytest.mark.gpu
SHARES = [np.array([1.0, 0.0]), None, np.array([0.3, 0.7]), np.array([0.0, 1.0])]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    return write_model(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    return write_classifier(tmp_path_factory.mktemp("classifier") / "model")


def devices(run):
    """Where the weights of all modules are that `run` reads."""
    seen = set()

    def note(module, inputs):
        seen.update(weight.device.type for weight in module.parameters(recurse=False))

    with register_module_forward_pre_hook(note):
        run()
    return seen


def test_the_engine_writes_what_each_would_alone(family):
    policy, rows = make_policy(family), []
    with Engine(policy, rows=3) as engine:
        for seed in range(8):
            text, share = DOCUMENTS[seed % 3], SHARES[seed % 4]
            each = request(policy, text, share, lambda _: None, temperature=float(seed % 3 > 0), seed=seed)
            rows.append((text, share, seed, each))
            engine.submit([each])
    for text, share, seed, each in rows:
        own = None if share is None else share[None]
        alone = policy.generate([text], own, temperature=float(seed % 3 > 0), seed=seed)
        assert [each.text] == alone and each.finish in ("stop", "length")


def test_reward_models_and_encoders_score_as_on_the_cpu(classifier):
    answers = ["good .", "bad thing", "list"]
    for scored in (
        lambda device: Learned(classifier, index=0, device=device)(DOCUMENTS, answers),
        lambda device: Encoder(classifier, device=device)(DOCUMENTS),
    ):
        np.testing.assert_allclose(scored("auto"), scored("cpu"), atol=1e-4)
    learned, encoder = Learned(classifier, index=0), Encoder(classifier)
    assert devices(lambda: learned(DOCUMENTS, answers)) == devices(lambda: encoder(DOCUMENTS)) == {DEVICE}


def test_a_reward_model_is_trained(classifier, tmp_path):
    for split in ("train", "heldout"):
        frame = pd.DataFrame({"service": "s", "document": DOCUMENTS * 8, "kind": "halved"})
        frame["chosen"], frame["rejected"] = frame.document + " good", frame.document + " bad"
        frame.to_parquet(tmp_path / f"{split}.parquet", index=False)
    preferences = Preferences(
        kind="preferences", source="x.jsonl", subset=None, prompt=None, chosen="chosen", rejected="rejected", heldout=0.1,
        limit=None, skip_bad_rows=False,
    )  # fmt: skip
    section = RewardModel(
        pairs=preferences, encoder=str(classifier), max_tokens=64, steps=24, batch_size=8, learning_rate=2e-3
    )
    metrics = train_reward_model(section, 0, tmp_path, tmp_path / "out", tmp_path / "checkpoints")
    assert metrics["heldout"]["accuracy"] == 1.0


def test_the_sweep_samples_and_scores_as_on_the_cpu(family, tmp_path):
    prompts = pd.DataFrame({"id": list("xyz"), "document": DOCUMENTS, "summary": "makes one"})
    rewards = SimpleNamespace(
        objectives=OBJECTIVES, raw=lambda _, texts: np.array([[len(text), -len(text)] for text in texts], dtype=float)
    )

    def watched(*texts):
        return {"rouge_l": np.zeros(len(texts[0]))}

    scale = {"objectives": {name: {"mean": 0.0, "std": 1.0} for name in OBJECTIVES}}
    policy, frames = make_policy(family), []
    for number, device in enumerate((DEVICE, "cpu")):
        sweep = Sweep(prompts, np.array([[0.25, 0.75], [1.0, 0.0]]), rewards, 2, 2, 3, tmp_path / str(number))
        frames.append(evaluate(on(policy, device), sweep, method="m", normalization=scale, monitors=watched))
    assert frames[0].response.tolist() == frames[1].response.tolist()
    np.testing.assert_allclose(frames[0]["monitor:kl"], frames[1]["monitor:kl"], atol=1e-3)


@pytest.mark.parametrize(("quantization", "tolerance"), [("nf4", 1e-4), ("int8", 0.1)])
def test_rows_on_a_quantized_base_equal_the_materialized_model(quantization, tolerance, tmp_path):
    pytest.importorskip("bitsandbytes")  # int8 also rounds what goes into a layer
    model, tokenizer = load_base(
        write_model("llama", tmp_path / "model"), dtype=torch.float32, quantization=quantization
    )
    experts = Experts(model, conditioning="full", experts=2, rank=3)
    for layer in experts.layers.values():
        layer.own()[-1].data.normal_(std=0.2)
    policy = SteerablePolicy(model, tokenizer, GENERATION, objectives=OBJECTIVES, experts=experts)
    rows = all_log_probs(policy, MIXED)
    merged = copied(policy).materialize(MIXED[1])
    torch.testing.assert_close(rows[1], all_log_probs(merged, None)[1], atol=tolerance, rtol=tolerance)
