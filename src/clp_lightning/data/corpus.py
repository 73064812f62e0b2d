"""The corpus: prompts with their reference answers, from a user's own table or, by default, from API descriptions."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_lightning.config.data import Table
from clp_lightning.config.parameters import Config
from clp_lightning.data.api_descriptions import api_parts
from clp_lightning.data.check import check_splits
from clp_lightning.data.own_rows import examples, refuse
from clp_lightning.data.splits import write_split
from clp_lightning.files import atomic, write_json

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = 3  # rows of each split that the card shows


def build_corpus(config: Config, out: Path, *, services: Collection[str] | None = None) -> dict[str, Any]:
    """Write `out`/{train,validation,test}.parquet and card.json from the section `data`; return the card.

    The splits of API descriptions share no service, those of a table no prompt. `services` restricts the former (tests).
    Raises `ClpError` when the source is missing, has a row that cannot be used, or a split would be empty.
    """
    parts, facts = (
        table_parts(config.data, config.seed)
        if config.data.kind == "table"
        else api_parts(config.data, config.seed, services)
    )
    check_splits({split: len(part) for split, part in parts.items()}, "data", config.data.limit)
    card = _card(parts) | facts
    with atomic(out) as folder:
        folder.mkdir()
        for split, part in parts.items():
            write_split(part, folder / f"{split}.parquet")
        write_json(folder / "card.json", card)
    return card


def table_parts(config: Table, seed: int) -> "tuple[dict[str, pd.DataFrame], dict[str, Any]]":
    """Return the splits of a user's own rows (id, group, document, summary) and what the card says of them."""
    import pandas as pd

    read, problems = examples(config, seed)
    skipped = refuse(problems, config.skip_bad_rows, "data")
    columns = ["id", "group", "document", "summary"]
    parts = {  # of objects: pandas would make plain texts of conversations
        split: pd.DataFrame([[getattr(row, name) for name in columns] for row in rows], columns=columns, dtype=object)
        for split, rows in read.items()
    }
    return parts, {"source": config.source, "skipped_rows": skipped}


def _card(parts: "dict[str, pd.DataFrame]") -> dict[str, Any]:
    digest = hashlib.sha256()
    groups, splits = "service" if "service" in next(iter(parts.values())) else "group", {}
    for split, part in parts.items():
        for row in part.itertuples(index=False):
            digest.update(json.dumps([split, *row]).encode())
        splits[split] = {"rows": len(part), f"{groups}s": part[groups].nunique()} | {
            f"{column}_words": {
                f"q{q}": float(part[column].dropna().map(lambda text: len(text.split())).quantile(q / 100))
                for q in (5, 25, 50, 75, 95)
            }
            for column in ("document", "summary")
            if part[column].notna().any()
        }
    return {
        "rows": sum(len(part) for part in parts.values()),
        f"{groups}s": sum(part[groups].nunique() for part in parts.values()),
        "splits": splits,
        "sha256": digest.hexdigest(),
        "samples": {
            split: part[["document", "summary"]].head(SAMPLES).to_dict("records") for split, part in parts.items()
        },
    }
