"""The stages `base` and `sft`: the pretrained model, and the reference policy that is finetuned from it."""

import shutil
import sys

from clp_lightning import paths
from clp_lightning.config.needs import check_sft
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import SPLITS, read_split
from clp_lightning.errors import plural
from clp_lightning.files import atomic
from clp_lightning.pipeline import records


def base(config: Config) -> None:
    """Write the base policy as a plain transformers folder."""
    from clp_lightning.policy.base import write_pretrained, write_random

    if config.base.kind == "pretrained":
        write_pretrained(config.base, paths.BASE, config.layers)
    else:
        train = read_split(paths.CORPUS, "train")
        write_random(config.base, [*train["document"], *train["summary"].dropna()], config.seed, paths.BASE)
    records.metrics("base", {"bytes": (paths.BASE / "model.safetensors").stat().st_size})


def sft(config: Config) -> None:
    """Finetune on the reference answers and merge: the reference policy; without `sft` it is the base as it is."""
    from clp_lightning.policy.loading import load_base, load_tokenizer, placement
    from clp_lightning.policy.prompts import PromptTemplate

    splits = {split: read_split(paths.CORPUS, split) for split in SPLITS}
    train = splits["train"].dropna(subset=["summary"])
    check_sft(config, train["summary"])
    template = PromptTemplate(load_tokenizer(paths.BASE), config.generation, ())
    long = template.count_long({split: frame["document"].tolist() for split, frame in splits.items()})
    _warn_of_cut(long, config.generation.max_prompt_tokens)
    if config.sft is None:
        with atomic(paths.REFERENCE) as beside:
            shutil.copytree(paths.BASE, beside)
        records.curve("sft", [])
        records.metrics("sft", {"steps": 0, "long_prompts": long})
        return

    import torch

    from clp_lightning.policy.steerable import SteerablePolicy
    from clp_lightning.steering.experts import Experts
    from clp_lightning.training.sft import SftModule
    from clp_lightning.training.trainer import fit

    model, tokenizer = load_base(paths.BASE, **placement(config.compute))  # never quantized: the result is merged
    experts = Experts(
        model, conditioning="blocks", experts=1, rank=config.sft.rank, layers=config.layers, seed=config.seed
    )
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=("likelihood",), experts=experts)
    module = SftModule(policy, config.sft, train["document"].tolist(), train["summary"].tolist(), config.seed)
    checkpoints = paths.checkpoints(
        "sft", config.sft, config.generation, config.compute.dtype, config.compute.device, config.layers, config.seed,
        paths.CORPUS, paths.BASE,
    )  # fmt: skip
    fit(module, checkpoints=checkpoints, every=max(1, config.sft.steps // 8))
    experts.merge(model, torch.ones(1, device=model.device))
    with atomic(paths.REFERENCE) as beside:
        model.to(dtype=torch.bfloat16).save_pretrained(beside)  # type: ignore[call-arg]
        tokenizer.save_pretrained(beside)
    records.curve("sft", module.curve)
    last = module.curve[-max(1, len(module.curve) // 5) :]
    loss = sum(row["loss"] for row in last) / len(last)
    records.metrics("sft", {"loss_last_fifth_of_steps": loss, "long_prompts": long})
    paths.remove(checkpoints)


def _warn_of_cut(counts: dict[str, dict[str, int]], limit: int) -> None:
    """Say on stderr how many prompts are cut, before anything is trained on what is left of them."""
    total = {name: sum(count[name] for count in counts.values()) for name in ("too_long", "prompts", "tokens_left_out")}
    if total["too_long"]:
        print(
            f"clp: warning: {total['too_long']} of {plural(total['prompts'], 'prompt')} are cut: {total['tokens_left_out']} "
            f"tokens do not fit into generation.max_prompt_tokens ({limit}); the longest prompt has "
            f"{max(count['longest'] for count in counts.values())}",
            file=sys.stderr,
        )
