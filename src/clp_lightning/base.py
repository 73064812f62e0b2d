"""The base policy as a plain transformers folder: converted from a packaged GGUF, or a tiny random model for tests."""

import contextlib
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from clp_lightning.config import PackagedGguf, RandomModel
from clp_lightning.errors import ClpError
from clp_lightning.files import atomic

END_OF_TEXT = "<|im_end|>"


def package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it (asset packages import what is not installed)."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ClpError(f"the asset package {package} is not installed; run `make setup`")
    return Path(spec.submodule_search_locations[0])


def write_packaged(config: PackagedGguf, out: Path) -> None:
    """Convert a packaged GGUF to a bfloat16 transformers folder; every weight is dequantized once, here."""
    folder = package_folder(config.package)
    if not (folder / config.file).is_file():
        raise ClpError(f"base.file: {config.package} holds no {config.file}; run `make setup`, or correct params.yaml")
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(folder), gguf_file=config.file, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model.is_quantized, model.hf_quantizer = False, None  # otherwise save_pretrained refuses
    with contextlib.suppress(AttributeError):
        del model.config.quantization_config
    tokenizer = AutoTokenizer.from_pretrained(str(folder), gguf_file=config.file)
    with atomic(out) as beside:
        model.to(torch.bfloat16).save_pretrained(beside)
        tokenizer.save_pretrained(beside)


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
