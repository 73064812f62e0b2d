"""From hidden states to logits as a model's own `forward` has it: the output layer, and what families do behind it."""

from typing import Any

import torch
from torch import Tensor

CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma, RecurrentGemma, xLSTM
DIVIDED = ("granite", "minicpm3")  # families whose `logits_scaling` divides; HyperCLOVA X multiplies with it


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """Return next-token logits, float32 (or wider) [..., V], of hidden states [..., H].

    The output layer alone is not all: T5 1.0 scales its input; Granite, Cohere and others scale what comes out, BART's
    kin add a bias to it, Gemma caps it. `probe` compares with `forward`, so that what is not known here is refused.
    """
    config = model.config
    if getattr(config, "scale_decoder_outputs", False):  # T5 v1.0 ties its output layer to the embedding
        hidden = hidden * config.d_model**-0.5
    logits = model.get_output_embeddings()(hidden)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if (scale := _scale(config)) != 1.0:
        logits = logits * scale
    bias = getattr(model, "final_logits_bias", None)
    if bias is not None:
        logits = logits + bias[0]
    cap = next((value for name in CAPS if (value := getattr(config, name, None)) is not None), None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _scale(config: Any) -> float:
    scaling = getattr(config, "logits_scaling", None)
    if scaling is not None:
        return 1.0 / scaling if config.model_type.startswith(DIVIDED) else float(scaling)
    if config.model_type.startswith("cohere"):
        return float(config.logit_scale)
    return float(getattr(config, "lm_head_multiplier", 1.0))  # Falcon H1
