"""Whether a model does here what it does in transformers: tried once, before anything is trained on it."""

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from clp_lightning.config.data import Layers
from clp_lightning.errors import ClpError, UsageError, one_line
from clp_lightning.policy.rollout import Prompts, sampling_steps, score_responses, stacked
from clp_lightning.steering.experts import Experts

PROMPTS, ANSWERS, SAMPLES = (5, 3), (4, 2, 3, 4), 2  # tokens of each prompt, and of each sample's answer
EXACT = 3_000_000_000  # parameters up to which the probe computes in float32


def probe(model: Any, name: str, layers: Layers | None = None) -> None:
    """Compare log-probabilities of this package with those of the model's own `forward`; a `ClpError` names the family.

    Prompts of two lengths in one batch, two samples of each, scored and then written: left padding, the output layer,
    the caches of attention and of states, rows that read a token at a time. Then a step with an expert per row on the
    linear layers of `layers` (by default those that are found). Small models are computed in float32.
    """
    family, dtype = model.config.model_type, model.dtype
    if sum(parameter.numel() for parameter in model.parameters()) <= EXACT:
        model.float()
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.5
    model.eval()
    try:
        off = _difference(model)
        _steer(model, layers)
    except Exception as error:  # a family may break anywhere in its own code
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ClpError(
            f"{name}: models of the family {family} cannot be used here ({reason}); choose another"
        ) from error
    finally:
        model.to(dtype)
    if not off <= tolerance:
        raise ClpError(
            f"{name}: log-probabilities of the family {family} would be wrong here, by {off:.2g} nats; choose another model"
        )


def _steer(model: Any, layers: Layers | None) -> None:
    """Run two rows, each with an expert of its own, forward and backward; models without such layers are left to training."""
    try:
        experts = Experts(model, conditioning="blocks", experts=2, rank=2, layers=layers)
    except UsageError:
        return
    try:
        ids = torch.full((2, 5), 3)
        more = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
        with experts.steer(torch.eye(2)):
            model(input_ids=ids, use_cache=False, **more).logits.sum().backward()
    finally:
        experts.detach(model)


@torch.no_grad()
def _difference(model: Any) -> float:
    """Return the largest difference between a token's log-probability here and by `forward` on the text alone."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = min(model.config.get_text_config().vocab_size, 1000)
    draw = lambda length: torch.randint(3, vocabulary, (length,), generator=generator)  # noqa: E731
    texts, answers = [draw(length) for length in PROMPTS], [draw(length) for length in ANSWERS]
    prompts = Prompts(_padded(texts, left=True), _padded([torch.ones_like(text) for text in texts], left=True).bool())
    ids, mask = _padded(answers), _padded([torch.ones_like(answer) for answer in answers]).bool()
    nothing = lambda groups: contextlib.nullcontext()  # noqa: E731
    scored = score_responses(model, nothing, prompts, ids, mask, samples=SAMPLES).log_probs
    written = stacked(
        sampling_steps(
            model,
            nothing,
            prompts,
            torch.zeros(len(answers), 4),
            samples=SAMPLES,
            end_ids=(),
            pad_id=0,
            temperature=0.0,
        )
    )
    worst = 0.0
    for row in range(len(answers)):
        text = texts[row // SAMPLES]
        for answer, found in ((answers[row], scored[row]), (written.ids[row], written.log_probs[row])):
            own = _own(model, text, answer)
            worst = max(worst, float((own - found[: len(answer)]).abs().max()))
    return worst


def _own(model: Any, text: Tensor, answer: Tensor) -> Tensor:
    """Return the answer's log-probabilities [T] by the model's `forward` on one text without padding."""
    if model.config.is_encoder_decoder:
        start = torch.tensor([model.config.decoder_start_token_id])
        logits = model(
            input_ids=text[None], decoder_input_ids=torch.cat([start, answer[:-1]])[None], use_cache=False
        ).logits
    else:
        whole = torch.cat([text, answer])
        logits = model(input_ids=whole[None], use_cache=False).logits[:, len(text) - 1 : -1]
    return functional.log_softmax(logits[0].float(), -1).gather(-1, answer[:, None])[:, 0]


def _padded(rows: list[Tensor], *, left: bool = False) -> Tensor:
    width = max(map(len, rows))
    return torch.stack([functional.pad(row, (width - len(row), 0) if left else (0, width - len(row))) for row in rows])
