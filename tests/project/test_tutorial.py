"""docs/tutorial.md, command by command, in an empty folder; and `clp init` and `clp data` where they are refused."""

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from locations import REPOSITORY
from ruamel.yaml import YAML

from bench.listening import free_port, wait_for
from bench.pages.browsing import PAGES, Visit, chromium
from clp_lightning.config.parameters import load_config
from clp_lightning.errors import UsageError
from clp_lightning.pipeline import records
from clp_lightning.project.init import init

TUTORIAL = REPOSITORY / "docs" / "tutorial.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)


@contextlib.contextmanager
def serving(command: str, folder: Path, health: str, **variables: str):
    process = subprocess.Popen(command.split(), cwd=folder, env=environment() | variables)
    try:
        wait_for(health, process, 120)
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def look(address: str) -> None:
    """Open every page of the dashboard as a person does, where this machine has a browser, else its frame."""
    with chromium() as browser:
        if browser is None:
            assert urllib.request.urlopen(address, timeout=60).status == 200
            return
        for title in PAGES:
            visit = Visit(browser, address)
            page = visit.open(title)
            assert (
                page.get_by_test_id("stException").count() == 0 and "There is nothing to show yet" not in visit.shown()
            )
            if title == "Playground":
                page.locator(".answer-2").wait_for()
            page.close()
            assert visit.problems == []


def environment() -> dict[str, str]:
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


@pytest.mark.slow
def test_the_tutorials_commands_lead_from_a_csv_to_a_served_model(tmp_path):
    folder, port, answers = tmp_path, free_port(), []
    with contextlib.ExitStack() as stack:
        for block in blocks("bash"):
            text = block.replace("8000", str(port))
            if text.startswith("clp serve"):
                stack.enter_context(serving(text, folder, f"http://127.0.0.1:{port}/health"))
                continue
            # a shell keeps its folder from block to block, as a terminal does
            script = f"set -e\n{text}\npwd >{tmp_path}/.here"
            done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment(), capture_output=True, text=True)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            folder = Path((tmp_path / ".here").read_text().strip())
            answers.append(done.stdout)
    assert "train 207" in answers[1] and "clp-full" in answers[2]
    answer = json.loads(answers[4])
    assert answer["choices"][0]["message"]["content"].strip()
    assert (folder / "exported" / "model.safetensors").is_file()
    assert len((folder / "prompts.csv").read_text().splitlines()) == 301
    (line,) = re.findall(r"`(streamlit run [^`]+)` in the checkout", TUTORIAL.read_text(encoding="utf-8"))
    assert line.endswith(" -- --store support/frontier.duckdb")
    address = f"http://127.0.0.1:{(free := free_port())}"
    command = line.replace("support/", f"{folder}/")
    with serving(command, REPOSITORY, f"{address}/_stcore/health", STREAMLIT_SERVER_PORT=str(free)):
        look(address)


def test_the_tutorials_rewards_are_those_of_the_project(tmp_path):
    init(tmp_path / "own")
    stated = YAML(typ="safe", pure=True).load(tmp_path / "own" / "params.yaml")["rewards"]
    assert YAML(typ="safe", pure=True).load(blocks("yaml")[0])["rewards"] == stated


def test_init_writes_a_project_once_and_keeps_what_is_there(tmp_path):
    folder = tmp_path / "own"
    assert {"params.yaml", "prompts.csv", "rewards.py", "dvc.yaml"} <= set(init(folder))
    (folder / "rewards.py").write_text("def on_topic(documents, responses):\n    return [1.0] * len(responses)\n")
    assert init(folder) == []
    assert "1.0" in (folder / "rewards.py").read_text()
    assert load_config(folder / "params.yaml").objectives == ("on_topic", "short")


