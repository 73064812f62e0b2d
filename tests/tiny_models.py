"""Tiny random models of each family that is supported, with one tokenizer."""

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    T5Config,
    T5ForConditionalGeneration,
)

from clp_lightning.config.parameters import Generation, RandomModel
from clp_lightning.policy.base import write_random
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.steering.experts import Experts

DOCUMENTS = ["create bucket: makes a bucket", "delete it: removes the whole thing for good and for ever", "list: all"]
GENERATION = Generation(
    max_prompt_tokens=40, max_new_tokens=6, template="{document}\nSummary:", chat=False, end_token=None
)
OBJECTIVES = ("a", "b")
FAMILIES = ("llama", "gemma", "t5", "t5_tied")


def write_model(family: str, folder: Path, texts: Sequence[str] = DOCUMENTS * 5, vocabulary: int = 300) -> Path:
    """Write a random model of a family into `folder`, its tokenizer trained on `texts`."""
    write_random(RandomModel(kind="random", vocabulary=vocabulary, hidden=32, layers=2, heads=2), texts, 0, folder)
    if family == "llama":
        return folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    size, end = len(tokenizer), tokenizer.eos_token_id
    torch.manual_seed(0)
    if family == "gemma":
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(
                vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, head_dim=16, max_position_embeddings=512, sliding_window=8, eos_token_id=end,
                pad_token_id=end, bos_token_id=None, layer_types=["sliding_attention", "full_attention"],
            )
        )  # fmt: skip
    else:  # T5 1.1 has gated layers and an output layer of its own, T5 1.0 neither
        tied = family == "t5_tied"
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, eos_token_id=end,
                pad_token_id=end, decoder_start_token_id=end, feed_forward_proj="relu" if tied else "gated-gelu",
                tie_word_embeddings=tied, scale_decoder_outputs=tied,
                initializer_factor=0.3,  # T5's own start gives log-probabilities of -20, where float32 rounds at 2e-6
            )
        )  # fmt: skip
    model.save_pretrained(folder)
    return folder


def make_policy(
    folder: Path,
    conditioning: str = "full",
    *,
    rank=3,
    shared=False,
    objectives=OBJECTIVES,
    parameterization="experts",
    **options,
):
    """A float32 policy with experts that matter: fresh ones add nothing."""
    model, tokenizer = load_base(folder, dtype=torch.float32)
    experts = Experts(
        model, conditioning=conditioning, experts=len(objectives), rank=rank, shared=shared,
        parameterization=parameterization, seed=1,
    )  # fmt: skip
    randomize(experts)
    return SteerablePolicy(model, tokenizer, GENERATION, objectives=objectives, experts=experts, **options)


def randomize(experts: Experts) -> None:
    """Give experts values that are not those at the start of training."""
    torch.manual_seed(5)
    for layer in experts.layers.values():
        first, *others = layer.own()[1:] or layer.own()  # B and what is learned beside it, or D at full rank
        first.data.normal_(std=0.2 if experts.rank != "full" else 0.05)
        for parameter in others:
            parameter.data.uniform_(0.5, 1.5)


def all_log_probs(policy, weightings, **options):
    """Log-probabilities of three fixed responses."""
    with torch.no_grad():
        return policy.log_probs(DOCUMENTS, ["makes one", "is gone", "a b c d"], weightings, **options)[0]


def strengthen(folder: Path) -> None:
    """Give a policy experts that change the text: two steps of training change none."""
    path, generator = folder / "experts.safetensors", torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * 0.2 if name.endswith(".b") else tensor
        for name, tensor in safetensors.torch.load_file(path).items()
    }
    safetensors.torch.save_file(tensors, path)
