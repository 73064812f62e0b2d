"""One weighting of a steerable policy as files that transformers or peft load without this package."""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from clp_lightning.errors import UsageError
from clp_lightning.files import atomic, check_replaceable, write_json
from clp_lightning.steering.conditioned import LowRankLinear
from clp_lightning.steering.experts import Experts

FORMATS = ("hf", "peft")
NOTE = "clp_export.json"  # says what was exported, and that the folder is an export


def export(
    model: Any, tokenizer: Any, experts: Experts, coefficients: Tensor, out: Path | str, *, format: str, note: dict
) -> None:
    """Write a plain checkpoint (`hf`) or a PEFT adapter of its base (`peft`) for one row of coefficients [K], atomically.

    `note` goes into `clp_export.json`. `hf` consumes the model: its experts are merged in place. Raises `UsageError` for an
    unknown format, for full-rank experts as an adapter, and for a folder that holds something else than an export.
    """
    if format not in FORMATS:
        raise UsageError(f"format: expected one of {', '.join(FORMATS)}, but found {format!r}")
    if format == "peft" and experts.rank == "full":
        raise UsageError("format: peft adapters are low-rank and this policy's experts are full-rank; export it as hf")
    check_replaceable(out, NOTE)
    with atomic(out) as beside:
        if format == "hf":
            experts.merge(model, coefficients)
            model.save_pretrained(beside)
            tokenizer.save_pretrained(beside)
        else:
            beside.mkdir(parents=True)
            _write_adapter(model, experts, coefficients, beside)
            tokenizer.save_pretrained(beside)
        write_json(beside / NOTE, {"format": format, **note})


def _write_adapter(model: Any, experts: Experts, coefficients: Tensor, folder: Path) -> None:
    """Write stacked experts as one LoRA: `sum_i w_i B_i A_i = [w_1 B_1 .. w_K B_K] [A_1; ..; A_K]`, exactly."""
    from peft import LoraConfig

    layers = {name: layer for name, layer in experts.layers.items() if isinstance(layer, LowRankLinear)}
    ranks = {name: len(layer.a) for name, layer in layers.items()}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        own = experts.layer_coefficients(layer, coefficients)
        scale = (experts.scaling * own).repeat_interleave(layer.rank)
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.a.detach().contiguous().cpu()
        tensors[f"base_model.model.{name}.lora_B.weight"] = (layer.b.detach() * scale).contiguous().cpu()
    most = max(ranks.values())
    config = LoraConfig(
        r=most,
        lora_alpha=most,  # alpha / r = 1: the scale is in B
        rank_pattern={name: rank for name, rank in ranks.items() if rank != most},
        alpha_pattern={name: rank for name, rank in ranks.items() if rank != most},
        target_modules=sorted(ranks),
        base_model_name_or_path=str(Path(model.name_or_path).resolve()),
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def load_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of that name; raises `UsageError` for others than float32, bfloat16 and float16."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UsageError(f"dtype: expected one of {', '.join(known)}, but found {name!r}")
    return known[name]
