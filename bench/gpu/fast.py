"""How fast: decoding and a training step's parts on random models of three shapes, beside what the device can do."""

import copy
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional

from bench.gpu.device import Row, ceilings, peak_memory, reset, timed, wait
from bench.gpu.subjects import RANK, Shape, Size, documents, prompts_of, random_model, size_of, steerable, word_count
from bench.gpu.subjects import plain as plain_policy
from bench.steering.subjects import different_weightings
from bench.steering.turns import take_turns
from clp_lightning.config.methods import Dirichlet
from clp_lightning.config.parameters import Training
from clp_lightning.policy.rollout import sampling_steps, stacked
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.training.clp import ClpModule
from clp_lightning.training.trainer import fit

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]
SAMPLES = 4  # answers per prompt in a training step
PARTS = ("rollout", "policy forward + backward", "the same, a prompt per answer", "reference forward")


def planned(shapes: dict[str, Shape]) -> list[str]:
    """Name what `measure` yields, in order, as `named` names a row."""
    names = ["ceilings"]
    for model, shape in shapes.items():
        parts = [("PEFT forward + backward", shape.rows)]
        parts += [("decode", rows) for rows in shape.rollout]
        parts += [(part, shape.rows) for part in (*PARTS, "training step")]
        names += [named({"what": what, "model": model, "rows": rows}) for what, rows in parts]
    return names


def named(row: Row) -> str:
    """Return what a row is of."""
    return f"{row['what']}, {row['model']}, {row['rows']} rows" if "model" in row else row["what"]


def measure(shapes: dict[str, Shape], device: str, repeats: int = 3) -> Iterator[Row]:
    """Yield a row per measurement; shapes in ascending size. Each row has the peak of its own measurement."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    peak = ceilings(device, dtype)
    yield peak
    for name, shape in shapes.items():
        reset(device)
        model = random_model(shape, device, dtype)
        size, of = size_of(model), {"model": name}
        lora = peft_step(model, shape, size, device, repeats)
        yield of | lora | share(lora, peak)
        bare = plain_policy(copy.deepcopy(model), shape.tokens)
        policy = steerable(model, shape.tokens)  # the model is changed in place
        for rows in shape.rollout:
            reset(device)
            row = decoding(policy, bare, rows, size, device, repeats)
            yield of | row | {"share_of_bandwidth": row["bytes"] / row["seconds"] / peak["bytes_per_s"]}
        del bare
        for row in step_parts(policy, shape, size, device, repeats):
            trains = "seconds" in row and "flop" in row and row["what"] != "reference forward"
            yield of | row | share(row, peak) | ({"over_peft": row["seconds"] / lora["seconds"]} if trains else {})
        reset(device)
        yield of | training_step(policy, shape) | {"peak_gb": peak_memory(device)}
        del model, policy


def share(row: Row, peak: Row) -> Row:
    """Return a row's arithmetic over what the device can do, where it was counted."""
    known = "flop" in row and "seconds" in row
    return {"share_of_peak": row["flop"] / row["seconds"] / peak["flops"]} if known else {}


@torch.no_grad()
def decoding(policy: SteerablePolicy, bare: SteerablePolicy, rows: int, size: Size, device: str, repeats: int) -> Row:
    """Write the full length on every row, each at its own weighting, and with the model that has no experts; in turns."""
    prompts, tokens = prompts_of(policy, rows), policy.generation.max_new_tokens
    own = policy.coefficients(different_weightings(rows), rows)
    uniform = policy.random_numbers(rows, torch.Generator().manual_seed(0))

    def write(each: SteerablePolicy) -> None:
        steer = each.steer(own if each is policy else None)
        steps = sampling_steps(each.model, steer, prompts, uniform, samples=1, end_ids=(), pad_id=0, temperature=1.0)
        assert stacked(steps).ids.shape == (rows, tokens)
        wait(device)

    assert policy.experts is not None
    with policy.experts.frozen():
        turns = take_turns({"steered": lambda: write(policy), "plain": lambda: write(bare)}, repeats)
    seconds, plain = (statistics.median(turns[side]) for side in ("steered", "plain"))
    context = prompts.ids.shape[1] + tokens / 2  # on average
    return {
        "what": "decode", "rows": rows, "seconds": seconds, "tokens_per_s": rows * tokens / seconds,
        "ms_per_token": 1000 * seconds / tokens, "over_plain": seconds / plain,
        "bytes": tokens * (size.weights + rows * context * size.cache), "peak_gb": peak_memory(device),
    }  # fmt: skip


