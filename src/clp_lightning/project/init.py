"""`clp init`: a small working project in a folder of the user's own."""

import csv
import importlib.resources
import itertools
import sys
from pathlib import Path

from ruamel.yaml import YAML

from clp_lightning.config.parameters import load_config
from clp_lightning.data import texts
from clp_lightning.data.tables import Problem, read_rows
from clp_lightning.errors import UsageError
from clp_lightning.files import atomic
from clp_lightning.project.dvc_yaml import write_pipeline, write_text

SETTINGS = "[core]\n    analytics = false\n    check_update = false\n    no_scm = true\n"
TEMPLATES = {
    "params.yaml": "params.yaml",
    "rewards.py": "rewards.py",
    "README.md": "README.md",
    ".gitignore": "gitignore",
}
# 20 things x 15 questions: 300 prompts that a small model has something to say about
THINGS = (
    "a router", "a printer", "a laptop", "a phone", "a camera", "a coffee machine", "a washing machine", "a bicycle",
    "a drill", "a tent", "a guitar", "a piano", "a garden hose", "a lawn mower", "a heater", "a fridge", "an oven",
    "a vacuum cleaner", "a telescope", "a sewing machine",
)  # fmt: skip
QUESTIONS = (
    "How do I clean {}?", "How do I store {} in winter?", "What should I check before I buy {}?", "How do I repair {}?",
    "How long does {} last?", "What does {} cost?", "Which parts of {} wear out first?", "How do I use {} safely?",
    "Can I lend {} to a friend?", "Where do I recycle {}?", "How do I transport {}?", "What can go wrong with {}?",
    "How do I set up {} for the first time?", "How do I sell {} second hand?", "Why does {} make a strange noise?",
)  # fmt: skip


def init(folder: Path, data: Path | None = None, prompt: str | None = None) -> list[str]:
    """Write what is missing of a project and bring its dvc.yaml in step with its params.yaml; return the files written.

    `data` is a file of prompts to use instead of the examples, `prompt` its column or a template over its columns. Files
    that are there are kept. Raises `UsageError` for a folder that holds something else, and for a file without that column.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: there is a file of this name; name another folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "params.yaml").is_file():
        raise UsageError(f"{folder}: not empty and no project (it has no params.yaml); name another folder")
    if (folder / "src" / "clp_lightning").is_dir():
        raise UsageError(
            f"{folder}: this is a checkout of CLP Lightning, not a project of your own; name another folder"
        )
    if data is None and prompt is not None:
        raise UsageError(
            "--prompt needs --data, the file that has the column; in a project that is there change data.prompt in params.yaml"
        )
    if data is not None and not data.is_file():
        raise UsageError(f"--data {data}: {'a folder; name a file in it' if data.is_dir() else 'no such file'}")
    if data is not None and prompt is None:
        raise UsageError('--data needs --prompt: a column, or a template over columns such as "{title}: {text}"')
    if data is not None and (folder / "params.yaml").exists():
        raise UsageError(f"{folder / 'params.yaml'} is there already; change `data` in it instead of giving --data")
    if data is not None:
        _check_columns(data, texts.columns_of(str(prompt), "--prompt"))
    written = []
    for name, template in TEMPLATES.items():
        if not (folder / name).exists():
            text = (
                importlib.resources.files("clp_lightning")
                .joinpath("project", "templates", template)
                .read_text(encoding="utf-8")
            )
            write_text(folder / name, text)
            written.append(name)
    if data is not None:
        written += _take(folder, data, str(prompt))
    config = load_config(folder / "params.yaml")
    if config.data.kind == "table" and config.data.source == "prompts.csv" and not (folder / "prompts.csv").exists():
        _write_prompts(folder / "prompts.csv")
        written.append("prompts.csv")
    if not (folder / ".dvc" / "config").is_file():
        write_text(folder / ".dvc" / "config", SETTINGS)
        written.append(".dvc/config")
    before = (folder / "dvc.yaml").read_bytes() if (folder / "dvc.yaml").exists() else None
    write_pipeline(pipeline_source(), folder / "dvc.yaml", config, code=False)
    return written + (["dvc.yaml"] if before != (folder / "dvc.yaml").read_bytes() else [])


def pipeline_source() -> Path:
    """Return the pipeline's dvc.yaml: in a checkout at its root, else where the package was installed with its data."""
    checkout, installed = Path(__file__).parents[3], Path(sys.prefix) / "share" / "clp-lightning"
    for folder in (checkout, installed):
        if (folder / "dvc.yaml").is_file():
            return folder / "dvc.yaml"
    raise UsageError(f"no dvc.yaml in {checkout} or {installed}; install the package again")


def _check_columns(data: Path, names: list[str]) -> None:
    """Raise `UsageError` for a file that cannot be read or has no column of one of these names."""
    known: dict[str, None] = {}  # in the file's order
    problem: Problem | None = None
    for row in read_rows(str(data), None):
        if isinstance(row, Problem):
            problem = problem or row
            continue
        known |= dict.fromkeys(map(str, row.values))
        # of JSON each row has keys of its own
        if not row.ragged or known.keys() >= set(names):
            break
    if not known:
        raise UsageError(f"{problem.place}: {problem.text}" if problem else f"{data}: no rows in it; name another file")
    for name in names:
        if name not in known:
            raise UsageError(f"--prompt: {data} has no column {name!r}; it has {', '.join(known)}")


def _take(folder: Path, data: Path, prompt: str) -> list[str]:
    packed = data.suffix.lower() == ".gz"
    target = folder / f"prompts{''.join(data.suffixes[-2 if packed else -1 :]).lower()}"
    with atomic(target) as beside:
        beside.write_bytes(data.read_bytes())
    yaml = YAML()  # keeps comments
    yaml.width = 120
    values = yaml.load(folder / "params.yaml")
    values["data"]["source"], values["data"]["prompt"] = target.name, prompt
    with atomic(folder / "params.yaml") as beside, beside.open("w", encoding="utf-8") as stream:
        yaml.dump(values, stream)
    return [target.name]


def _write_prompts(path: Path) -> None:
    with atomic(path) as beside, beside.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "thing", "question"])
        for number, (thing, question) in enumerate(itertools.product(THINGS, QUESTIONS), 1):
            writer.writerow([number, thing, question.format(thing)])
