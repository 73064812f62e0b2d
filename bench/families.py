"""Every family that transformers can build tiny, through the probe: `python -m bench.families` prints docs/models.md's table."""

import re
import signal
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import transformers
import typer
from transformers.models.auto import modeling_auto

from clp_lightning.errors import ClpError
from clp_lightning.policy.probe import probe

SECONDS, MOST = 20, 3_000_000  # of one family, and its parameters
SMALL = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 48),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_size", "state_size", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "sliding_window"), 8),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    "decoder_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "vocab_size": 120, "max_position_embeddings": 128, "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "decoder_start_token_id": 2,
    # what families do behind the output layer, with values at which it shows
    "logits_scaling": 2.0, "logit_scale": 0.5, "lm_head_multiplier": 2.0, "final_logit_softcapping": 5.0, "full_attn_idxs": [1],
}  # fmt: skip
CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
SEQ2SEQ = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES


def families() -> list[str]:
    """Return the names of all families of causal and encoder-decoder language models, sorted."""
    return sorted({*CAUSAL, *SEQ2SEQ})


def build(family: str) -> Any | None:
    """Return a tiny random model of a family; None where its size does not follow the usual names of settings."""
    kind: Any = transformers.CONFIG_MAPPING[family]
    known = set(kind().to_dict())
    config: Any = kind(**{key: value for key, value in SMALL.items() if key in known})
    if getattr(config, "is_encoder_decoder", False):
        auto: Any = transformers.AutoModelForSeq2SeqLM
        config.decoder_start_token_id = 2
    else:
        auto = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        if sum(parameter.numel() for parameter in auto.from_config(config).parameters()) > MOST:
            return None
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.1)
    if getattr(model, "final_logits_bias", None) is not None:
        model.final_logits_bias.normal_()
    return model


def outcome(family: str) -> tuple[str, str]:
    """Return "equal", "refused" or "not built", and why."""

    def late(*_: Any) -> None:
        raise TimeoutError("too slow")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        try:
            model = build(family)
        except Exception as error:
            return "not built", type(error).__name__
        if model is None:
            return "not built", "its size has names of its own"
        probe(model, family)
    except ClpError as error:
        text = str(error).removeprefix(f"{family}: ").rpartition("; ")[0]
        return "refused", re.sub(r"of the family \S+ ", "", text).replace("|", "/")
    finally:
        signal.alarm(0)
    return "equal", ""


def table() -> Iterator[str]:
    """Yield the lines of the table in docs/models.md."""
    yield "| family | | why |"
    yield "|---|---|---|"
    for family in families():
        found, why = outcome(family)
        yield f"| `{family}` | {found} | {why[:110]} |"


def main() -> None:
    """Print docs/models.md's table: every family that transformers can build tiny, through the probe (minutes)."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    for line in table():
        print(line)
        sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)
