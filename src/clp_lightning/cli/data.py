"""The commands of a user's own project: `clp init` and `clp data`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clp_lightning.errors import ClpError, plural

if TYPE_CHECKING:
    from clp_lightning.config.parameters import Config
    from clp_lightning.data.check import Lengths

MOST_LISTED, MOST_FILES = 20, 3


def init(
    folder: Annotated[Path, typer.Argument(help="Folder to make, or a project whose dvc.yaml is brought in step.")],
    data: Annotated[Path | None, typer.Option(help="File with your prompts: CSV, JSON Lines or Parquet.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help='Its column with the prompt, or a template: "{title}: {text}".')
    ] = None,
) -> None:
    """Write a small working project: prompts, a reward of your own, params.yaml, dvc.yaml.

    Example: clp init support --data tickets.csv --prompt "{subject}: {body}"
    """
    from clp_lightning.project.init import init as write

    written = write(folder, data, prompt)
    print(f"wrote {', '.join(written)} in {folder}" if written else f"{folder} is as it should be")
    if "params.yaml" in written:
        print(f"next: cd {folder}; clp data; dvc repro; clp serve --model models/clp-full")


def data(
    params: Annotated[Path, typer.Option(help="Parameter file of the project.")] = Path("params.yaml"),
    skip_bad_rows: Annotated[bool, typer.Option(help="Count rows that cannot be used instead of failing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the data card and all problems as JSON.")] = False,
) -> None:
    """Check the prompts and preference pairs that params.yaml names, without writing anything; sources are relative to it.

    Example: clp data --skip-bad-rows
    """
    from clp_lightning.config.parameters import load_config
    from clp_lightning.data.check import check

    config = load_config(params)
    found = check(config, params.parent, _lengths(config, params.parent))
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for name, section in found.items():
            _show(name, section)
    bad = sum(len(section["problems"]) for section in found.values())
    allowed = skip_bad_rows or all(section["skip_bad_rows"] for section in found.values() if section["problems"])
    if bad and not allowed:
        them = "it" if bad == 1 else "them"
        raise ClpError(
            f"{plural(bad, 'row')} cannot be used; mend {them}, or leave {them} out with skip_bad_rows: true in params.yaml"
        )
    if faults := [fault for section in found.values() for fault in section["faults"]]:
        raise ClpError(faults[0])  # as the stage says it, which would end here; the others are listed above


def _show(name: str, section: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    counts = ", ".join(f"{split} {rows}" for split, rows in section["rows"].items())
    console.print(Text(f"{name}: {section['source']}, {counts}"))
    if section["samples"]:
        columns = list(section["samples"][0])
        table = Table(*columns, show_lines=True)
        for sample in section["samples"]:
            table.add_row(*(Text(str(sample[column] or "")) for column in columns))
        console.print(table)
    if section["files"]:
        console.print(Text(_files(section["files"])))
    for note in section["notes"]:
        console.print(Text(note))
    if section.get("long_prompts", {}) != {}:
        console.print(Text(_long_prompts(section["long_prompts"])))
    for place, reason in section["problems"][:MOST_LISTED]:
        console.print(Text(f"{place}: {reason}"))
    if len(section["problems"]) > MOST_LISTED:
        console.print(Text(f"and {len(section['problems']) - MOST_LISTED} more; --json lists them all"))
    for fault in section["faults"]:
        console.print(Text(fault))


def _lengths(config: "Config", root: Path) -> "Lengths | None":
    """Return what counts prompts that are too long; None where no model is there yet, whose tokenizer it takes."""
    from clp_lightning.config.data import Table
    from clp_lightning.paths import BASE

    if not isinstance(config.data, Table) or not (root / BASE / "config.json").is_file():
        return None

    def lengths(splits: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
        from clp_lightning.policy.loading import load_tokenizer
        from clp_lightning.policy.prompts import PromptTemplate

        return PromptTemplate(load_tokenizer(root / BASE), config.generation, ()).count_long(splits)

    return lengths


def _long_prompts(counts: Mapping[str, Mapping[str, int]] | None) -> str:
    if counts is None:
        return "prompts that are too long: not counted, which takes models/base (`dvc repro base` writes it)"
    parts = ", ".join(f"{split} {count['too_long']} of {count['prompts']}" for split, count in counts.items())
    lost, longest = (
        sum(count["tokens_left_out"] for count in counts.values()),
        max(c["longest"] for c in counts.values()),
    )
    return (
        f"prompts longer than generation.max_prompt_tokens, by the tokenizer of models/base: {parts}; "
        f"{plural(lost, 'token')} left out in all, {longest} in the longest prompt"
    )


def _files(files: list[tuple[str, str | None]]) -> str:
    """Return which files were read and, where their names decide, which of them became which split."""
    by_split: dict[str | None, list[str]] = {}
    for file, split in files:
        by_split.setdefault(split, []).append(file)
    parts = []
    for split, names in by_split.items():
        more = f" and {len(names) - MOST_FILES} more" if len(names) > MOST_FILES else ""
        what = "all rows, split anew," if split is None else split
        parts.append(f"{what} from {', '.join(names[:MOST_FILES])}{more}")
    return f"files: {'; '.join(parts)}"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command()(init)
    app.command()(data)
