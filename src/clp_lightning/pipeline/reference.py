"""The stages `base` and `sft`: the pretrained model, and the reference policy that is finetuned from it."""

import shutil

from clp_lightning import paths
from clp_lightning.config.needs import check_sft
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import read_split
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
    if config.sft is None:
        with atomic(paths.REFERENCE) as beside:
            shutil.copytree(paths.BASE, beside)
        records.curve("sft", [])
        records.metrics("sft", {"steps": 0})
        return

    import torch

    from clp_lightning.policy.loading import load_base, placement
    from clp_lightning.policy.steerable import SteerablePolicy
    from clp_lightning.steering.experts import Experts
    from clp_lightning.training.sft import SftModule
    from clp_lightning.training.trainer import fit

    model, tokenizer = load_base(paths.BASE, **placement(config.compute))  # never quantized: the result is merged
    experts = Experts(
        model, conditioning="blocks", experts=1, rank=config.sft.rank, layers=config.layers, seed=config.seed
    )
    policy = SteerablePolicy(model, tokenizer, config.generation, objectives=("likelihood",), experts=experts)
    train = read_split(paths.CORPUS, "train").dropna(subset=["summary"])
    check_sft(config, train["summary"])
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
    records.metrics("sft", {"loss_last_fifth_of_steps": sum(row["loss"] for row in last) / len(last)})
    paths.remove(checkpoints)