def test_init_brings_the_pipeline_in_step(tmp_path):
    folder, yaml = tmp_path / "own", YAML()
    init(folder)
    stages = YAML(typ="safe").load(folder / "dvc.yaml")["stages"]
    assert not any("src/" in dep for stage in stages.values() for dep in stage.get("do", stage)["deps"])
    assert "rewards.py" in stages["train"]["do"]["deps"] and "prompts.csv" in stages["corpus"]["deps"]
    values = yaml.load(folder / "params.yaml")
    values["methods"]["clp-attn"] = dict(values["methods"]["clp-full"]) | {"conditioning": "attention"}
    yaml.dump(values, folder / "params.yaml")
    assert init(folder) == ["dvc.yaml"]
    assert "results/clp-attn" in YAML(typ="safe").load(folder / "dvc.yaml")["stages"]["publish"]["deps"]


def test_init_takes_a_file_of_the_users_own(tmp_path):
    (tmp_path / "tickets.csv").write_text("subject,body\n" + "".join(f"s{n},b{n}\n" for n in range(50)))
    init(tmp_path / "own", tmp_path / "tickets.csv", "{subject}: {body}")
    data = load_config(tmp_path / "own" / "params.yaml").data
    assert (data.source, data.prompt) == ("prompts.csv", "{subject}: {body}")
    assert (tmp_path / "own" / "prompts.csv").read_text() == (tmp_path / "tickets.csv").read_text()
    assert "# a column" in (tmp_path / "own" / "params.yaml").read_text()  # comments stay


def test_init_refuses_what_it_would_spoil(tmp_path, repository):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for folder, options, message in [
        (tmp_path / "full", (), "not empty and no project"),
        (tmp_path / "file", (), "there is a file of this name"),
        (repository, (), "this is a checkout of CLP Lightning"),
        (tmp_path / "new", (tmp_path / "none.csv", "q"), "no such file"),
        (tmp_path / "new", (tmp_path / "file", None), "--data needs --prompt"),
    ]:
        with pytest.raises(UsageError, match=message):
            init(folder, *options)
    assert not (tmp_path / "new").exists()


def clp(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "clp_lightning.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True)


def test_data_lists_every_bad_row_and_the_stage_stops_at_the_first(tmp_path):
    init(tmp_path / "own")
    prompts = tmp_path / "own" / "prompts.csv"
    prompts.write_text(prompts.read_text() + "301,a thing,\n302,a thing,How do I clean a router?\n")
    done = clp(tmp_path / "own", "data")
    assert done.returncode == 1 and "prompts.csv:302: 'question' is empty" in done.stdout
    assert "prompts.csv:303: the same prompt as another row (prompts.csv:2)" in done.stdout
    assert done.stderr == (
        "clp: error: 2 rows cannot be used; mend them, or leave them out with skip_bad_rows: true in params.yaml\n"
    )
    assert clp(tmp_path / "own", "data", "--skip-bad-rows").returncode == 0
    found = json.loads(clp(tmp_path / "own", "data", "--skip-bad-rows", "--json").stdout)["data"]
    assert sum(found["rows"].values()) == 300 and len(found["problems"]) == 2
    done = clp(tmp_path / "own", "stage", "corpus")
    assert done.returncode == 1 and done.stderr.startswith(
        "clp: error: prompts.csv:302: 'question' is empty (and 1 more;"
    )
    assert not (tmp_path / "own" / "data").exists()  # nothing half-written
    params = tmp_path / "own" / "params.yaml"
    params.write_text(params.read_text().replace("skip_bad_rows: false", "skip_bad_rows: true"))
    assert clp(tmp_path / "own", "stage", "corpus").returncode == 0
    card = json.loads((tmp_path / "own" / "data" / "corpus" / "card.json").read_text())
    assert card["rows"] == 300 and sum(card["skipped_rows"].values()) == 2
    assert card["samples"]["train"][0]["document"].endswith("?")


def test_a_monitor_without_a_value_is_left_out_of_a_stages_metrics(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # ROUGE is not a number where the data has no reference answers
    records.metrics("evaluate-x", {"monitor:rouge_l": float("nan"), "monitor:kl": 1.5, "models": {"a": 1}})
    found = json.loads((tmp_path / "reports" / "metrics" / "evaluate-x.json").read_text())
    assert found == {"monitor:kl": 1.5, "models": {"a": 1}}
