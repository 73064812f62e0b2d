"""The splits that the stages `corpus` and `pairs` write, as Parquet; roles that came as roles come back as roles."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from clp_lightning.data.transcripts import Conversation
from clp_lightning.errors import ClpError

if TYPE_CHECKING:
    import pandas as pd

SPLITS = ("train", "validation", "test")


def write_split(rows: "pd.DataFrame", file: Path) -> None:
    """Write rows with a column `document`; a column `messages` (JSON) is added where some of them are `Conversation`s."""
    import pandas as pd

    messages = [
        json.dumps(document.messages, ensure_ascii=False) if isinstance(document, Conversation) else None
        for document in rows["document"]
    ]
    told = rows if not any(messages) else rows.assign(messages=pd.Series(messages, rows.index, dtype=object))
    told.to_parquet(file, index=False)


def read_split(root: Path, split: str) -> "pd.DataFrame":
    """Read `root`/`split`.parquet of a corpus or of preference pairs; raises `ClpError` when missing or broken.

    Documents that came as messages or as transcripts are `Conversation`s.
    """
    import pandas as pd

    file = Path(root) / f"{split}.parquet"
    try:
        rows = pd.read_parquet(file)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        reason = "no such file" if isinstance(error, FileNotFoundError) else "not a readable Parquet file"
        raise ClpError(f"cannot read {file}: {reason}; run `dvc repro` to build it") from error
    if "messages" not in rows:
        return rows
    told = zip(rows["document"], rows["messages"], strict=True)
    documents = [text if pd.isna(messages) else Conversation(json.loads(messages)) for text, messages in told]
    return rows.drop(columns="messages").assign(document=pd.Series(documents, rows.index, dtype=object))


def references(rows: "pd.DataFrame") -> dict[str, str]:
    """Return each document's reference answer, for the rewards that read one; documents without are left out."""
    known = rows.dropna(subset=["summary"])
    return dict(zip(known["document"], known["summary"], strict=True))
