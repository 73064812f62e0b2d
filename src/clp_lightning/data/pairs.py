"""Preference pairs for the learned reward: the reference summary against answers that say less, or something else.

Negatives that are too easy teach style only, so most are hard: the summary of another API of the *same* service, a
summary that breaks off, one that lost words. Half of the shortened ones keep a full stop, so that ending well is no proof.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from clp_lightning.config.data import Corruptions, Preferences, Scores
from clp_lightning.config.parameters import Config
from clp_lightning.data.api_descriptions import content_words
from clp_lightning.data.check import check_splits
from clp_lightning.data.own_rows import Pair, refuse
from clp_lightning.data.own_rows import pairs as read_pairs
from clp_lightning.data.splits import read_split, write_split
from clp_lightning.errors import ClpError
from clp_lightning.files import atomic

GENERIC = (
    "This is a description.",
    "The value to use.",
    "Contains information about the item.",
    "The name of the resource.",
    "A structure that holds details.",
    "Specifies the settings for the request.",
    "An optional parameter.",
    "Returns a result.",
    "The service does what you ask for.",
    "See the documentation for more information.",
    "The identifier.",
    "Indicates whether this is used.",
)
BARE_SHARE = 0.2  # pairs without full stops
HELDOUT_SHARE = 5  # the held-out split has one pair of a kind for so many training pairs
# Attacks on the reward that it is never trained on: they show how far it can be trusted beyond its own kinds.
UNSEEN_KINDS = ("shuffled", "keywords", "two_summaries", "body_end", "name_and_filler")
UNSEEN_PAIRS = 60  # of each, in the held-out split only


def build_pairs(config: Config, name: str, corpus: Path, out: Path) -> dict[str, int]:
    """Write `out`/{train,heldout}.parquet (document, chosen, rejected, kind) of a reward model; return the rows of each.

    Raises `ClpError` when a split is too small for the counts that are asked for, or a row of own pairs cannot be used.
    """
    asked = config.reward_models[name].pairs
    left_out: dict[str, int] = {}
    if isinstance(asked, Corruptions):
        parts = _made(asked, config.seed, corpus)
    else:
        parts, left_out = _own(asked, config.seed, f"reward_models.{name}.pairs")
    with atomic(out) as folder:
        folder.mkdir()
        for split, frame in parts.items():
            write_split(frame, folder / f"{split}.parquet")
    return {split: len(frame) for split, frame in parts.items()} | left_out


def _made(asked: Corruptions, seed: int, corpus: Path) -> dict[str, pd.DataFrame]:
    """Training pairs come from the training services, held-out pairs from the unseen test services."""
    counts, parts = asked.model_dump(exclude={"kind"}), {}
    for name, split, share in (("train", "train", 1), ("heldout", "test", HELDOUT_SHARE)):
        rng = np.random.default_rng([seed, share])
        wanted = {kind: max(1, n // share) for kind, n in counts.items()}
        if name == "heldout":
            wanted |= dict.fromkeys(UNSEEN_KINDS, UNSEEN_PAIRS)
        parts[name] = _pairs(read_split(corpus, split), wanted, rng)
    return parts


def _own(asked: Preferences | Scores, seed: int, where: str) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    read, problems = read_pairs(asked, seed)
    skipped = refuse(problems, asked.skip_bad_rows, where)
    check_splits({split: len(rows) for split, rows in read.items()}, where, asked.limit)
    columns = list(Pair._fields[1:])
    parts = {  # of objects: pandas would make plain texts of conversations
        split: pd.DataFrame([row[1:] for row in rows], columns=columns, dtype=object).assign(kind="preference")
        for split, rows in read.items()
    }
    return parts, {"skipped_rows": sum(skipped.values())} if skipped else {}


def _pairs(rows: pd.DataFrame, counts: dict[str, int], rng: np.random.Generator) -> pd.DataFrame:
    by_service = {service: group["summary"].to_numpy() for service, group in rows.groupby("service")}
    summaries, made = rows["summary"].to_numpy(), []
    makers: dict[str, Callable[[pd.Series], str]] = {
        "other_same_service": lambda row: _other(by_service[row.service], row.summary, rng),
        "other_service": lambda row: _other(summaries, row.summary, rng),
        "halved": lambda row: _halved(row.summary, rng),
        "words_dropped": lambda row: _words_dropped(row.summary, rng),
        "repeated": lambda row: _repeated(row.summary, rng),
        "name_only": lambda row: _name(row["name"], rng),
        "copied": lambda row: _copied(row["document"], row["body"], rng),
        "generic": lambda row: str(rng.choice(GENERIC)),
        "shuffled": lambda row: _shuffled(row.summary, rng),
        "keywords": lambda row: _keywords(row["body"]),
        "two_summaries": lambda row: f"{row.summary} {_other(by_service[row.service], row.summary, rng)}",
        "body_end": lambda row: " ".join(row["body"].split()[-int(rng.integers(5, 11)) :]).rstrip(".") + ".",
        "name_and_filler": lambda row: f"The {row['name'].split(', ')[-1]} of the {row['name'].split(', ')[0]} to use.",
    }
    several = rows[rows["service"].map({service: len(group) for service, group in by_service.items()}) > 1]
    if several.empty:
        raise ClpError("no service has two summaries, so there are no pairs within a service; raise data.limit")
    for kind, count in counts.items():
        pool = several if kind in ("other_same_service", "two_summaries") else rows
        for index in rng.choice(len(pool), count, replace=count > len(pool)):
            row = pool.iloc[index]
            chosen, rejected = row.summary, makers[kind](row)
            while _same(chosen, rejected):  # a name may happen to be the summary
                row = pool.iloc[int(rng.integers(len(pool)))]
                chosen, rejected = row.summary, makers[kind](row)
            # in some pairs neither ends in a full stop: leaving it out must not cost as much as content
            if rng.random() < BARE_SHARE:
                chosen, rejected = chosen.rstrip("."), rejected.rstrip(".")
            made.append((row.service, row.document, chosen, rejected, kind))
    frame = pd.DataFrame(made, columns=["service", "document", "chosen", "rejected", "kind"])
    return frame.iloc[rng.permutation(len(frame))].reset_index(drop=True)


def _same(one: str, other: str) -> bool:
    return one.lower().rstrip(".") == other.lower().rstrip(".")


def _other(summaries: np.ndarray, own: str, rng: np.random.Generator) -> str:
    return str(rng.choice(summaries[summaries != own]))


def _halved(summary: str, rng: np.random.Generator) -> str:
    words = summary.rstrip(".").split()
    kept = words[: max(1, round(len(words) * rng.uniform(0.2, 0.7)))]
    return " ".join(kept) + ("." if rng.random() < 0.5 else "")


def _words_dropped(summary: str, rng: np.random.Generator) -> str:
    words = summary.rstrip(".").split()
    dropped = set(rng.choice(len(words), max(1, round(len(words) * rng.uniform(0.25, 0.6))), replace=False).tolist())
    kept = [word for index, word in enumerate(words) if index not in dropped]
    return (" ".join(kept) or words[0]) + ("." if rng.random() < 0.5 else "")


def _repeated(summary: str, rng: np.random.Generator) -> str:
    words = summary.rstrip(".").split()
    match int(rng.integers(4)):
        case 0:  # the start again and again
            text = " ".join(words[: max(1, len(words) // int(rng.integers(2, 4)))] * 3)
        case 1:  # the whole said two or three times
            return " ".join([summary] * int(rng.integers(2, 4)))
        case 2:  # the end again and again
            text = " ".join([*words, *(words[-int(rng.integers(1, 4)) :] * int(rng.integers(1, 4)))])
        case _:  # every word twice
            text = " ".join(word for word in words for _ in range(2))
    return text + ("." if rng.random() < 0.5 else "")


def _name(name: str, rng: np.random.Generator) -> str:
    last = name.split(", ")[-1]
    texts = (name.capitalize(), f"The {last}", f"Specifies the {name.replace(',', ' of the')}", f"{name} {name}")
    return f"{texts[int(rng.integers(len(texts)))]}."


def _shuffled(summary: str, rng: np.random.Generator) -> str:
    words = summary.rstrip(".").split()
    return " ".join(words[index] for index in rng.permutation(len(words))) + "."


def _keywords(body: str) -> str:
    """The body's content words in their order, as a policy would write that is paid for mentioning them."""
    words = [word for word in body.rstrip(".").split() if content_words(word)]
    return " ".join(words or body.split()) + "."


def _copied(document: str, body: str, rng: np.random.Generator) -> str:
    text = document if rng.random() < 0.25 else body
    words = text.split()
    return " ".join(words[: max(3, round(len(words) * rng.uniform(0.2, 1.0)))]).rstrip(".") + "."
