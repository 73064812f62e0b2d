"""The layers of docs/design.md hold (import-linter), and dvc.yaml lists the code that each stage runs (its library, grimp)."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import grimp
import pytest
from locations import REPOSITORY
from ruamel.yaml import YAML

from clp_lightning.pipeline.stages import METHOD_STAGES, REWARD_STAGES, STAGES

SOURCE = REPOSITORY / "src" / "clp_lightning"
PACKAGES = sorted(path.parent for path in SOURCE.glob("*/__init__.py"))
PIPELINE = YAML(typ="safe", pure=True).load(REPOSITORY / "dvc.yaml")["stages"]
# They carry values and bytes and compute nothing; `weightings`, which config checks values with, is listed where it computes.
GLUE = ("clp_lightning.config", *(f"clp_lightning.{name}" for name in ("errors", "files", "paths", "progress")))


def lint_imports(repository: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache", "--no-logo"]
    environment = {
        "PYTHONPATH": ":".join(str(repository / part) for part in ("src", ".", "dashboard")),
        "COLUMNS": "200",
    }
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)


def test_the_layers_hold():
    done = lint_imports(REPOSITORY)
    assert done.returncode == 0, done.stdout + done.stderr


FORBIDDEN = [
    ("config/parameters.py", "from clp_lightning.policy.steerable import SteerablePolicy", "Layers"),
    ("frontier/metrics.py", "import torch", "Free of torch"),
    ("pipeline/train.py", "import flows.retrain", "Nothing imports flows or the dashboard"),
    ("../../dashboard/charts/many.py", "import shared.common", "Dashboard"),
    ("../../dashboard/charts/compare.py", "import streamlit", "Charts know no Streamlit"),
    ("../../dashboard/views/runs.py", "import clp_lightning.policy.steerable", "The dashboard reads the store"),
]


def test_forbidden_imports_are_found(tmp_path):
    for part in ("src", "flows", "dashboard", "pyproject.toml"):
        copy = shutil.copytree if (REPOSITORY / part).is_dir() else shutil.copy
        copy(REPOSITORY / part, tmp_path / part)
    for module, line, _ in FORBIDDEN:
        file = tmp_path / "src" / "clp_lightning" / module
        file.write_text(f"{file.read_text()}\n{line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert [contract for *_, contract in FORBIDDEN if f"{contract} BROKEN" not in done.stdout] == [], done.stdout


def test_the_house_has_few_rooms_with_few_things_in_each():
    assert len(list(SOURCE.glob("*.py"))) <= 6
    sizes = {path: len(path.read_text().splitlines()) for path in SOURCE.rglob("*.py")}
    assert median(sizes.values()) <= 160 and max(sizes.values()) <= 300
    assert {
        folder.name: len(list(folder.glob("*.py"))) for folder in PACKAGES if len(list(folder.glob("*.py"))) > 10
    } == {}


@pytest.mark.parametrize("package", ["clp_lightning", *(f"clp_lightning.{folder.name}" for folder in PACKAGES)])
def test_public_names_are_there(package):
    module = __import__(package, fromlist=["__all__"])
    assert module.__doc__ and all(getattr(module, name) is not None for name in module.__all__)


@pytest.mark.parametrize(
    "module", ["clp_lightning", "clp_lightning.cli.app", "clp_lightning.store", "clp_lightning.report"]
)
def test_what_needs_no_model_starts_without_torch(module):
    code = (
        f"import sys, {module}; print([name for name in ('torch', 'transformers', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("clp_lightning", exclude_type_checking_imports=True, cache_dir=None)


def functions(module: str) -> dict[str, range]:
    """The lines of each function at the top of a module of the pipeline."""
    tree = ast.parse((SOURCE / "pipeline" / f"{module}.py").read_text())
    return {
        node.name: range(node.lineno, node.end_lineno + 1) for node in tree.body if isinstance(node, ast.FunctionDef)
    }


def imported(graph: grimp.ImportGraph, importer: str) -> Iterator[tuple[str, int]]:
    for name in graph.find_modules_directly_imported_by(importer):
        for detail in graph.get_import_details(importer=importer, imported=name):
            yield name, detail["line_number"]


def reached(graph: grimp.ImportGraph, stage: str) -> set[str]:
    """The modules that a stage can reach, but for what its module's other stages import inside their functions."""
    module = (STAGES | REWARD_STAGES | METHOD_STAGES)[stage]
    others = [lines for name, lines in functions(module).items() if name in STAGES | REWARD_STAGES and name != stage]
    start = f"clp_lightning.pipeline.{module}"
    todo = {name for name, line in imported(graph, start) if not any(line in lines for lines in others)}
    found = {start, "clp_lightning.pipeline.stages"}
    while todo:
        found.add(name := todo.pop())
        if not name.startswith(GLUE):
            todo |= graph.find_modules_directly_imported_by(name) - found
    return {name for name in found if not name.startswith(GLUE)}


@pytest.mark.parametrize("stage", PIPELINE)
def test_dvc_lists_the_code_that_each_stage_runs(stage, graph):
    deps = [dep for dep in PIPELINE[stage].get("do", PIPELINE[stage])["deps"] if dep.startswith("src/")]
    listed = {dep.removeprefix("src/").removesuffix(".py").replace("/", ".") for dep in deps}
    needed = reached(graph, stage.removesuffix("_reference").removesuffix("_derived"))
    assert {name for name in needed if not any(name == dep or name.startswith(f"{dep}.") for dep in listed)} == set()
    assert {dep for dep in listed if not any(name == dep or name.startswith(f"{dep}.") for name in needed)} == set()
