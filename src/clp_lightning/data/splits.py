"""Reading what the stages `corpus` and `pairs` wrote."""

from pathlib import Path
from typing import TYPE_CHECKING

from clp_lightning.errors import ClpError

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")


def read_split(root: Path, split: str) -> "pd.DataFrame":
    """Read `root`/`split`.parquet of a corpus or of preference pairs; raises `ClpError` when missing or broken."""
    import pandas as pd

    file = Path(root) / f"{split}.parquet"
    try:
        return pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a readable Parquet file"
        raise ClpError(f"cannot read {file}: {reason}; run `dvc repro` to build it") from error


def references(rows: "pd.DataFrame") -> dict[str, str]:
    """Return each document's reference answer, for the rewards that read one; documents without are left out."""
    known = rows.dropna(subset=["summary"])
    return dict(zip(known["document"], known["summary"], strict=True))
