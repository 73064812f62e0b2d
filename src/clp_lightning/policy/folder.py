"""A steerable policy's folder (experts as safetensors, and a card that says what they belong to), and its exports.

An export is one weighting as files that transformers or peft load without this package.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import safetensors.torch
import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from torch import Tensor

from clp_lightning.config.data import Layers, Quantization
from clp_lightning.config.methods import Parameterization
from clp_lightning.config.parameters import Generation
from clp_lightning.config.types import Positive
from clp_lightning.errors import ClpError, UsageError, make, one_line, plural
from clp_lightning.files import atomic, check_replaceable, read_json, write_json
from clp_lightning.paths import CARD, NOTE
from clp_lightning.policy.loading import load_base
from clp_lightning.steering.conditioned import LowRankLinear
from clp_lightning.steering.experts import Experts

FORMATS = ("hf", "peft")
# Merging happens in place: without these lines it would change an embedding that the output layer is tied to.
UNTIE = (
    "head = model.get_output_embeddings()",
    "head.weight = torch.nn.Parameter(head.weight.detach().clone())",
    "model.config.tie_word_embeddings = False",
)
OLDER = {"chat": False, "end_token": None}  # what cards written before these settings existed mean


class Card(BaseModel):
    """What `clp.json` says about a policy, as far as it is needed to load one; keys with a default came later than the rest."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    objectives: Annotated[list[str], Field(min_length=1)]
    base_model: str
    conditioning: Literal["full", "attention", "logits", "blocks", "none"]
    rank: Positive | Literal["full"]
    shared: Literal[False, True, "everywhere"]
    scaling: float
    prompted: bool
    takes_alpha: bool
    generation: Annotated[
        Generation, BeforeValidator(lambda given: OLDER | given if isinstance(given, dict) else given)
    ]
    listed: list[list[float]] | None = None
    parameterization: Parameterization = "experts"
    layers: Layers | None = None
    quantization: Quantization | None = None

    @field_validator("listed")
    @classmethod
    def _one_share_each(cls, listed: list[list[float]] | None, known: ValidationInfo) -> list[list[float]] | None:
        width = len(known.data.get("objectives", ()))
        if any(len(row) != width for row in listed or ()):
            raise ValueError(f"expected rows of {plural(width, 'share')}, one for each objective")
        return listed


def read_card(folder: Path) -> Card:
    """Read a policy's card; one that is missing, broken, or lacks a key is a one-line `ClpError` that names file and key."""
    remedy = f"it is not a model that CLP wrote; {make('repro')} writes models/clp-full"
    values = read_json(folder / CARD, remedy=remedy, keys={"objectives": list})
    try:
        return Card.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        # pydantic names the branches of a union too: no key has a hyphen
        where = ".".join(str(part) for part in first["loc"] if "-" not in str(part))
        wrong = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        what = "missing" if first["type"] == "missing" else one_line(f"{wrong}, but found {first['input']!r}")
        raise ClpError(f"{folder / CARD}: {where}: {what}; run {make('repro')} to write it again") from None


def read(
    folder: Path,
    *,
    dtype: torch.dtype | None,
    device: str | None,
    quantization: Quantization | Literal["as trained"] | None,
) -> dict[str, Any]:
    """Load what `write` wrote, and its base, as the arguments of `SteerablePolicy`; `ClpError` when a part is missing."""
    if not folder.is_dir():
        raise ClpError(f"no model folder at {folder}; {make('repro')} writes models/clp-full")
    card = read_card(folder)
    chosen = card.quantization if quantization == "as trained" else quantization
    base, tokenizer = load_base(folder / card.base_model, dtype=dtype, device=device, quantization=chosen)
    experts = Experts(
        base,
        conditioning=card.conditioning,
        experts=len(card.listed or card.objectives),
        rank=card.rank,
        shared=card.shared,
        parameterization=card.parameterization,
        scaling=card.scaling,
        layers=card.layers,
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
        "generation": card.generation,
        "objectives": card.objectives,
        "experts": experts.to(base.device),
        "prompted": card.prompted,
        "takes_alpha": card.takes_alpha,
        "listed": np.array(card.listed) if card.listed else None,
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
        "parameterization": experts.parameterization,
        "scaling": experts.scaling,
        "layers": experts.patterns.model_dump() if experts.patterns else None,
    }
    with atomic(folder) as beside:
        beside.mkdir()
        tensors = {name: tensor.contiguous() for name, tensor in experts.tensors().items()}
        safetensors.torch.save_file(tensors, beside / "experts.safetensors")
        (beside / CARD).write_text(json.dumps(card, indent=2) + "\n")


def export(
    model: Any, tokenizer: Any, experts: Experts, coefficients: Tensor, out: Path | str, *, format: str, note: dict
) -> None:
    """Write a plain checkpoint (`hf`) or a PEFT adapter of its base (`peft`) for one row of coefficients [K], atomically.

    `note` goes into `clp_export.json`, with the lines (`before_merging`) that untie the base where an adapter is on a tied
    output layer. `hf` consumes the model: its experts are merged in place. Raises `UsageError` for an unknown format, for
    full-rank experts as an adapter, and for a folder that holds something else than an export.
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
            model.generation_config.save_pretrained(beside)  # what ends a response
            if _adapts_tied(model, experts):
                note = note | {"before_merging": UNTIE}
            tokenizer.save_pretrained(beside)
        write_json(beside / NOTE, {"format": format, **note})


def _write_adapter(model: Any, experts: Experts, coefficients: Tensor, folder: Path) -> None:
    """Write stacked experts as one LoRA: `sum_i w_i B_i A_i = [w_1 B_1 .. w_K B_K] [A_1; ..; A_K]`, exactly."""
    from peft import LoraConfig

    layers = {name: layer for name, layer in experts.layers.items() if isinstance(layer, LowRankLinear)}
    ranks: dict[str, int] = {}
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        a, b = layer.at(experts.layer_coefficients(layer, coefficients), experts.scaling)
        ranks[name] = len(a)
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.detach().contiguous().cpu()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.detach().contiguous().cpu()
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


def _adapts_tied(model: Any, experts: Experts) -> bool:
    """Whether experts are on an output layer that shares its parameters with the embedding."""
    embedding = model.get_input_embeddings().weight
    return any(layer.base.weight is embedding for layer in experts.layers.values())


def load_dtype(name: str) -> torch.dtype:
    """Return the torch dtype of that name; raises `UsageError` for others than float32, bfloat16 and float16."""
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise UsageError(f"dtype: expected one of {', '.join(known)}, but found {name!r}")
    return known[name]
