"""Loading a transformers folder as the model that is steered, in the precision that suits the hardware."""

import functools
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from clp_lightning.config_data import Compute
from clp_lightning.errors import ClpError, UsageError

PRECISIONS = ("auto", "float32", "bfloat16", "float16")


@functools.lru_cache(maxsize=1)
def hardware_dtype() -> torch.dtype:
    """Return bfloat16 where the processor computes it in hardware *and* faster than float32, float32 elsewhere.

    Some processors with AVX512-bf16 multiply bfloat16 matrices at half the speed of float32 ones (docs/log.md), so on a CPU
    a layer-sized product decides, measured in turns, a third of a second in all: with one thread and often enough that both
    find a moment of their own on a busy machine (fewer turns with more threads now and then chose the slower one).
    """
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if not getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)():
        return torch.float32
    seconds: dict[torch.dtype, list[float]] = {torch.bfloat16: [], torch.float32: []}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(20):
            for dtype, times in seconds.items():
                x, w = torch.ones(256, 576, dtype=dtype), torch.ones(1536, 576, dtype=dtype)
                functional.linear(x, w)
                started = time.perf_counter()
                functional.linear(x, w)
                times.append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return min(seconds, key=lambda dtype: min(seconds[dtype]))


def placement(compute: Compute) -> dict[str, Any]:
    """Return the arguments of `load_base` that the section `compute` asks for; a GPU that is not there is a `ClpError`."""
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise ClpError("compute.device: cuda, but torch finds no GPU; use auto or cpu")
    return {
        "dtype": None if compute.dtype == "auto" else getattr(torch, compute.dtype),
        "device": None if compute.device == "auto" else compute.device,
    }


def answering_dtype(name: str = "auto") -> torch.dtype:
    """Return the precision to answer in: the one of that name; "auto" is float32 on a CPU and `hardware_dtype` on a GPU.

    In bfloat16 the company of other rows rounds sums otherwise, so that a greedy answer depends on who else is asking.
    Raises `UsageError` for names that are not in `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise UsageError(f"dtype: expected one of {', '.join(PRECISIONS)}, but found {name!r}")
    if name != "auto":
        return getattr(torch, name)
    return hardware_dtype() if torch.cuda.is_available() else torch.float32


def load_base(
    folder: Path | str, *, dtype: torch.dtype | None = None, device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal or encoder-decoder model and its tokenizer (padding on the left); a missing folder is a `ClpError`.

    `dtype` is by default `hardware_dtype`, `device` a GPU where there is one.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ClpError(f"no model folder at {folder}; `make repro` (or `dvc repro`) writes it")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_pretrained(str(folder), dtype=dtype or hardware_dtype(), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, padding_side="left")
    if tokenizer.pad_token is None:  # Llama has none; what is padded counts nowhere
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer
