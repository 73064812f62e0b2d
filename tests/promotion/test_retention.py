"""`clp prune`: what goes, what stays, and that nothing which is in use is ever named."""

import os
import time

import pytest
from results_factory import config
from test_promotion import keep_and_crown, train
from typer.testing import CliRunner

from clp_lightning.cli.app import app
from clp_lightning.errors import ClpError
from clp_lightning.promotion import champion, retention
from clp_lightning.store.queries import Store, publish

DAY = 86_400


@pytest.fixture
def retrained(tmp_path, monkeypatch):
    """Six champions one after the other, two refused policies, an old and a new checkpoint and log."""
    monkeypatch.chdir(tmp_path)
    names = []
    for number in range(6):
        train(f"policy {number}")
        names.append(keep_and_crown(f"2026-01-0{number + 1}T00:00:00"))
        age(champion.KEPT / names[-1], 100 - number)
    refused = []
    for number in range(2):
        train(f"refused {number}")
        refused.append(champion.identity("clp-full"))
        champion.keep(refused[-1], "clp-full", champion.Path("results/clp-full"))
        age(champion.KEPT / refused[-1], 50 - number)
    for name, days in (("train-old", 20), ("train-new", 1)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "last.ckpt").write_bytes(b"x" * 1000)
        age(tmp_path / "checkpoints" / name, days)
        (tmp_path / "logs").mkdir(exist_ok=True)
        (tmp_path / "logs" / f"{name}.jsonl").write_text("{}\n")
        age(tmp_path / "logs" / f"{name}.jsonl", days)
    return names, refused


def age(path, days):
    then = time.time() - days * DAY
    for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(each, (then, then))


def test_the_champion_its_last_predecessors_and_the_newest_others_stay(retrained):
    names, refused = retrained
    todo = retention.plan(keep=2, runs=50, days=14)
    # safe: the champion 5 and its predecessors 4, 3. Of the others (refused 1, refused 0, 2, 1, 0 by age) two stay.
    assert [path.name for path in todo.policies] == [names[2], names[1], names[0]]
    assert [path.name for path in todo.checkpoints] == ["train-old"]
    assert [path.name for path in todo.logs] == ["train-old.jsonl"]
    retention.prune(todo)
    assert {path.name for path in champion.KEPT.iterdir()} == {*names[3:], *refused}
    assert champion.current()["history"] == names[3:5]
    assert not retention.plan(keep=2, runs=50, days=14).paths
    assert champion.rollback("2026-02-01T00:00:00")["id"] == names[4]


def test_keep_nothing_keeps_the_champion(retrained):
    names, _ = retrained
    retention.prune(retention.plan(keep=0, runs=1, days=0))
    assert [path.name for path in champion.KEPT.iterdir()] == [names[5]]
    assert champion.current()["id"] == names[5] and champion.current()["history"] == []


def test_a_broken_champion_file_stops_it(retrained):
    champion.CHAMPION.write_text("{")
    with pytest.raises(ClpError, match=r"champion\.json"):
        retention.plan(keep=0, runs=1, days=0)
    assert len(list(champion.KEPT.iterdir())) == 8


def test_old_runs_leave_the_store(project, monkeypatch):
    monkeypatch.chdir(project)
    older = Store("frontier.duckdb").run()["run_id"]
    for file in (project / "results").glob("*/summary.json"):
        file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))
    newer = publish("results", "frontier.duckdb", config().model_copy(update={"seed": 1}))
    dry = CliRunner().invoke(app, ["prune", "--runs", "1", "--dry-run"])
    assert f"run {older} of the store" in dry.output and "would remove 0 policies" in dry.output
    assert len(Store("frontier.duckdb").runs()) == 2
    done = CliRunner().invoke(app, ["prune", "--runs", "1"])
    assert done.exit_code == 0 and ", 1 run: " in done.output
    assert Store("frontier.duckdb").runs().run_id.tolist() == [newer]


def test_a_policy_that_was_rolled_back_stays_out(retrained):
    names, _ = retrained
    champion.rollback("2026-02-01T00:00:00")
    assert champion.current()["rolled_back"] == [names[5]]
    train("another")
    keep_and_crown("2026-02-02T00:00:00")
    assert champion.current()["rolled_back"] == [names[5]]
