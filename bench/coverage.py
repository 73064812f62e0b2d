"""Do intervals over training seeds hold the truth as often as they say? `python -m bench.coverage [--trials N]`.

Studies are simulated whose truth is 0: S training seeds answer the same 64 prompts of some services. A value is the sum of an
effect of the training seed, of the service, of the service for this seed, of the prompt, and noise. The intervals are those of
`clp_lightning.frontier`: `cluster_bootstrap` and `hierarchical`. A share of hits has a standard error of sqrt(0.05 * 0.95 / N).
"""

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from clp_lightning.frontier import cluster_bootstrap, hierarchical

GROUPS = {
    "8 of 8": (8,) * 8,
    "23, three hold 35 of 64": (12, 12, 11, *(2,) * 9, *(1,) * 11),
}
SEEDS = (3, 5, 8)


class Spread(NamedTuple):
    """Standard deviations of the parts of a value."""

    seed: float
    service: float
    service_and_seed: float
    prompt: float
    noise: float


SPREADS = {
    "seeds vary most": Spread(0.8, 0.3, 0.1, 0.5, 1.0),
    "seeds and prompts alike": Spread(0.2, 0.3, 0.1, 0.5, 1.0),
    "services vary most": Spread(0.0, 0.3, 0.1, 0.5, 0.3),
    "noise alone": Spread(0.0, 0.0, 0.0, 0.0, 1.0),
}


def share_of_hits(spread: Spread, sizes: Sequence[int], seeds: int, trials: int, draws: int, start: int = 0) -> float:
    """Return the share of simulated studies whose 95 % interval holds the truth."""
    random, services = np.random.default_rng([seeds, len(sizes), start]), np.repeat(np.arange(len(sizes)), sizes)
    prompts, hits = len(services), 0
    for trial in range(trials):
        by_service = spread.service * random.normal(size=(1, len(sizes)))
        by_service = by_service + spread.service_and_seed * random.normal(size=(seeds, len(sizes)))
        values = spread.seed * random.normal(size=(seeds, 1)) + by_service[:, services]
        values += spread.prompt * random.normal(size=(1, prompts)) + spread.noise * random.normal(size=(seeds, prompts))
        bootstrap = cluster_bootstrap(values.mean(0), services, draws, trial)
        estimate = hierarchical(bootstrap.averages(values), bootstrap)
        hits += estimate.low <= 0 <= estimate.high
    return hits / trials


def main() -> None:
    """Simulate every combination and print a row for each."""
    parser = argparse.ArgumentParser(prog="python -m bench.coverage", description=__doc__)
    parser.add_argument("--trials", type=int, default=4000, help="simulated studies for each figure")
    parser.add_argument("--draws", type=int, default=300, help="resamples of a bootstrap")
    options = parser.parse_args()
    table = Table("services of 64 prompts", "what varies", *(f"{count} seeds" for count in SEEDS), box=None)
    for groups, sizes in GROUPS.items():
        for name, spread in SPREADS.items():
            shares = [share_of_hits(spread, sizes, count, options.trials, options.draws) for count in SEEDS]
            table.add_row(groups, name, *(f"{share:.1%}" for share in shares))
    error = (0.05 * 0.95 / options.trials) ** 0.5
    Console().print(table)
    print(f"Share of 95 % intervals that hold the truth, {options.trials} studies each; standard error {error:.1%}.")


if __name__ == "__main__":
    main()
