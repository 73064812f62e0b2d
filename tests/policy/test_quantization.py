"""A quantized base model (bitsandbytes on the CPU): what is computed, trained, saved and exported with it."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from tiny_models import DOCUMENTS, GENERATION, OBJECTIVES, all_log_probs, randomize, write_model
from transformers import AutoModelForCausalLM

from clp_lightning.config.parameters import load_config
from clp_lightning.config.recipes import compose
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.pipeline import stages
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.experts import Experts
from clp_lightning.steering.layers import quantization_of

KINDS = ("nf4", "int8")
WEIGHTING = {"a": 0.3, "b": 0.7}
# int8 also rounds what goes into a layer, so that it is not the function of its dequantized weights
TOLERANCE = {"nf4": 1e-5, "int8": 0.05}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_model("llama", tmp_path_factory.mktemp("quantization") / "reference")


def make(folder, quantization, *, dtype=torch.float32, rank=3, conditioning="full", trained=True, **options):
    """A policy on a quantized base; with `trained`, its experts are not those that add nothing."""
    model, tokenizer = load_base(folder, dtype=dtype, quantization=quantization)
    experts = Experts(model, conditioning=conditioning, experts=2, rank=rank, seed=1, **options)
    if trained:
        randomize(experts)
    return SteerablePolicy(model, tokenizer, GENERATION, objectives=OBJECTIVES, experts=experts)


def gradients(policy) -> torch.Tensor:
    coefficients = torch.tensor([[0.3, 0.7], [1.0, 0.0], [0.0, 0.0]])
    prompts = policy.tokenize(DOCUMENTS)
    ids, mask = policy.tokenize_responses(["makes one", "is gone", "a b c d"])
    policy.score(prompts, ids, mask, coefficients).sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.experts.parameters_by_name.values()])


@pytest.mark.parametrize(
    ("rank", "parameterization"), [(3, "experts"), ("full", "experts"), (4, "bilinear"), (4, "singular")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_dequantized_model(base, kind, rank, parameterization):
    quantized, plain = (make(base, kind, rank=rank, parameterization=parameterization) for _ in range(2))
    plain.experts.dequantize(plain.model)
    assert quantization_of(quantized.model) == kind and quantized.experts.dtype == torch.float32
    assert plain.model.model.layers[0].mlp.up_proj.base.weight.dtype == torch.float32
    quantized.generate(DOCUMENTS, WEIGHTING)  # a rollout before the step, as in training
    found, expected = gradients(quantized), gradients(plain)
    assert expected.norm() > 1
    assert (found - expected).norm() < TOLERANCE[kind] * expected.norm()
    assert not any(parameter.requires_grad for parameter in quantized.model.parameters()
                   if not any(parameter is own for own in quantized.experts.parameters_by_name.values()))  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_steps_lower_the_loss(base, kind):
    policy = make(base, kind, trained=False)
    optimizer = torch.optim.AdamW(policy.experts.parameters_by_name.values(), lr=1e-2)
    prompts, losses = policy.tokenize(DOCUMENTS), []
    ids, mask = policy.tokenize_responses(["makes one", "is gone", "a b c d"])
    for _ in range(6):
        policy.generate(DOCUMENTS, WEIGHTING)
        loss = -policy.score(prompts, ids, mask, policy.coefficients(WEIGHTING, 3)).sum() / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_coefficients_are_the_quantized_model(base, kind):
    policy = make(base, kind)
    plain, _ = load_base(base, dtype=torch.float32, quantization=kind)
    prompts = policy.tokenize(DOCUMENTS)
    with torch.no_grad():
        expected = plain(input_ids=prompts.ids, attention_mask=prompts.mask.long()).logits
        with policy.experts.steer(torch.zeros(3, 2)):
            found = policy.model(input_ids=prompts.ids, attention_mask=prompts.mask.long()).logits
    assert torch.equal(found, expected)
    float_model, _ = load_base(base, dtype=torch.float32)
    with torch.no_grad():
        assert not torch.equal(float_model(input_ids=prompts.ids).logits, expected)


def test_the_base_is_not_repacked_for_inference(base):
    """On CPUs with AVX512-bf16 bitsandbytes would, and the next training step would have no gradients."""
    policy = make(base, "nf4")
    layers = [module for module in policy.model.modules() if type(module).__name__ == "Linear4bit"]
    assert layers
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    policy.generate(DOCUMENTS, WEIGHTING)
    assert not any(getattr(layer.weight.quant_state, "packing_format_for_cpu", False) for layer in layers)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_policy_is_loaded_as_it_was_trained(base, kind, tmp_path):
    policy = make(base, kind)
    policy.save(tmp_path / "saved", base_model=str(base))
    loaded = SteerablePolicy.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    assert quantization_of(loaded.model) == kind
    torch.testing.assert_close(all_log_probs(loaded, WEIGHTING), all_log_probs(policy, WEIGHTING), atol=0, rtol=0)
    other = SteerablePolicy.from_pretrained(tmp_path / "saved", dtype=torch.float32, quantization=None)
    assert quantization_of(other.model) is None
    card = json.loads((tmp_path / "saved" / "clp.json").read_text())
    assert card.pop("quantization") == kind
    (tmp_path / "saved" / "clp.json").write_text(json.dumps(card))  # as it was written before the setting existed
    older = SteerablePolicy.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    torch.testing.assert_close(all_log_probs(older, WEIGHTING), all_log_probs(other, WEIGHTING), atol=0, rtol=0)


@pytest.mark.parametrize("conditioning", ["full", "attention"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_model_is_dequantized(base, kind, conditioning, tmp_path):
    policy = make(base, kind, conditioning=conditioning)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), policy.experts.steer(torch.tensor([[0.3, 0.7]])):
        expected = policy.model(input_ids=ids).logits
    policy.export(WEIGHTING, tmp_path / "out", "hf")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert json.loads((tmp_path / "out" / "clp_export.json").read_text())["quantization"] == kind
    with torch.no_grad():
        found = model(input_ids=ids).logits
    assert (found - expected).norm() < TOLERANCE[kind] * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_an_exported_adapter_fits_the_quantized_model(base, kind, tmp_path):
    from peft import PeftModel

    policy = make(base, kind)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), policy.experts.steer(torch.tensor([[0.3, 0.7]])):
        expected = policy.model(input_ids=ids).logits
    policy.export(WEIGHTING, tmp_path / "out", "peft")
    plain, _ = load_base(base, dtype=torch.float32, quantization=kind)
    adapted = PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    for (
        module
    ) in adapted.modules():  # with AVX512-bf16 bitsandbytes would repack in blocks of 64, wider than these layers
        if type(module).__name__ == "Linear4bit":
            module.train()
    with torch.no_grad():
        found = adapted(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-2 if kind == "int8" else 1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gemma", "t5", "t5_tied"])
@pytest.mark.parametrize(("kind", "dtype"), [("nf4", torch.bfloat16), ("int8", torch.float32)])
def test_other_families_generate_and_train(tmp_path, family, kind, dtype):
    policy = make(write_model(family, tmp_path / "reference"), kind, dtype=dtype)
    assert quantization_of(policy.model) == kind and policy.experts.dtype == dtype
    assert len(policy.generate(DOCUMENTS, WEIGHTING)) == 3
    assert gradients(policy).isfinite().all() and gradients(policy).norm() > 0


def test_the_pipeline_trains_and_evaluates_on_a_quantized_base(smoke, tmp_path, monkeypatch):
    project = Path(shutil.copytree(smoke, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(project)
    text = Path("params.yaml").read_text()
    assert "  quantization: null\n" in text
    Path("params.yaml").write_text(text.replace("  quantization: null\n", "  quantization: nf4\n"))
    config = load_config("params.yaml")
    before = json.loads(Path("data/normalization.json").read_text())
    stages.run("normalization", config)
    assert json.loads(Path("data/normalization.json").read_text()) != before
    stages.run("train", config, "clp-full")
    assert json.loads(Path("models/clp-full/clp.json").read_text())["quantization"] == "nf4"
    for method in ("clp-full", "reference"):
        stages.run("evaluate", config, method)
    assert quantization_of(SteerablePolicy.from_pretrained("models/clp-full").model) == "nf4"


def test_operators_merge_into_the_dequantized_model(base, tmp_path):
    from clp_lightning.config.derived import Merged
    from clp_lightning.evaluation.merged import MergedPolicy

    make(base, "nf4").save(tmp_path / "saved", base_model=str(base))
    policy = MergedPolicy.from_pretrained(tmp_path / "saved", dtype=torch.float32)
    policy.operator = Merged(kind="merged", operator="ties", density=0.5)
    before = all_log_probs(policy, None)
    assert (all_log_probs(policy, WEIGHTING) - before).abs().max() > 1e-3
    torch.testing.assert_close(all_log_probs(policy, None), before, atol=1e-5, rtol=0)


def test_bitsandbytes_that_is_missing_is_named(base, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else found(name, *a)
    )
    with pytest.raises(ClpError, match=r"pip install 'clp-lightning\[quantization\]'") as error:
        load_base(base, quantization="int8")
    assert "\n" not in str(error.value)


def test_other_values_are_refused(repository, tmp_path):
    _, text = compose("smoke", repository)
    (tmp_path / "params.yaml").write_text(text.replace("  quantization: null\n", "  quantization: int4\n"))
    with pytest.raises(UsageError, match=r"compute.quantization.*'int8'.*'nf4'"):
        load_config(tmp_path / "params.yaml")


def test_a_change_reruns_all_stages_that_load_the_reference_policy(repository):
    pipeline = YAML(typ="safe", pure=True).load(repository / "dvc.yaml")["stages"]
    params = {name: stage.get("do", stage)["params"] for name, stage in pipeline.items()}
    rerun = {name for name in params if {"compute", "compute.quantization"} & set(map(str, params[name]))}
    loading = {"normalization", "train", "evaluate", "evaluate_derived", "evaluate_reference"}
    assert rerun == loading and "compute.dtype" in params["sft"]
