"""A project small enough for a study in a test: own rows in groups, a random model, two rewards that are rules."""

import csv
from pathlib import Path
from typing import Any

from locations import recipe_values
from ruamel.yaml import YAML
from tiny_data import PLACES, TASKS, THINGS, answer, write_encoder

ROW = {"conditioning": "full", "shared": False, "prompted": False}
STUDY: dict[str, Any] = {
    "question": "does it work", "split": "validation", "seeds": [5, 6], "budgets": [1, 2],
    "panels": {"own": {"recipe": "default"}},
    "arms": {
        "clp-full": {"method": "clp-full"},
        "soups": {"method": "rewarded-soups", "rollouts": "per_expert", "budgets": [1]},
    },
}  # fmt: skip


def write_project(folder: Path, *, study: dict[str, Any] = STUDY, **settings: Any) -> Path:
    """Write params.yaml, rows.csv with a column `thing` and the study `tiny` into a folder."""
    values = recipe_values("smoke")
    values |= {"reward_models": {}, "derived": {}, "encoder": str(write_encoder(folder / "encoder").resolve())}
    values["rewards"] = {"brevity": {"kind": "brevity", "min_words": 1}, "readability": {"kind": "readability"}}
    values["data"] = {
        "kind": "table", "source": "rows.csv", "subset": None, "prompt": "question", "messages": None, "transcript": None,
        "reference": "answer", "splits": {"kind": "hash", "validation": 0.3, "test": 0.3, "group": "thing"}, "limit": None,
        "skip_bad_rows": False,
    }  # fmt: skip
    values["base"] |= {"hidden": 32, "vocabulary": 300}
    values["normalization"] = {"prompts": 16}
    values["training"] |= {"steps": 2, "prompts_per_step": 1, "samples_per_prompt": 4, "checkpoint_every": 1}
    values["evaluation"] |= {"prompts": 8, "bootstrap_draws": 100}
    for path, value in settings.items():
        section, key = path.split("__")
        values[section][key] = value
    with (folder / "rows.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["question", "answer", "thing"])
        rows = [(thing, task, place) for thing in THINGS for task in TASKS for place in PLACES]
        writer.writerows([f"How do I {b} the {a} in the {c} {n}?", answer(a, b), a] for n, (a, b, c) in enumerate(rows))
    _dump(values, folder / "params.yaml")
    (folder / "conf" / "studies").mkdir(parents=True)
    _dump(study, folder / "conf" / "studies" / "tiny.yaml")
    return folder


def _dump(values: Any, path: Path) -> None:
    with path.open("w") as stream:
        YAML(typ="safe", pure=True).dump(values, stream)
