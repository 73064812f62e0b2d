"""The default corpus: `name + body -> first sentence` of API descriptions.

Extreme summarization as XSum was built (Narayan et al., 2018): the first sentence of a text is its summary, the rest
is the text. The texts are the service models that the pinned botocore package ships, so nothing is downloaded.
"""

import gzip
import hashlib
import json
import re
import sys
from collections.abc import Collection, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clp_lightning.config.data import ApiDescriptions
from clp_lightning.data.splits import SPLITS
from clp_lightning.errors import ClpError, make

if TYPE_CHECKING:
    import pandas as pd


MIN_SUMMARY_WORDS = 4
MIN_BODY_WORDS = 5
_RAW_CHARACTERS = 1200  # a summary and a body are far shorter; the rest of a long page need not be parsed

_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bvs\.)\s+(?=[^a-z\s])|\n+")
_IDENTIFIER_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|\d+")
_WORD = re.compile(r"[a-z0-9]+")
_STOP_WORDS = frozenset(
    "a an and are as at be been but by can could did do does for from had has have he her his how if in into is it its may "
    "more must no not of on one or other our own s shall should so some such t than that the their them then there these "
    "they this those to use used uses using was we were what when where which while who whose will with would you your".split()
)


class _Text(HTMLParser):
    """Collects text: block tags end a line, asides (notes, warnings, code blocks) are left out."""

    _BLOCKS = frozenset("p br div ul ol li dl dt dd table tr td th h1 h2 h3 h4 h5 h6 title section".split())
    _ASIDES = frozenset("note important caution pre fullname".split())

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.depth = 0  # of asides

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.depth += tag in self._ASIDES
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.depth = max(0, self.depth - (tag in self._ASIDES))
        if tag in self._BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.depth:
            self.parts.append(data.replace("\n", " "))


def content_words(text: str) -> set[str]:
    """Lower-case words of `text` without stop words and without a plural or third-person s."""
    words = (word for word in _WORD.findall(text.lower()) if word not in _STOP_WORDS)
    return {word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word for word in words}


def spoken_name(identifier: str) -> str:
    """`ListDBRolesRequest.maxResults` -> `list DB roles request, max results`: words that a language model knows."""
    return ", ".join(
        " ".join(word if len(word) > 1 and word.isupper() else word.lower() for word in _IDENTIFIER_WORD.findall(part))
        for part in identifier.split(".")
    )


def split_summary(html: str) -> tuple[str, str]:
    """First sentence and the rest of an HTML description, as plain text on one line each."""
    raw = html[:_RAW_CHARACTERS]
    if raw.rfind("<") > raw.rfind(">"):  # cut inside a tag
        raw = raw[: raw.rfind("<")]
    parser = _Text()
    parser.feed(raw)
    parser.close()
    lines = "\n".join(" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    first, *rest = _SENTENCE_END.split(lines.strip(), maxsplit=1)
    return first, " ".join(" ".join(rest).split())


def api_parts(
    limits: ApiDescriptions, seed: int, services: Collection[str] | None = None
) -> "tuple[dict[str, pd.DataFrame], dict[str, Any]]":
    """Return the splits (id, service, name, body, document, summary) and what the card says of them.

    `services` restricts the extraction (tests). Raises `ClpError` when botocore is missing or nothing is left.
    """
    import pandas as pd

    rows = _rows(limits, services)
    if not rows:
        raise ClpError("botocore's service models gave no rows; loosen data.min_overlap or data.max_summary_words")
    frame = pd.DataFrame(rows)
    # rank by hash, so that adding a service to botocore moves few others and no random state is involved
    ranked = sorted(frame["service"].unique(), key=lambda service: _hash(seed, "service", service))
    test = max(1, round(limits.test_services * len(ranked)))
    validation = max(1, round(limits.validation_services * len(ranked)))
    split_of = {
        s: "test" if i < test else "validation" if i < test + validation else "train" for i, s in enumerate(ranked)
    }
    if limits.limit is not None and len(frame) > limits.limit:
        order = frame["id"].map(lambda row: _hash(seed, "row", row)).sort_values()
        frame = frame.loc[sorted(order.index[: limits.limit])]
    parts = {split: frame[frame["service"].map(split_of) == split].reset_index(drop=True) for split in SPLITS}
    import botocore

    return parts, {"source": "botocore", "botocore_version": botocore.__version__}


def _rows(limits: ApiDescriptions, services: Collection[str] | None) -> list[dict[str, str]]:
    from rich.console import Console
    from rich.progress import track

    rows = []
    ids: set[str] = set()
    texts: set[str] = set()
    summaries: set[str] = set()
    models = [(name, file) for name, file in _service_models() if services is None or name in services]
    for service, file in track(
        models,
        "Reading API descriptions",
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ):
        for identifier, html in _descriptions(_read_model(file)):
            # cheap tests before the expensive parse: the same text recurs often, most texts are one sentence
            if html in texts or html.count(" ") < MIN_SUMMARY_WORDS + MIN_BODY_WORDS - 1:
                continue
            texts.add(html)
            summary, rest = split_summary(html)
            words = rest.split()[: limits.max_body_words]
            if not MIN_SUMMARY_WORDS <= len(summary.split()) <= limits.max_summary_words or len(words) < MIN_BODY_WORDS:
                continue
            name, body, key = spoken_name(identifier), " ".join(words), f"{service}/{identifier}"
            if not (summary.endswith(".") and summary[0].isalpha()) or key in ids or summary.lower() in summaries:
                continue
            content = content_words(summary)
            if not content or len(content & content_words(f"{name} {body}")) < limits.min_overlap * len(content):
                continue
            ids.add(key)
            summaries.add(summary.lower())
            row = {"id": key, "service": service, "name": name, "body": body, "document": f"{name}: {body}"}
            rows.append(row | {"summary": summary})
    return list({row["document"].lower(): row for row in reversed(rows)}.values())[::-1]  # the first of equal documents


def _service_models() -> list[tuple[str, Path]]:
    try:
        import botocore
    except ImportError as error:
        raise ClpError(
            f"botocore is not installed, and the corpus is built from it; run {make('setup', 'pip install botocore')}"
        ) from error
    found = []
    for folder in sorted((Path(botocore.__file__).parent / "data").iterdir()):
        # versions are dates, so the last one in order is the newest
        models = sorted(folder.glob("*/service-2.json*")) if folder.is_dir() else []
        if models:
            found.append((folder.name, models[-1]))
    return found


def _read_model(file: Path) -> dict[str, Any]:
    raw = file.read_bytes()
    return json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw)


def _descriptions(model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for group in ("operations", "shapes"):
        for name, item in model.get(group, {}).items():
            if item.get("documentation"):
                yield name, item["documentation"]
            for member, value in item.get("members", {}).items():
                if value.get("documentation"):
                    yield f"{name}.{member}", value["documentation"]


def _hash(*parts: object) -> str:
    return hashlib.sha256(":".join(map(str, parts)).encode()).hexdigest()
