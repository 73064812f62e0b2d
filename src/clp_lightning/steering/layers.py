"""Which linear layers of a model are steered, found by their place in it, and whether they are quantized."""

import re
from typing import Any

from torch import nn

from clp_lightning.config.data import Layers, Quantization
from clp_lightning.errors import UsageError

# Linear layers by role, as patterns on module names. A layer of a numbered block is attention where its parent's name says
# so (self_attn, attention, SelfAttention, EncDecAttention), MLP otherwise.
DISCOVERED = Layers(
    attention=r".*\.\d+\.(?:\w+\.)*\w*(?i:attn|attention)\w*(?:\.\w+)*",
    mlp=r".*\.\d+\.(?!(?:\w+\.)*\w*(?i:attn|attention)).*",
    logits=r"(?:.*\.)?(?:lm_head|embed_out|output)",
)


def conditioned_set(conditioning: str, layers: Layers | None) -> re.Pattern[str]:
    """Return the pattern of the conditioned set S: the paper's full-, attn- and logit-CLP, none for prompt-CLP.

    `blocks` is full without the output layer. Raises `UsageError` for a pattern that is none.
    """
    found = layers or DISCOVERED
    blocks = f"{found.attention}|{found.mlp}"
    sets = {"full": f"{blocks}|{found.logits}", "attention": found.attention, "logits": found.logits, "none": r"(?!)"}
    try:
        return re.compile(blocks if conditioning == "blocks" else sets[conditioning])
    except re.error as error:
        raise UsageError(f"layers: not a regular expression ({error}); correct the pattern") from error


def some_linear(model: nn.Module) -> str:
    """Return the names of some linear layers, a number once instead of once per block."""
    names = [re.sub(r"\.\d+\.", ".N.", name) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return ", ".join(list(dict.fromkeys(names))[:12]) or "none at all (GPT-2's Conv1D is not supported)"


def quantization_of(model: Any) -> Quantization | None:
    """Return how `load_base` quantized a model."""
    if getattr(model, "is_loaded_in_8bit", False):
        return "int8"
    return "nf4" if getattr(model, "is_loaded_in_4bit", False) else None
