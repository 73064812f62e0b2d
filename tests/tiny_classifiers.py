"""Tiny random classifiers of many families, all with one byte-level vocabulary."""

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, processors
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from clp_lightning.config.parameters import RandomModel
from clp_lightning.policy.base import write_random

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512, "initializer_range": 0.2}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 512, "init_std": 0.2,
}  # fmt: skip
ENCODERS = {
    "bert": SIZES,
    "roberta": SIZES | {"max_position_embeddings": 800},  # its first position is behind the number of the padding token
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "initializer_range": 0.2},
    "deberta-v2": SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "modernbert": SIZES | {"classifier_pooling": "mean", "local_attention": 8},
    "electra": SIZES | {"embedding_size": 16},
    "mpnet": SIZES | {"max_position_embeddings": 800},
    "fnet": SIZES,
    "convbert": SIZES | {"embedding_size": 16},
    "bart": BART,
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32, "initializer_range": 0.2},
}
DECODERS = {
    "gpt2": GPT2,
    "llama": SIZES | {"num_key_value_heads": 1},
    "qwen2": SIZES | {"num_key_value_heads": 1},
    "opt": SIZES | {"word_embed_proj_dim": 16, "ffn_dim": 32, "init_std": 0.2},
    "gemma": SIZES | {"num_key_value_heads": 1, "head_dim": 8},
    "gemma3_text": SIZES | {"num_key_value_heads": 1, "head_dim": 8, "sliding_window": 8},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.2},
    "falcon": SIZES | {"alibi": True, "new_decoder_architecture": False},
    "openai-gpt": GPT2,
}
PADDING = ("none", "end", "own")  # what a decoder's configuration has for padding


def write_classifier(family: str, folder: Path, padding: str = "own", side: str = "right") -> Path:
    """Write a classifier with three logits; encoders get a tokenizer that puts <s> before a text and </s> behind it."""
    tokenizer = _tokenizer(folder, special=family in ENCODERS)
    ids = {"pad_token_id": tokenizer.pad_token_id}
    if padding != "own":
        tokenizer.pad_token = None if padding == "none" else tokenizer.eos_token
        ids = {"pad_token_id": None if padding == "none" else tokenizer.eos_token_id}
    options = (ENCODERS | DECODERS)[family]
    ends = {
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        "decoder_start_token_id": tokenizer.eos_token_id,
    }
    if family == "modernbert":
        ends |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer) + 8, num_labels=3, **options, **ids, **ends)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "norm" not in name.lower():
            parameter.data.normal_(std=0.2)  # some families' own start is too small for texts to differ
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    written = folder / "tokenizer_config.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"padding_side": side}))
    return folder


def _tokenizer(folder: Path, *, special: bool) -> PreTrainedTokenizerFast:
    write_random(RandomModel(kind="random", vocabulary=300, hidden=16, layers=1, heads=1), ["a b c d"], 0, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": AddedToken("<pad>", special=True)})
    if special:
        tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>", "eos_token": "</s>"})
        ends = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=ends
        )
    return tokenizer
