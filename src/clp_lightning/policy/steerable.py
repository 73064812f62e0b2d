"""SteerablePolicy: a language model whose every row takes its own trade-off between the objectives."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clp_lightning import weightings as simplex
from clp_lightning.config.data import Quantization
from clp_lightning.data.transcripts import Message
from clp_lightning.errors import UsageError
from clp_lightning.policy import folder as policy_files
from clp_lightning.policy.folder import export
from clp_lightning.policy.loading import answering_dtype
from clp_lightning.policy.tokens import TokenPolicy, check_sampling, cut
from clp_lightning.steering.layers import quantization_of
from clp_lightning.steering.mixing import Mixture

Weighting = Mapping[str, float]


class SteerablePolicy(TokenPolicy):
    """Model, tokenizer and experts; without experts it is the reference policy.

    `TokenPolicy` has the arguments, and what happens to tokens; here is what a user calls, with texts and weightings.
    """

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        *,
        dtype: torch.dtype | Literal["auto"] | None = "auto",
        device: str | None = None,
        quantization: Quantization | Literal["as trained"] | None = "as trained",
        mixture: Mixture | None = None,
    ) -> "SteerablePolicy":
        """Load a folder that the pipeline wrote (`models/METHOD`); raises `ClpError` when it or its base is missing.

        The base model is quantized as it was in training, unless `quantization` says otherwise. `dtype` "auto" is
        the commands' precision (`answering_dtype`: float32 on a CPU); None the fastest (`hardware_dtype`).
        """
        dtype = answering_dtype(device=device) if dtype == "auto" else dtype
        parts = policy_files.read(Path(folder), dtype=dtype, device=device, quantization=quantization)
        return cls(**parts, mixture=mixture)

    def save(self, folder: Path | str, *, base_model: str, **extra: Any) -> None:
        """Write experts and card atomically; `base_model` is the base's folder relative to `folder`."""
        assert self.experts is not None
        card = {
            "objectives": list(self.objectives),
            "base_model": base_model,
            "prompted": self.prompted,
            "takes_alpha": self.takes_alpha,
            "listed": None if self.listed is None else self.listed.tolist(),
            "quantization": quantization_of(self.model),
            "generation": self.generation.model_dump(),
        }
        policy_files.write(Path(folder), self.experts, card | extra)

    def coefficients(
        self,
        weightings: Weighting | Sequence[Weighting] | np.ndarray | None,
        rows: int,
        alphas: float | Sequence[float] | np.ndarray | None = None,
    ) -> Tensor | None:
        """Return the experts' coefficients `(1 - alpha) w`, [rows, K]: one weighting (and alpha) for all rows, or one each.

        None is the reference policy, and so is `alpha = 1`. A policy trained at one KL strength takes no alphas. One with an
        expert per listed weighting gives one-hot rows [rows, M].
        """
        if weightings is None or self.experts is None:
            return None
        array = simplex.to_rows(weightings, rows, self.objectives)
        if self.listed is not None:
            array = simplex.which(array, self.listed, self.objectives)
        if alphas is not None:
            if not self.takes_alpha:
                raise UsageError("alpha: this policy was trained at one KL strength and takes none; leave it out")
            array = array * (1 - simplex.alphas(alphas, rows))[:, None]
        return torch.as_tensor(array, dtype=torch.float32, device=self.model.device)

    def materialize(self, weighting: Weighting | np.ndarray, *, alpha: float | None = None) -> "SteerablePolicy":
        """Fold one weighting into the model and return it as a plain policy; this policy's own model is consumed.

        A prompted policy still needs its weighting in the prompt: see `PromptTemplate.written`.
        """
        assert self.experts is not None
        self.experts.merge(self.model, self._one(weighting, alpha))
        return SteerablePolicy(self.model, self.tokenizer, self.generation, objectives=self.objectives)

    def export(
        self, weighting: Weighting | np.ndarray, out_dir: Path | str, format: str = "hf", *, alpha: float | None = None
    ) -> None:
        """Write one weighting as a plain checkpoint ("hf") or an adapter ("peft"); "hf" consumes this policy's model.

        transformers and peft load the folder without this package. `clp_export.json` in it names the weighting, and what
        a prompted policy's prompts must begin with. Raises `UsageError` for bad weightings, formats and policies.
        """
        if self.experts is None:
            raise UsageError("this policy has no experts: it is a plain model folder already")
        coefficients = self._one(weighting, alpha)
        row = coefficients.tolist()
        note = {
            "objectives": list(self.objectives),
            "coefficients": row,
            "template": self.generation.template,
            "chat": self.generation.chat,
            "chat_template_kwargs": self.generation.chat_template_kwargs,
            "prompt_begins_with": self.template.written(row) if self.prompted else "",
            "quantization": quantization_of(self.model),
        }
        export(self.model, self.tokenizer, self.experts, coefficients, out_dir, format=format, note=note)

    def _one(self, weighting: Weighting | np.ndarray, alpha: float | None) -> Tensor:
        """Return one row of coefficients [K]."""
        coefficients = self.coefficients(weighting[None] if isinstance(weighting, np.ndarray) else weighting, 1, alpha)
        assert coefficients is not None
        return coefficients[0]

    def generate(
        self,
        prompts: Sequence[str | Sequence[Message]],
        weightings: Weighting | Sequence[Weighting] | np.ndarray | None,
        *,
        alphas: float | Sequence[float] | np.ndarray | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        stop: str | Sequence[str] = (),
        samples: int = 1,
        seed: int = 0,
        batch_size: int = 32,
        max_new_tokens: int | None = None,
    ) -> list[str]:
        """Generate `samples` responses per prompt, each row with its own weighting, as N * samples texts in the prompts' order.

        `weightings`: one dict for all, one per prompt, float [N, K], or None for the reference policy. `alphas`: KL
        strengths (0..1), for a policy that takes them. Temperature 0 is greedy; `top_p` (0..1) samples from the most probable
        tokens of that probability together, 1 from all. A response ends before the first of the `stop` strings. `batch_size`
        counts responses and changes none. Raises `UsageError` for bad weightings, settings or an empty prompt.
        """
        if not prompts:
            raise UsageError("no prompts; give at least one text")
        if samples < 1:
            raise UsageError(f"samples: expected at least 1, but found {samples}")
        stop = [stop] if isinstance(stop, str) else stop
        check_sampling(top_p, stop)
        if self.generation.long_prompts == "refuse":
            self.template.check(prompts)  # before the first is answered, and with its number among all
        coefficients = self.coefficients(weightings, len(prompts), alphas)
        generator = torch.Generator().manual_seed(seed)
        texts: list[str] = []
        groups = max(1, batch_size // samples)
        for start in range(0, len(prompts), groups):
            rows = slice(start, start + groups)
            part = None if coefficients is None else coefficients[rows]
            responses = self.rollout(
                self.tokenize(prompts[rows], part),
                part,
                samples=samples,
                temperature=temperature,
                top_p=top_p,
                generator=generator,
                max_new_tokens=max_new_tokens,
            )
            ids = responses.ids
            texts += [cut(self.text(row), stop)[0] for row in ids.tolist()] if stop else self.decode(ids)
        return texts

    @torch.no_grad()
    def log_probs(
        self,
        prompts: Sequence[str | Sequence[Message]],
        responses: Sequence[str],
        weightings: Weighting | Sequence[Weighting] | np.ndarray | None,
        *,
        alphas: float | Sequence[float] | np.ndarray | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return token log-probabilities of given responses, float32 [B, T], and `response_mask` [B, T]."""
        ids, mask = self.tokenize_responses(responses)
        coefficients = self.coefficients(weightings, len(prompts), alphas)
        return self.score(self.tokenize(prompts, coefficients), ids, mask, coefficients), mask