def step_parts(policy: SteerablePolicy, shape: Shape, size: Size, device: str, repeats: int) -> Iterator[Row]:
    """Yield the parts of a training step, whose samples of one (prompt, weighting) share the prompt."""
    groups = max(1, shape.rows // SAMPLES)
    prompts, few = prompts_of(policy, shape.rows), prompts_of(policy, groups)
    weightings = different_weightings(groups)
    own = policy.coefficients(weightings, groups)
    every = policy.coefficients(weightings.repeat(SAMPLES, 0)[: shape.rows], shape.rows)
    generator = torch.Generator().manual_seed(0)
    uniform = policy.random_numbers(groups * SAMPLES, generator)
    responses = policy.rollout(few, own, samples=SAMPLES, uniform=uniform)
    ids, mask = responses.ids, responses.mask
    answers = int(mask.sum())
    shared, alone = (
        size.products(count * shape.tokens + mask[:, 1:].sum().item(), answers) for count in (groups, len(ids))
    )

    def learn(*given: Any, samples: int) -> None:
        prompts, coefficients = given
        policy.score(prompts, ids, mask, coefficients, samples=samples).sum().backward()
        for parameter in policy.experts.parameters():  # type: ignore[union-attr]
            parameter.grad = None

    @torch.no_grad()
    def reference() -> None:
        policy.score(few, ids, mask, None, samples=SAMPLES)

    calls: list[
        tuple[Any, float | None]
    ] = [  # FLOP: a forward 2 per weight and position, and 2 for what goes back through W
        (lambda: policy.rollout(few, own, samples=SAMPLES, uniform=uniform), None),
        (lambda: learn(few, own, samples=SAMPLES), 4 * shared),
        (lambda: learn(prompts, every, samples=1), 4 * alone),
        (reference, 2 * shared),
    ]
    for what, (call, flop) in zip(PARTS, calls, strict=True):
        reset(device)
        row: Row = {"what": what, "rows": len(ids)} | ({} if flop is None else {"flop": flop})
        try:
            yield row | {"seconds": timed(call, device, repeats), "peak_gb": peak_memory(device)}
        except torch.OutOfMemoryError:
            yield row | {"out_of_memory": True}


def training_step(policy: SteerablePolicy, shape: Shape) -> Row:
    """Time a whole step by `ClpModule` through Lightning: rollout, rewards, scores, backward, optimizer."""
    training = Training(
        seed=0, steps=4, accumulate=1, devices=1, prompts_per_step=max(1, shape.rows // SAMPLES), samples_per_prompt=SAMPLES,
        learning_rate=1e-5, rank=RANK, alpha=0.05, alpha_start=None, alpha_high=None, kl="reward", baseline="leave_one_out",
        advantages="batch", gradient_clip=1.0, checkpoint_every=10**6,
    )  # fmt: skip
    dirichlet = Dirichlet(kind="dirichlet", concentration=1.0)
    module = ClpModule(policy, training, dirichlet, documents(512, shape.tokens), word_count, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        fit(module, checkpoints=Path(folder), every=10**6, show_progress=False)
    return {
        "what": "training step", "rows": shape.rows,
        "seconds": statistics.median(row["seconds"] for row in module.curve[1:]),
        "tokens": module.generated_tokens / training.steps,
    }  # fmt: skip


def peft_step(model: Any, shape: Shape, size: Size, device: str, repeats: int) -> Row:
    """Time forward and backward with one LoRA adapter by PEFT, on a prompt for each answer; the model is left plain."""
    adapted: Any = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=LINEAR))
    ids = torch.randint(0, 200, (shape.rows, 2 * shape.tokens), device=device)
    ids = ids[:, :-1]  # nothing is drawn from the last token, which the policy does not read either
    targets = ids[:, shape.tokens :]

    def learn() -> None:
        kept = adapted(input_ids=ids, use_cache=False, logits_to_keep=targets.shape[1] + 1).logits[:, :-1]
        functional.cross_entropy(kept.flatten(0, 1).float(), targets.flatten()).backward()
        adapted.zero_grad(set_to_none=True)

    reset(device)
    seconds = timed(learn, device, repeats)
    adapted.unload()
    model.requires_grad_(False)
    return {
        "what": "PEFT forward + backward", "rows": shape.rows, "seconds": seconds, "peak_gb": peak_memory(device),
        "flop": 4 * size.products(ids.numel(), shape.rows * (targets.shape[1] + 1)),
    }  # fmt: skip
