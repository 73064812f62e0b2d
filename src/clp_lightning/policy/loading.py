"""Loading a transformers folder as the model that is steered, in the precision that suits the hardware."""

import ctypes
import datetime
import functools
import importlib.util
import inspect
import logging
import os
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from clp_lightning.config.data import Compute, Quantization
from clp_lightning.errors import ClpError, UsageError, make, plural

# What chat templates take for today, as Llama's do where nobody tells them the date.
DATE, DATE_FUNCTION = datetime.datetime(2024, 7, 26), "strftime_now"
DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", "-S", *"aAbBcdDeFfGhHIjmMpRSTuUVwWxXyYzZ")  # of strftime
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def chosen_device(setting: str | None = None) -> torch.device:
    """Return the device that `compute.device` ("auto" or None, "cpu", "cuda") means for this process.

    Of several GPUs it is the one of the process's rank: torchrun and Lightning set LOCAL_RANK. A GPU that is asked for and not
    there is a `ClpError`, and so is a process too many. Apple's is not taken by itself: sampling needs float64, which it lacks.
    """
    if setting == "cuda" and not torch.cuda.is_available():
        raise ClpError("compute.device: cuda, but torch finds no GPU; use auto or cpu")
    if setting == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if rank >= found:
        raise ClpError(f"process {rank} of this machine has no GPU: torch finds {found}; lower training.devices")
    return torch.device("cuda", rank)


@functools.cache
def hardware_dtype(kind: str | None = None) -> torch.dtype:
    """Return bfloat16 where the device computes it in hardware *and* faster than float32, float32 elsewhere.

    `kind` is the device's, "cpu" or "cuda"; by default that of `chosen_device`.

    Some processors with AVX512-bf16 multiply bfloat16 matrices at half the speed of float32 ones (docs/log.md), so on a CPU
    a layer-sized product decides, measured in turns, a third of a second in all: with one thread and often enough that both
    find a moment of their own on a busy machine (fewer turns with more threads now and then chose the slower one).
    """
    if (kind or chosen_device().type) == "cuda":  # older cards emulate bfloat16
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
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
    """Return dtype and device for `load_base` that the section `compute` asks for; a GPU that is not there is a `ClpError`."""
    return {
        "dtype": None if compute.dtype == "auto" else getattr(torch, compute.dtype),
        "device": str(chosen_device(compute.device)),
    }


def computing(model: PreTrainedModel) -> str:
    """Say what a model computes with here, e.g. `float32, cpu, 2 threads`: results that differ in it are not set side by side."""
    kind = model.device.type
    name = torch.cuda.get_device_name(model.device) if kind == "cuda" else kind
    return f"{str(model.dtype).removeprefix('torch.')}, {name}, {plural(torch.get_num_threads(), 'thread')}"


