"""A steerable policy's folder: the experts as safetensors, and a card (`clp.json`) that says what they belong to."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch

from clp_lightning.config.data import Layers, Quantization
from clp_lightning.config.parameters import Generation
from clp_lightning.errors import ClpError
from clp_lightning.files import atomic, check_replaceable, read_json
from clp_lightning.policy.loading import load_base
from clp_lightning.steering.experts import Experts

CARD = "clp.json"
OLDER = {"chat": False, "end_token": None}  # what cards written before these settings existed mean


def read(
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: str | None,
    quantization: Quantization | Literal["as trained"] | None,
) -> dict[str, Any]:
    """Load what `write` wrote, and its base, as the arguments of `SteerablePolicy`; `ClpError` when a part is missing."""
    if not folder.is_dir():
        raise ClpError(f"no model folder at {folder}; `make repro` writes models/clp-full")
    card = read_json(folder / CARD, remedy="it is not a model that CLP wrote; `make repro` writes models/clp-full")
    # cards written before the setting existed mean None
    chosen = card.get("quantization") if quantization == "as trained" else quantization
    base, tokenizer = load_base(folder / card["base_model"], dtype=dtype, device=device, quantization=chosen)
    listed, layers = card.get("listed"), card.get("layers")
    experts = Experts(
        base,
        conditioning=card["conditioning"],
        experts=len(listed or card["objectives"]),
        rank=card["rank"],
        shared=card["shared"],
        scaling=card["scaling"],
        layers=Layers.model_validate(layers) if layers else None,
    )
    try:
        experts.load_tensors(safetensors.torch.load_file(folder / "experts.safetensors"))
    except (OSError, KeyError, RuntimeError, safetensors.SafetensorError) as error:
        raise ClpError(
            f"cannot read {folder}/experts.safetensors: {error}; run `dvc repro` to write it again"
        ) from error
    return {
        "model": base,
        "tokenizer": tokenizer,
        "generation": Generation.model_validate(OLDER | card["generation"]),
        "objectives": card["objectives"],
        "experts": experts.to(base.device),
        "prompted": card["prompted"],
        "takes_alpha": card["takes_alpha"],
        "listed": np.array(listed) if listed else None,
    }


def write(folder: Path, experts: Experts, card: dict[str, Any]) -> None:
    """Write experts and card atomically; `card` has what is not the experts' own.

    Raises `UsageError` for a folder that holds something else than a policy.
    """
    check_replaceable(folder, CARD)
    card = card | {
        "conditioning": experts.conditioning,
        "rank": experts.rank,
        "shared": experts.shared,
        "scaling": experts.scaling,
        "layers": experts.patterns.model_dump() if experts.patterns else None,
    }
    with atomic(folder) as beside:
        beside.mkdir()
        tensors = {name: tensor.contiguous() for name, tensor in experts.tensors().items()}
        safetensors.torch.save_file(tensors, beside / "experts.safetensors")
        (beside / CARD).write_text(json.dumps(card, indent=2) + "\n")
