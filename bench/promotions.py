"""How often a year of nightly decisions promotes policies that are all equally good: `python -m bench.promotions`.

Every night a policy is trained that is as good as every other: its J differs from theirs on single services and prompts, not on
average. The decision is `clp_lightning.promotion`'s, on 64 of 1,200 test prompts of 60 services. Printed are promotions a year
and the champion's luck: what its J seems to be on the prompts of the last decision, above what it is.
"""

import argparse

import numpy as np
from rich.console import Console
from rich.table import Table

from clp_lightning.config.parameters import Config, load_config
from clp_lightning.promotion.decision import Candidate, decide
from clp_lightning.store.results import Sampled

SERVICES, EACH, DRAWN = 60, 20, 64
GRID = np.array([[i / 4, 1 - i / 4] for i in range(5)])
BY_SERVICE, BY_PROMPT, NOISE = 0.15, 0.3, 0.6  # standard deviations of a policy's own part of a standardized reward


class Nightly:
    """Equal policies: reward 1 for the weighted objective, and a part of each one's own by service and prompt, 0 on average."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.shared = self.random.normal(size=(SERVICES * EACH, 2)) * 0.5

    def train(self) -> np.ndarray:
        """Return a policy's own part of its rewards [prompts, 2], 0 on average over all test prompts."""
        own = np.repeat(self.random.normal(size=(SERVICES, 2)) * BY_SERVICE, EACH, axis=0)
        own += self.random.normal(size=own.shape) * BY_PROMPT
        return own - own.mean(0)

    def draw(self) -> np.ndarray:
        """Draw 64 prompts evenly over the services."""
        order = self.random.permutation(SERVICES * EACH)
        turn = np.argsort(np.argsort(order // EACH, kind="stable") % EACH, kind="stable")
        return order[turn[:DRAWN]]

    def answer(self, policy: np.ndarray, prompts: np.ndarray) -> Candidate:
        """Sample a policy's answers to prompts: rewards, KL of 2 nats."""
        rewards = np.sqrt(GRID)[:, None] + (self.shared + policy)[prompts]
        rewards = rewards + self.random.normal(size=rewards.shape) * NOISE
        return Candidate(Sampled("policy", GRID, rewards, np.full(rewards.shape[:2], 2.0)), np.full(len(GRID), 8.0))

    def reference(self, prompts: np.ndarray) -> Candidate:
        """Sample the reference policy's answers."""
        rewards = self.shared[prompts] + self.random.normal(size=(1, len(prompts), 2)) * NOISE
        return Candidate(Sampled("reference", None, rewards, np.zeros(rewards.shape[:2])), np.array([8.0]))


def year(config: Config, seed: int, nights: int, *, anew: bool) -> tuple[int, float]:
    """Return the promotions of a year, and the last champion's luck."""
    world = Nightly(seed)
    champion, prompts = world.train(), world.draw()
    kept, promotions = world.answer(champion, prompts), 0
    for _ in range(nights):
        challenger = world.train()
        if anew:
            prompts = world.draw()
            kept = world.answer(champion, prompts)
        own = world.answer(challenger, prompts)
        groups = [str(service) for service in prompts // EACH]
        if decide(own, kept, world.reference(prompts), groups, config).promoted:
            champion, kept, promotions = challenger, own, promotions + 1
    alpha = config.training.alpha
    truth = (1 - alpha) * (GRID * (np.sqrt(GRID) + world.shared.mean(0))).sum(-1).mean() - alpha * 2
    seen = (1 - alpha) * (GRID * kept.sampled.rewards.mean(1)).sum(-1).mean() - alpha * 2
    shared = (1 - alpha) * (GRID * (world.shared[prompts].mean(0) - world.shared.mean(0))).sum(-1).mean()
    return promotions, float(seen - shared - truth)


def main() -> None:
    """Simulate years with the same prompts every night and with prompts drawn anew, and print a row for each."""
    parser = argparse.ArgumentParser(prog="python -m bench.promotions", description=__doc__)
    parser.add_argument("--years", type=int, default=10)
    parser.add_argument("--nights", type=int, default=365)
    options = parser.parse_args()
    config = load_config("params.yaml")
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"bootstrap_draws": 300})})
    table = Table("prompts", "probability", "promotions", "luck in J", box=None)
    for probability in (0.975, 0.995):
        rule = config.promotion.model_copy(update={"probability": probability})
        for anew, name in ((False, "the same every night"), (True, "drawn for each decision")):
            years = [
                year(config.model_copy(update={"promotion": rule}), seed, options.nights, anew=anew)
                for seed in range(options.years)
            ]
            promotions, luck = np.mean(years, axis=0)
            table.add_row(name, f"{probability:g}", f"{promotions * 365 / options.nights:.1f}", f"{luck:+.3f}")
    Console().print(table)
    print(f"Promotions a year of policies that are all equally good: means of {options.years} simulated years.")


if __name__ == "__main__":
    main()
