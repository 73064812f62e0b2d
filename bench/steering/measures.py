"""The benchmark's entries a to f (issue 3); every one is a ratio of two sides that took turns."""

import copy
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from bench.steering.subjects import (
    GROUPS,
    RANK,
    SAMPLES,
    Gate,
    Subject,
    different_weightings,
    prepare,
    sample,
    steerable,
)
from bench.steering.turns import StepTurns, entry, take_turns

ROWS = GROUPS * SAMPLES
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]


def generation(subject: Subject, rounds: int) -> dict[str, Any]:
    """(a) Generation with a different w per row / the plain base model with the same sampler."""
    steered, plain = steerable(subject), steerable(subject, plain=True)
    documents = subject.documents[:ROWS]
    prompts, weightings = plain.tokenize(documents), different_weightings(ROWS)
    seconds = take_turns(
        {
            "a different w per row": lambda: sample(steered, prompts, weightings),
            "plain base model": lambda: sample(plain, prompts, None),
        },
        rounds,
    )
    return entry("a", f"generation, {ROWS} rows, K = 2", seconds, 1.15)


def forward_backward(subject: Subject, rounds: int) -> dict[str, Any]:
    """(b) Forward and backward of the conditioned policy / PEFT with K adapters whose scalings are tensors.

    `floor` is the same ratio for the frozen base model alone, which both sides run: no way of adding experts goes below it.
    """
    policy = steerable(subject)
    stock = _peft(subject, policy.coefficients(different_weightings(ROWS), ROWS))
    bare: Any = steerable(subject, plain=True).model.requires_grad_(False)
    bare.enable_input_require_grads()  # gradients then flow through every layer, as they must to reach the first experts
    seconds = take_turns(
        {
            "conditioned policy": _steered_step(policy),
            "PEFT, K active adapters": lambda: _backward(stock, _tokens()),
            "frozen base model alone": lambda: _backward(bare, _tokens()),
        },
        rounds,
    )
    report = entry("b", f"forward + backward, {ROWS} x 64 tokens, K = 2, rank {RANK}", seconds, 0.3)
    return {
        **report,
        "floor": report["medians_s"]["frozen base model alone"] / report["medians_s"]["PEFT, K active adapters"],
    }


def sweep(subject: Subject, rounds: int, prompts: int) -> dict[str, Any]:
    """(d) A sweep over 11 weightings in mixed batches / materialize, then generate, for each weighting in turn."""
    policy = steerable(subject)
    documents = subject.documents[:prompts]
    grid = np.stack([np.linspace(0, 1, 11), np.linspace(1, 0, 11)], axis=1)
    rows, weightings = [text for text in documents for _ in grid], np.tile(grid, (prompts, 1))

    def mixed() -> None:
        for start in range(0, len(rows), 64):
            part = slice(start, start + 64)
            sample(policy, policy.tokenize(rows[part]), weightings[part])

    def one_by_one() -> None:
        for weighting in grid:
            plain = _merged(policy, weighting)
            sample(plain, plain.tokenize(documents), None)

    seconds = take_turns({"mixed batches": mixed, "materialize, then generate": one_by_one}, rounds)
    return entry(f"d, {prompts} prompts", f"11 weightings x {prompts} prompts", seconds, 0.7)


def arithmetic(subject: Subject, rounds: int) -> dict[str, Any]:
    """(e) Achieved FLOP/s of forward and backward / this machine's measured peak of a matrix product.

    The peak is the better of bfloat16 and float32: without bfloat16 in hardware its product is emulated and no measure.
    """
    policy = steerable(subject)
    step = _steered_step(policy)
    with FlopCounterMode(display=False) as counter:
        step()
    products = {dtype: _product(dtype) for dtype in (torch.bfloat16, torch.float32)}
    sides: dict[str, Callable[[], Any]] = {"forward + backward": step}
    sides |= {f"product {str(dtype).removeprefix('torch.')}": call for dtype, (call, _) in products.items()}
    seconds = take_turns(sides, rounds)
    achieved = counter.get_total_flops() / float(np.median(seconds["forward + backward"]))
    peaks = {
        str(dtype).removeprefix("torch."): flops / min(seconds[f"product {str(dtype).removeprefix('torch.')}"])
        for dtype, (_, flops) in products.items()
    }
    used = str(policy.model.dtype).removeprefix("torch.")
    more = {"achieved_flops": achieved, "peak_flops": peaks, "dtype": used, "profile": _shares(step)}
    report = entry("e", "FLOP/s of forward + backward / peak of a product", seconds, 0.6, **more)
    return {**report, "ratio": achieved / max(peaks.values()), "larger_is_better": True}


