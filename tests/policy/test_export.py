"""Exported folders, loaded by transformers and peft in a process without this package."""

import json
import subprocess
import sys

import pytest
import torch
from tiny_models import FAMILIES, make_policy, write_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from clp_lightning.errors import UsageError

LOADER = """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
folder, format, base, family = sys.argv[1:5]
auto = AutoModelForSeq2SeqLM if family.startswith("t5") else AutoModelForCausalLM
model = auto.from_pretrained(base if format == "peft" else folder, dtype=torch.float32)
if format == "peft":
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, folder)
ids = torch.tensor([[5, 6, 7, 8, 9]])
arguments = {"decoder_input_ids": ids} if family.startswith("t5") else {}
with torch.no_grad():
    logits = model.eval()(input_ids=ids, **arguments).logits
assert not [name for name in sys.modules if name.startswith("clp_lightning")]
print(json.dumps(logits.flatten().tolist()))
"""


SLOW = pytest.mark.slow  # every case starts a process of its own


@pytest.mark.parametrize("family", ["llama", *(pytest.param(name, marks=SLOW) for name in ("t5_tied", "gemma", "t5"))])
@pytest.mark.parametrize(
    ("format", "conditioning", "rank", "shared"),
    [
        ("hf", "full", 3, False),
        ("peft", "full", 3, False),
        pytest.param("hf", "attention", "full", True, marks=SLOW),
        pytest.param("peft", "logits", 2, True, marks=SLOW),
        pytest.param("peft", "attention", 2, "everywhere", marks=SLOW),
    ],
)
def test_other_tools_give_the_same_logits(tmp_path, family, format, conditioning, rank, shared):
    base = write_model(family, tmp_path / "reference")
    policy = make_policy(base, conditioning, rank=rank, shared=shared)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    arguments = {"decoder_input_ids": ids} if family.startswith("t5") else {}
    with torch.no_grad(), policy.experts.steer(torch.tensor([[0.3, 0.7]])):
        expected = policy.model(input_ids=ids, **arguments).logits.flatten()
    policy.export({"a": 0.3, "b": 0.7}, tmp_path / "out", format)
    done = subprocess.run(
        [sys.executable, "-c", LOADER, tmp_path / "out", format, base, family],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    logits = torch.tensor(json.loads(done.stdout))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    note = json.loads((tmp_path / "out" / "clp_export.json").read_text())
    assert note["coefficients"] == pytest.approx([0.3, 0.7]) and note["prompt_begins_with"] == ""


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_merged_as_its_note_says_is_the_model_exported_whole(tmp_path, family):
    from peft import PeftModel

    base = write_model(family, tmp_path / "reference")
    for format in ("peft", "hf"):
        make_policy(base).export({"a": 0.3, "b": 0.7}, tmp_path / format, format)
    auto = AutoModelForSeq2SeqLM if family.startswith("t5") else AutoModelForCausalLM
    model = auto.from_pretrained(base, dtype=torch.float32)
    note = json.loads((tmp_path / "peft" / "clp_export.json").read_text())
    exec("\n".join(note["before_merging"]), {"model": model, "torch": torch})
    merged = PeftModel.from_pretrained(model, tmp_path / "peft").merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    arguments = {"decoder_input_ids": ids} if family.startswith("t5") else {}
    with torch.no_grad():
        whole, again = (
            auto.from_pretrained(tmp_path / name, dtype=torch.float32).eval()(input_ids=ids, **arguments).logits
            for name in ("hf", "merged")
        )
        merged = merged.eval()(input_ids=ids, **arguments).logits
    torch.testing.assert_close(merged, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=0)


def test_only_an_adapter_of_a_tied_layer_asks_for_it_to_be_untied(tmp_path):
    base = write_model("llama", tmp_path / "reference")
    make_policy(base).export({"a": 1.0}, tmp_path / "untied", "hf")
    for folder, conditioning, format, asked in (
        (base, "full", "peft", True), (base, "full", "hf", False), (base, "attention", "peft", False),
        (tmp_path / "untied", "full", "peft", False),
    ):  # fmt: skip
        make_policy(folder, conditioning).export({"a": 1.0}, tmp_path / "out", format)
        assert ("before_merging" in json.loads((tmp_path / "out" / "clp_export.json").read_text())) == asked


def test_a_prompted_policy_says_how_prompts_begin(tmp_path):
    policy = make_policy(write_model("llama", tmp_path / "reference"), "none", shared=True, prompted=True)
    policy.export({"a": 0.3, "b": 0.7}, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "clp_export.json").read_text())["prompt_begins_with"] == "a 0.30, b 0.70\n"


def test_bad_exports_are_one_line_and_write_nothing(tmp_path):
    policy = make_policy(write_model("llama", tmp_path / "reference"), rank="full")
    for weighting, format, message in (
        ({"a": 1.0}, "onnx", "format: expected one of hf, peft, but found 'onnx'"),
        ({"a": 1.0}, "peft", "full-rank; export it as hf"),
        ({"a": 0.5}, "hf", "entries sum to 0.5, not 1"),
    ):
        with pytest.raises(UsageError, match=message):
            policy.export(weighting, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
