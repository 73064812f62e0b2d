"""The base policy as a plain transformers folder: written from whatever transformers loads, or a tiny random model for tests."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from clp_lightning.config.data import Layers, Pretrained, RandomModel
from clp_lightning.errors import ClpError, one_line
from clp_lightning.files import atomic
from clp_lightning.paths import resolve
from clp_lightning.policy.probe import probe

HUB = ", or set HF_HUB_OFFLINE=0 to fetch one from the hub"
END_OF_TEXT = "<|im_end|>"


def write_pretrained(config: Pretrained, out: Path, layers: Layers | None = None) -> None:
    """Write a pretrained model as a bfloat16 transformers folder of safetensors; a GGUF's weights are dequantized here.

    Raises `ClpError` for what transformers cannot load, a missing tokenizer, and weights that are only there as pickles.
    """
    source = resolve(config.model)
    try:
        if source.endswith(".gguf"):
            model, tokenizer = _gguf(Path(source))
        else:
            model, tokenizer = _folder_or_hub(source, config)
    except ClpError:
        raise
    except Exception as error:  # transformers, the hub's client and the network each raise their own
        raise ClpError(
            f"base.model {config.model}: {one_line(error)}; name a model that transformers loads{HUB}"
        ) from error
    probe(model, f"base.model {config.model}", layers)
    with atomic(out) as beside:
        model.to(torch.bfloat16).save_pretrained(beside)
        tokenizer.save_pretrained(beside)


def _gguf(file: Path) -> tuple[Any, Any]:
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(file.parent), gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.is_quantized, model.hf_quantizer = False, None  # otherwise save_pretrained refuses
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    return model, AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def _folder_or_hub(source: str, config: Pretrained) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=config.revision)
    except (OSError, ValueError) as error:
        raise ClpError(
            f"base.model {config.model}: no tokenizer there ({one_line(error)}); save it beside the model{HUB}"
        ) from error
    settings = AutoConfig.from_pretrained(source, revision=config.revision)
    auto: Any = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    folder = Path(source)
    if not config.allow_pickle and folder.is_dir() and not any(folder.glob("*.safetensors")):
        raise ClpError(
            f"base.model {config.model}: no safetensors there, and pickled weights can run code; convert them, or trust "
            "them with base.allow_pickle: true"
        )
    safe = None if config.allow_pickle else True
    model = auto.from_pretrained(source, revision=config.revision, dtype=torch.bfloat16, use_safetensors=safe)
    return model, tokenizer


def write_random(config: RandomModel, texts: Iterable[str], seed: int, out: Path) -> None:
    """Write a tiny Llama with random parameters and a byte-level BPE tokenizer trained on `texts`."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden,
            intermediate_size=2 * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=512,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            tie_word_embeddings=True,
        )
    )
    with atomic(out) as beside:
        model.save_pretrained(beside)
        tokenizer.save_pretrained(beside)