def answering_dtype(name: str = "auto", device: str | None = None) -> torch.dtype:
    """Return the precision to answer in: the one of that name; "auto" is float32 on a CPU and `hardware_dtype` on a GPU.

    `device` is by default that of `chosen_device`.

    In bfloat16 the company of other rows rounds sums otherwise, so that a greedy answer depends on who else is asking.
    Raises `UsageError` for names that are not in `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise UsageError(f"dtype: expected one of {', '.join(PRECISIONS)}, but found {name!r}")
    if name != "auto":
        return getattr(torch, name)
    kind = torch.device(device or chosen_device()).type
    return hardware_dtype(kind) if kind == "cuda" else torch.float32


@functools.cache
def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees; tell whether the C library can be asked to (glibc's `mallopt`).

    By itself glibc hands blocks of a tensor's size back at once, now and then, and takes new pages for the next one: up to a
    fifth of a rollout's time on a CPU, for a higher peak of memory (docs/results.md).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    mmap_threshold, trim_threshold = -3, -1  # malloc.h
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, -1))


@functools.cache
def prepare_vector_math() -> None:
    """Compute a sine and a cosine in one thread.

    MKL's vector functions set themselves up at their first call. Where two threads made it at once, for a model's rotary
    embedding, the last bits came out otherwise in a quarter of the processes: another text now and then, hence another
    training (docs/log.md, 2026-11-26).
    """
    few = torch.ones(16)  # so few that one thread does it
    few.cos(), few.sin()


def load_base(
    folder: Path | str,
    *,
    dtype: torch.dtype | None = None,
    device: str | None = None,
    quantization: Quantization | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal or encoder-decoder model and its tokenizer (padding on the left); a missing folder is a `ClpError`.

    `dtype` is by default `hardware_dtype`, `device` a GPU where there is one. With `quantization` the linear layers but the
    output layer are quantized while they are loaded; without bitsandbytes that is a `ClpError`.
    """
    tokenizer = load_tokenizer(folder)
    keep_freed_memory()
    prepare_vector_math()
    device = device or str(chosen_device())
    config = AutoConfig.from_pretrained(str(folder), local_files_only=True)
    auto: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    dtype = dtype or hardware_dtype(torch.device(device).type)
    if quantization is None:
        model = auto.from_pretrained(str(folder), dtype=dtype, local_files_only=True).to(device)
    else:
        model = auto.from_pretrained(
            str(folder),
            dtype=dtype,
            local_files_only=True,
            quantization_config=_quantization_config(quantization, dtype),
            device_map={"": device},
        )
    model.eval()
    for module in model.modules():
        # In eval mode, on CPUs with AVX512-bf16, bitsandbytes repacks 4-bit weights for a kernel without gradients, at the
        # first forward that needs none (a rollout); the gradients of the training step after it would be lost.
        if type(module).__name__ == "Linear4bit":
            module.train()
    return model, tokenizer


def load_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model's folder (padding on the left); a missing folder is a `ClpError`."""
    if not (Path(folder) / "config.json").is_file():
        raise ClpError(f"no model folder at {folder}; {make('repro')} writes it")
    tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, padding_side="left")
    if tokenizer.pad_token is None:  # Llama has none; what is padded counts nowhere
        tokenizer.pad_token = tokenizer.eos_token
    fix_date(tokenizer)
    return tokenizer


def fix_date(tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the tokenizer's chat templates take `DATE` for today, so that a prompt is the same on another day.

    Templates get plain data only, hence `strftime_now` is defined in the template itself, over that of transformers. It goes
    where the tokenizer is saved: an exported model is asked as it was trained.
    """
    replaced = "".join(f".replace('%{each}', '{DATE.strftime(f'%{each}')}')" for each in DIRECTIVES)
    # transformers' own settings swallow the line's end
    function = f"{{%- macro {DATE_FUNCTION}(format) -%}}{{{{ format{replaced} }}}}{{%- endmacro %}}\n"

    def fixed(template: str) -> str:
        return template if DATE_FUNCTION not in template or template.startswith(function) else function + template

    given = tokenizer.chat_template
    if isinstance(given, str):
        tokenizer.chat_template = fixed(given)
    elif given:
        tokenizer.chat_template = {name: fixed(template) for name, template in given.items()}


def check_variables(tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> None:
    """Raise `UsageError` for names in `generation.chat_template_kwargs` that a chat template does not read or may not be told."""
    kept = {"messages", DATE_FUNCTION, *inspect.signature(tokenizer.apply_chat_template).parameters}
    for name in names:
        if name in kept:
            raise UsageError(f"generation.chat_template_kwargs.{name}: this is set by CLP Lightning; leave it out")
        if not re.search(rf"\b{re.escape(name)}\b", tokenizer.get_chat_template()):
            raise UsageError(
                f"generation.chat_template_kwargs.{name}: this model's chat template reads no such name; correct it, or leave "
                "it out"
            )


def _quantization_config(quantization: Quantization, dtype: torch.dtype) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ClpError(
            f"compute.quantization: {quantization} needs bitsandbytes; pip install 'clp-lightning[quantization]', or use null"
        )
    if quantization == "int8":
        # one line per product that it rounds its input to float16
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
