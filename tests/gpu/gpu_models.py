"""What the GPU tests share. Without a GPU they run on the CPU: a dry run, so that none is stale when there is one."""

import copy
from pathlib import Path

import torch
from tiny_models import DOCUMENTS
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from clp_lightning.policy.loading import chosen_device
from clp_lightning.policy.steerable import SteerablePolicy

DEVICE = chosen_device().type
MIXED = [{"a": 1.0}, {"a": 0.3, "b": 0.7}, {"b": 1.0}]


def on(policy: SteerablePolicy, device: str) -> SteerablePolicy:
    """The same policy on another device."""
    moved = copied(policy)
    moved.model.to(device)
    moved.experts.to(device)
    return moved


def copied(policy: SteerablePolicy) -> SteerablePolicy:
    """A policy of its own, with the same tokenizer."""
    return copy.deepcopy(policy, {id(policy.tokenizer): policy.tokenizer})


def write_classifier(folder: Path) -> Path:
    """Write a tiny BERT with one logit that reads pairs of whole words, as a reward model or an encoder."""
    words = sorted({word for text in (*DOCUMENTS, "good bad .") for word in text.split()})
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32,
        max_position_embeddings=64, num_labels=1, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder
