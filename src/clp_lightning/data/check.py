"""What `clp data` shows: every problem of the data and preference pairs that params.yaml names, and some rows."""

from typing import Any

from clp_lightning.config.data import Corruptions, Preferences, Scores, Table
from clp_lightning.config.parameters import Config
from clp_lightning.data import own_rows

SAMPLES = 2


def check(config: Config) -> dict[str, dict[str, Any]]:
    """Return `source`, `rows` per split, `samples`, `problems` (place, reason) and `skip_bad_rows` of every own source.

    Raises `UsageError` when a source cannot be read at all.
    """
    found: dict[str, dict[str, Any]] = {}
    if isinstance(config.data, Table):
        parts, problems = own_rows.examples(config.data, config.seed)
        shown = [{"prompt": row.document, "reference": row.summary} for row in parts["train"][:SAMPLES]]
        found["data"] = _section(config.data, parts, problems, shown)
    else:
        found["data"] = {
            "source": "API descriptions of the botocore package", "rows": {}, "samples": [], "problems": [],
            "skip_bad_rows": False,
        }  # fmt: skip
    for name, model in config.reward_models.items():
        if not isinstance(model.pairs, Corruptions):
            pairs, problems = own_rows.pairs(model.pairs, config.seed)
            shown = [
                {"prompt": pair.document, "chosen": pair.chosen, "rejected": pair.rejected}
                for pair in pairs["train"][:SAMPLES]
            ]
            found[f"reward_models.{name}.pairs"] = _section(model.pairs, pairs, problems, shown)
    return found


def _section(
    config: Table | Preferences | Scores, parts: Any, problems: list[Any], samples: list[Any]
) -> dict[str, Any]:
    return {
        "source": config.source,
        "rows": {split: len(rows) for split, rows in parts.items()},
        "samples": samples,
        "problems": [[problem.place, problem.text] for problem in problems],
        "skip_bad_rows": config.skip_bad_rows,
    }
