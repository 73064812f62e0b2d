"""Which prompts methods are evaluated on, and the groups (services, say) that the intervals are over."""

import pandas as pd

from clp_lightning import paths
from clp_lightning.config.parameters import Config
from clp_lightning.data.splits import read_split
from clp_lightning.errors import ClpError

USUAL = ("service", "group")  # columns of the corpus: of API descriptions, of a user's own rows


def draw_prompts(
    config: Config, split: str = "test", *, count: int | None = None, seed: int | None = None
) -> pd.DataFrame:
    """Return rows of a split with their `group`, as `evaluation` in params.yaml draws them: the same ones for every method.

    `count` and `seed` stand in for `evaluation.prompts` and `seed`. Raises `ClpError` when there is no column
    `evaluation.group`, or all prompts are of one group.
    """
    rows = read_split(paths.CORPUS, split)
    column = config.evaluation.group or next((name for name in USUAL if name in rows), "id")
    if column not in rows:
        known = ", ".join(map(str, rows))
        raise ClpError(
            f"evaluation.group: {paths.CORPUS}/{split}.parquet has no column {column!r}; name one of {known}, or null"
        )
    count, seed = count or config.evaluation.prompts, config.seed if seed is None else seed
    size = min(count, len(rows))
    if config.evaluation.draw == "random":
        drawn = rows.sample(size, random_state=seed)
    else:  # the first of every group in random order, then the second of each, ...
        shuffled = rows.sample(frac=1, random_state=seed)
        turn = shuffled.groupby(column, dropna=False).cumcount()
        drawn = shuffled.loc[turn.sort_values(kind="stable").index[:size]]
    drawn = drawn.assign(group=drawn[column].astype(str)).reset_index(drop=True)
    if drawn["group"].nunique() < 2:
        raise ClpError(
            f"evaluation.group: all {len(drawn)} prompts have the {column} {drawn['group'][0]!r}, so intervals over groups "
            "cannot be had; name another column, or id, which takes every prompt by itself"
        )
    return drawn
