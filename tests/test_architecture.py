"""The import table of docs/design.md, and that dvc.yaml lists the code each stage runs: read from the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from locations import REPOSITORY
from ruamel.yaml import YAML

PACKAGE = "clp_lightning"
SOURCES = {path.stem: path for path in (REPOSITORY / "src" / PACKAGE).glob("*.py")}

CONFIG = {"config", "config_data", "config_errors", "config_methods", "config_rewards", "config_types"}
PURE = {"errors", "files", "weightings", "losses", "frontier", "bootstrap", "transcripts"} | CONFIG
ORACLE = {"oracle"}  # numpy and the frontier, nothing else
STORE = {"store", "store_inputs", "store_publish", "store_schema", "run_statistics", "runs"}
DATA = {"data", "data_api", "data_table", "tables", "splits", "sources", "champion", "promotion"} | STORE | ORACLE
PARTS = {
    "base",
    "baselines",
    "checkpoints",
    "conditioned",
    "experts",
    "export",
    "loading",
    "pairs",
    "progress",
    "prompts",
    "rewards",
}
PARTS |= {"rollout", "trainer", "mixing", "sources"}
PARTS |= {"rewards_cache", "rewards_calls", "rewards_judge", "rewards_models", "rewards_text"}
POLICY = {"policy", "policy_files", "policy_tokens", "merging", "methods"}
WORK = {"serving", "serving_batch", "training", "evaluation", "reward_model", "oracle_methods"}
SURFACE = {
    "stages",
    "method_stages",
    "stage_files",
    "labels",
    "report",
    "report_tables",
    "report_html",
    "picture",
    "cli",
    "workspace",
    "pipeline",
    "project_init",
    "cli_data",
    "data_check",
}
SURFACE |= {
    "playground",
    "doctor",
    "cli_doctor",
    "cli_report",
    "server",
    "server_answers",
    "server_bodies",
    "cli_serve",
    "oracle_run",
    "oracle_report",
    "promotion_stage",
    "cli_champion",
    "policy_evaluation",
    "retention",
}
LAYERS = [PURE, DATA, PARTS, POLICY, WORK, SURFACE]

HEAVY = {"torch", "transformers", "lightning", "peft", "matplotlib", "scipy", "moocore", "gguf", "botocore"}
# They carry values and bytes and compute nothing, or (export) no stage calls them: no reason to train again.
GLUE = {"errors", "files", "progress", "export", "stage_files"} | CONFIG


def imported(tree: ast.AST, *, inside_functions: bool) -> set[str]:
    """Full names of what is imported; with `from a import b` both `a` and `a.b`."""
    lazy = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    names = set()
    for node in ast.walk(tree):
        if node in lazy and not inside_functions:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(names: set[str]) -> set[str]:
    """The package's modules among imported names."""
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == PACKAGE and len(part) > 1 and part[1] in SOURCES}


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_every_module_has_its_place_in_the_table():
    assert set(SOURCES) - {"__init__"} <= set.union(*LAYERS)


@pytest.mark.parametrize("module", sorted(set(SOURCES) - {"__init__"}))
def test_imports_run_one_way(module):
    uses = own(imported(parse(SOURCES[module]), inside_functions=True))
    level = next(index for index, layer in enumerate(LAYERS) if module in layer)
    allowed = set.union(*LAYERS[: level + 1])
    if module in PURE:
        allowed = {"errors", "files", "weightings"} | CONFIG
    if module in ORACLE:
        allowed = {"frontier"}
    if module in STORE:
        allowed = STORE | CONFIG | {"frontier", "weightings", "bootstrap", "files", "errors"}
    assert uses <= allowed


@pytest.mark.parametrize("module", sorted(SURFACE & set(SOURCES)))
def test_surface_imports_heavy_libraries_inside_functions_only(module):
    assert not {name.split(".")[0] for name in imported(parse(SOURCES[module]), inside_functions=False)} & HEAVY


def test_pure_modules_import_no_neural_network_library():
    for module in sorted(PURE - {"losses"} & set(SOURCES)):
        names = {name.split(".")[0] for name in imported(parse(SOURCES[module]), inside_functions=True)}
        assert not names & {"torch", "transformers", "lightning", "streamlit", "prefect", "duckdb"}, module


def test_the_command_starts_without_torch():
    code = "import sys, clp_lightning.cli; print([name for name in ('torch', 'transformers') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("path", sorted((REPOSITORY / "dashboard").rglob("*.py")), ids=lambda path: path.name)
def test_dashboard_reads_the_store_only(path):
    tree = parse(path)
    readers = STORE | {"frontier", "weightings", "errors", "labels", "report"}
    assert own(imported(tree, inside_functions=False)) <= readers
    assert own(imported(tree, inside_functions=True)) <= readers | {"files", "playground"}
    assert "torch" not in {name.split(".")[0] for name in imported(tree, inside_functions=False)}
    if path.name == "charts.py":
        assert "streamlit" not in {name.split(".")[0] for name in imported(tree, inside_functions=True)}


def test_nothing_imports_the_flows():
    for path in [*SOURCES.values(), *(REPOSITORY / "dashboard").rglob("*.py")]:
        assert "flows" not in {name.split(".")[0] for name in imported(parse(path), inside_functions=True)}, path.name


def code_of(stage: str) -> set[str]:
    """Modules that the function `stage` of stages.py or method_stages.py can reach."""
    module = next(name for name in ("stages", "method_stages") if f"\ndef {stage}(" in SOURCES[name].read_text())
    tree = parse(SOURCES[module])
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    functions_used, calls = [], [stage]
    while calls:  # the stage's function and those of its module that it calls
        functions_used.append(functions[calls.pop()])
        inside = {node.id for node in ast.walk(functions_used[-1]) if isinstance(node, ast.Name)}
        calls += [name for name in inside & set(functions) if functions[name] not in functions_used]
    named = {node.id for function in functions_used for node in ast.walk(function) if isinstance(node, ast.Name)}
    reached, todo = (
        {module},
        set().union(*(own(imported(function, inside_functions=True)) for function in functions_used)),
    )
    for node in tree.body:  # what the module imports at its top counts for the functions that name it
        if isinstance(node, ast.ImportFrom) and named & {alias.name for alias in node.names}:
            used = {alias.name for alias in node.names} & named
            todo |= own({str(node.module), *(f"{node.module}.{name}" for name in used)})
    while todo:
        module = todo.pop()
        reached.add(module)
        if module not in CONFIG:  # which checks values with what computes with them elsewhere
            todo |= own(imported(parse(SOURCES[module]), inside_functions=True)) - reached
    return reached - GLUE


PIPELINE = YAML(typ="safe", pure=True).load(REPOSITORY / "dvc.yaml")["stages"]


@pytest.mark.parametrize("stage", PIPELINE)
def test_dvc_lists_the_code_that_each_stage_runs(stage):
    definition = PIPELINE[stage].get("do", PIPELINE[stage])
    listed = {Path(dep).stem for dep in definition["deps"] if dep.startswith("src/")}
    assert listed == code_of(stage.removesuffix("_reference").removesuffix("_derived"))