def objectives(subject: Subject, rounds: int, tiny: bool) -> dict[str, Any]:
    """(f) Time of a training step at K = 8 and 4 / at K = 2, and the memory of each in a process of its own."""
    counts = (8, 2, 4)
    turns = StepTurns([f"K = {count}" for count in counts])
    trainers: dict[str, Callable[[], None]] = {}
    for count in counts:
        name = f"K = {count}"
        trainers[name] = prepare(subject, count, rounds + 1, [Gate(turns, name)])
    seconds = turns.run(trainers)
    memory = {f"K = {count}": _memory(count, tiny) for count in counts}
    return entry("f", "training step, K = 8 / K = 2", seconds, 1.3, peak_memory_mb=memory)


def _backward(model: Any, ids: Tensor) -> None:
    logits = model(input_ids=ids, use_cache=False).logits
    following = functional.pad(ids[:, 1:], (0, 1), value=-100)  # ignored: slicing would copy all logits
    functional.cross_entropy(logits.flatten(0, 1).float(), following.flatten()).backward()
    for parameter in model.parameters():
        parameter.grad = None


def _peft(subject: Subject, coefficients: Any) -> Any:
    model: Any = steerable(subject, plain=True).model
    config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR, lora_dropout=0.0)
    model = get_peft_model(model, config, adapter_name="0")
    model.add_adapter("1", config)
    model.base_model.set_adapter(["0", "1"])
    for module in model.modules():
        if hasattr(module, "scaling") and hasattr(module, "lora_A"):
            for number in range(2):
                module.scaling[str(number)] = 2.0 * coefficients[:, number, None, None].to(model.dtype)
    return model


def _merged(policy: Any, weighting: np.ndarray) -> Any:
    """Materialize one weighting in a copy; the policy itself stays steerable."""
    return copy.deepcopy(policy, {id(policy.tokenizer): policy.tokenizer}).materialize(weighting)


def _steered_step(policy: Any) -> Callable[[], None]:
    """Forward and backward of a policy with a different weighting on every row."""
    coefficients = policy.coefficients(different_weightings(ROWS), ROWS)

    def step() -> None:
        with policy.experts.steer(coefficients):
            _backward(policy.model, _tokens())

    return step


def _tokens() -> Tensor:
    return torch.randint(0, 256, (ROWS, 64), generator=torch.Generator().manual_seed(0))


def _product(dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    size = 2048 if dtype == torch.float32 or torch.cpu._is_avx512_bf16_supported() else 512
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    return lambda: a @ b, 2.0 * size**3


def _shares(step: Callable[[], None]) -> dict[str, float]:
    """Share of the processor time of one step by operator, the eight largest (torch.profiler)."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step()
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    return {name: round(times[name] / total, 3) for name in sorted(times, key=times.__getitem__, reverse=True)[:8]}


def _memory(count: int, tiny: bool) -> float:
    """Peak resident memory of three training steps, MB."""
    code = f"from bench.steering.measures import peak; peak({count}, {tiny})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def peak(count: int, tiny: bool) -> None:
    """Train three steps and print this process's peak resident memory in MB."""
    from bench.steering.subjects import subject

    prepare(subject(tiny), count, 3, [])()
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the process which started this one
    print(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024)  # type: ignore[index]
