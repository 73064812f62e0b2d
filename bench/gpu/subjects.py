"""Random models of well-known shapes on a device, steerable or plain, and prompts of one length for them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from clp_lightning.config.parameters import Generation
from clp_lightning.policy.rollout import Prompts
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.experts import Experts

OBJECTIVES, RANK = ("long", "short"), 16
WORDS = [f"w{number}" for number in range(200)]


class Shape(NamedTuple):
    """A model's size, the rows of a rollout and of a training step, and the tokens of a prompt and of an answer."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    rollout: tuple[int, ...]
    rows: int
    tokens: int


class Size(NamedTuple):
    """What a forward reads and multiplies: weights of the layers and of the output layer, bytes of both, and of the cache."""

    body: int
    head: int
    weights: int
    cache: int  # bytes per token of a row

    def products(self, read: float, answered: float) -> float:
        """Return the multiplications of `read` positions in the layers and `answered` ones in the output layer."""
        return self.body * read + self.head * answered


SHAPES = {  # of SmolLM2-135M, Llama 3.2 1B and Llama 2 7B
    "135M": Shape(576, 1536, 30, 9, 3, 49152, (64, 256), 256, 64),
    "1.2B": Shape(2048, 8192, 16, 32, 8, 128256, (64, 256), 64, 64),
    "7B": Shape(4096, 11008, 32, 32, 32, 32000, (64, 256), 16, 64),
}
TINY = {"tiny": Shape(32, 64, 2, 2, 1, 300, (4, 8), 4, 4)}


def random_model(shape: Shape, device: str, dtype: torch.dtype) -> Any:
    """Return a random Llama of this shape on the device, in evaluation mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        max_position_embeddings=2048, tie_word_embeddings=shape.hidden < 4096, eos_token_id=0,
    )  # fmt: skip
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of 200 words; no random model writes its end token often."""
    vocabulary = {word: number for number, word in enumerate(["<end>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", padding_side="left"
    )


def size_of(model: Any) -> Size:
    """Return the size of a plain model; attention's own products and the embedding, which is looked up, are left out."""
    head, config = model.lm_head.weight.numel(), model.config
    linear = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, torch.nn.Linear))
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return Size(linear - head, head, linear * model.dtype.itemsize, cache * model.dtype.itemsize)


def plain(model: Any, tokens: int) -> SteerablePolicy:
    """Return the policy of a model without experts."""
    return SteerablePolicy(model, word_tokenizer(), generation(tokens), objectives=OBJECTIVES)


def steerable(model: Any, tokens: int) -> SteerablePolicy:
    """Put experts that matter on a model, in place, and return its policy: prompts and answers of `tokens` tokens."""
    experts = Experts(model, conditioning="full", experts=len(OBJECTIVES), rank=RANK)
    generator = torch.Generator(device=model.device).manual_seed(0)
    for layer in experts.layers.values():
        layer.own()[-1].data.normal_(std=0.002, generator=generator)
    return SteerablePolicy(model, word_tokenizer(), generation(tokens), objectives=OBJECTIVES, experts=experts)


def generation(tokens: int) -> Generation:
    """Return the settings of prompts and answers of so many tokens."""
    return Generation(
        max_prompt_tokens=tokens, max_new_tokens=tokens, template="{document}", chat=False, end_token=None
    )


def prompts_of(policy: SteerablePolicy, rows: int) -> Prompts:
    """Return prompts that are all as long as the policy reads."""
    return policy.tokenize(documents(rows, policy.generation.max_prompt_tokens))


def documents(rows: int, words: int) -> list[str]:
    """Return texts of so many words."""
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(WORDS, words)) for _ in range(rows)]


def word_count(documents: Sequence[str], responses: Sequence[str]) -> np.ndarray:
    """Two rewards that pull apart: many words, few words; [B, 2]."""
    words = np.array([len(response.split()) for response in responses], dtype=np.float64)
    return np.stack([words, -words], axis=1) / 10
