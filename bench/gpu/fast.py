"""How fast: decoding and a training step's parts on random models of three shapes, beside what the device can do."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional

from bench.gpu.subjects import RANK, Shape, documents, prompts_of, random_model, steerable, word_count
from bench.steering.subjects import different_weightings
from bench.steering.turns import take_turns
from clp_lightning.config.methods import Dirichlet
from clp_lightning.config.parameters import Training
from clp_lightning.policy.rollout import sampling_steps, stacked
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.training.clp import ClpModule
from clp_lightning.training.trainer import fit

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
Row = dict[str, Any]


def measure(shapes: dict[str, Shape], device: str, repeats: int = 3) -> Iterator[Row]:
    """Yield a row per measurement; shapes in ascending size."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    peak = ceilings(device, dtype)
    yield peak
    for name, shape in shapes.items():
        reset(device)
        model = random_model(shape, device, dtype)
        size = sum(parameter.numel() for parameter in model.parameters())
        lora = peft_step(model, shape, device, repeats) if shape.hidden < 4096 else None
        policy = steerable(model, shape.tokens)  # the same model, changed in place
        for rows in shape.rollout:
            seconds, plain = decoding(policy, rows, device, repeats)
            yield {
                "what": "decode", "model": name, "rows": rows, "tokens_per_s": rows * shape.tokens / seconds,
                "over_plain": seconds / plain, "ms_per_token": 1000 * seconds / shape.tokens,
                "share_of_bandwidth": size * model.dtype.itemsize * shape.tokens / seconds / peak["bytes_per_s"],
                "peak_gb": peak_memory(device),
            }  # fmt: skip
        for part, seconds in step_parts(policy, shape, device, repeats).items():
            tokens = 2 * shape.tokens * shape.rows
            products = {"policy forward + backward": 4, "reference forward": 2}[
                part
            ]  # per weight and token: the base is frozen
            yield {
                "what": part, "model": name, "rows": shape.rows, "seconds": seconds,
                "share_of_peak": products * size * tokens / seconds / peak["flops"], "over_peft": None if lora is None or
                products == 2 else seconds / lora, "peak_gb": peak_memory(device),
            }  # fmt: skip
        if shape.hidden < 4096:
            yield {"what": "training step", "model": name, "rows": shape.rows, **training_step(policy, shape)}
        del model, policy


def ceilings(device: str, dtype: torch.dtype) -> Row:
    """Measure a large copy (bytes read and written per second) and a large product (FLOP/s)."""
    count, size = (2**30, 8192) if device == "cuda" else (2**20, 256)
    source = torch.randn(count // dtype.itemsize, device=device, dtype=dtype)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    copied, product = timed(lambda: target.copy_(source), device, 10), timed(lambda: a @ b, device, 10)
    return {"what": "ceilings", "bytes_per_s": 2 * count / copied, "flops": 2 * size**3 / product, "dtype": str(dtype)}


@torch.no_grad()
def decoding(policy: SteerablePolicy, rows: int, device: str, repeats: int) -> tuple[float, float]:
    """Median seconds to write the full length on every row: each at its own weighting, and the base model alone; in turns."""
    prompts = prompts_of(policy, rows)
    own = policy.coefficients(different_weightings(rows), rows)
    uniform = policy.random_numbers(rows, torch.Generator().manual_seed(0))

    def write(coefficients: Tensor | None) -> None:
        steps = sampling_steps(
            policy.model, policy.steer(coefficients), prompts, uniform, samples=1, end_id=-1, pad_id=0, temperature=1.0
        )
        assert stacked(steps).ids.shape == (rows, policy.generation.max_new_tokens)
        wait(device)

    assert policy.experts is not None
    with policy.experts.frozen():
        seconds = take_turns({"steered": lambda: write(own), "plain": lambda: write(None)}, repeats)
    return statistics.median(seconds["steered"]), statistics.median(seconds["plain"])


def step_parts(policy: SteerablePolicy, shape: Shape, device: str, repeats: int) -> dict[str, float]:
    """Seconds of what a training step does after its rollout: samples of one (prompt, weighting) share the prompt."""
    samples, groups = 4, max(1, shape.rows // 4)
    prompts = prompts_of(policy, groups)
    coefficients = policy.coefficients(different_weightings(groups), groups)
    with torch.no_grad():
        responses = policy.rollout(prompts, coefficients, samples=samples, generator=torch.Generator().manual_seed(0))
    ids, mask = responses.ids, responses.mask

    def learn() -> None:
        policy.score(prompts, ids, mask, coefficients, samples=samples).sum().backward()
        for parameter in policy.experts.parameters():  # type: ignore[union-attr]
            parameter.grad = None

    @torch.no_grad()
    def reference() -> None:
        policy.score(prompts, ids, mask, None, samples=samples)

    return {
        "policy forward + backward": timed(learn, device, repeats),
        "reference forward": timed(reference, device, repeats),
    }


def training_step(policy: SteerablePolicy, shape: Shape) -> Row:
    """Seconds of a whole step by `ClpModule` through Lightning: rollout, rewards, scores, backward, optimizer."""
    training = Training(
        seed=0, steps=6, accumulate=1, devices=1, prompts_per_step=max(1, shape.rows // 4), samples_per_prompt=4,
        learning_rate=1e-5, rank=RANK, alpha=0.05, alpha_start=None, alpha_high=None, kl="reward", baseline="leave_one_out",
        advantages="batch", gradient_clip=1.0, checkpoint_every=10**6,
    )  # fmt: skip
    dirichlet = Dirichlet(kind="dirichlet", concentration=1.0)
    module = ClpModule(policy, training, dirichlet, documents(512, shape.tokens), word_count, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        fit(module, checkpoints=Path(folder), every=10**6, show_progress=False)
    return {
        "seconds": statistics.median(row["seconds"] for row in module.curve[1:]),
        "tokens": module.generated_tokens / training.steps,
    }


def peft_step(model: Any, shape: Shape, device: str, repeats: int) -> float:
    """Seconds of forward and backward with one LoRA adapter by PEFT on as many tokens; the model is left plain."""
    adapted: Any = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR))
    ids = torch.randint(0, 200, (shape.rows, 2 * shape.tokens), device=device)

    def learn() -> None:
        logits = adapted(input_ids=ids, use_cache=False).logits[:, shape.tokens - 1 : -1]  # of the answer's tokens
        functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, shape.tokens :].flatten()).backward()
        adapted.zero_grad(set_to_none=True)

    seconds = timed(learn, device, repeats)
    adapted.unload()
    model.requires_grad_(False)
    return seconds


def timed(call: Callable[[], Any], device: str, repeats: int) -> float:
    """Return the median seconds of `repeats` calls after one that is not counted; the device is waited for."""
    seconds = []
    for number in range(repeats + 1):
        wait(device)
        started = time.perf_counter()
        call()
        wait(device)
        if number:
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def wait(device: str) -> None:
    """Wait until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def reset(device: str) -> None:
    """Free what the last model held, and count its peak anew."""
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(device: str) -> float | None:
    """Return the peak of the memory that torch took, in GB; None on a CPU."""
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None
