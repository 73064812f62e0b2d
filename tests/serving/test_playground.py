"""The playground: streamed answers are those of `generate`, and its page says what is wrong instead of failing."""

import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from locations import REPOSITORY
from results_factory import config
from streamlit.testing.v1 import AppTest

from clp_lightning.data.transcripts import to_messages
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.serving.playground import Playground, Setting, policies
from clp_lightning.store.queries import Store

TEXT = "queue: The name of the queue that receives messages."
ENDS = [Setting(None), Setting(np.array([1.0, 0.0])), Setting(np.array([0.0, 1.0]))]


@pytest.fixture(scope="module")
def play(steered) -> Playground:
    run = Store(steered / "frontier.duckdb").run()
    return Playground.load(steered / "models" / "clp-full", steered, run["params"], run["normalization"])


def test_the_last_of_the_stream_is_what_generate_gives(play, steered):
    streamed = list(play.write(TEXT, ENDS))
    policy = SteerablePolicy.from_pretrained(steered / "models" / "clp-full")
    expected = [
        policy.generate([TEXT], None if s.weighting is None else s.weighting[None], temperature=0.0)[0] for s in ENDS
    ]
    assert streamed[-1] == expected
    assert len(set(expected)) == 3  # the two ends and the reference differ
    assert len(streamed) > 2 and all(len(answers) == 3 for answers in streamed)
    for earlier, later in itertools.pairwise(streamed):  # texts only grow
        assert all(len(a) <= len(b) for a, b in zip(earlier, later, strict=True))


def test_of_a_run_of_conversations_a_text_is_a_transcript(steered):
    run = Store(steered / "frontier.duckdb").run()
    table = {
        "kind": "table", "source": "x.jsonl", "subset": None, "prompt": None, "messages": "m", "transcript": None,
        "reference": None, "limit": None, "skip_bad_rows": False, "splits": {"kind": "given"},
    }  # fmt: skip
    talk, folder = "Human: Hi\n\nAssistant: Hello\n\nHuman: Why?", steered / "models" / "clp-full"
    own = {
        "kind": "preferences", "source": "x.jsonl", "subset": None, "prompt": "p", "chosen": "c", "rejected": "r",
        "heldout": 0.1, "limit": None, "skip_bad_rows": False,
    }  # fmt: skip
    models = {name: model | {"pairs": own} for name, model in run["params"]["reward_models"].items()}
    run["params"]["reward_models"] = models
    for data, messages in ((table, 3), (table | {"prompt": "q", "messages": None}, 1)):
        loaded = Playground.load(folder, steered, run["params"] | {"data": data}, run["normalization"])
        assert len(to_messages(loaded.read(talk))) == messages


def test_sampling_is_reproducible_and_paired(play):
    def last(seed, settings=ENDS):
        *_, answers = play.write(TEXT, settings, temperature=1.0, seed=seed)
        return answers

    assert last(1) == last(1) != last(2)
    assert last(1, [Setting(None), Setting(None)]) == [last(1)[0]] * 2


def test_a_stream_that_is_left_early_leaves_the_policy_usable(play):
    stream = play.write(TEXT, ENDS)
    next(stream)
    stream.close()
    assert play.score(TEXT, ["Creates a queue."]).shape == (1, 2)


def test_rewards_are_standardized_with_the_runs_normalization(play, steered):
    scales = Store(steered / "frontier.duckdb").run()["normalization"]["brevity"]
    words = -max(3, play.rewards.rewards["brevity"].min_words)
    values = play.score(TEXT, ["one two three"])
    assert values[0, 1] == pytest.approx((words - scales["mean"]) / scales["std"])


def test_a_long_text_is_counted_and_an_empty_one_refused(play):
    template = play.policy.template  # as the page asks it
    assert template.left_out(play.read(TEXT)) == 0
    assert template.left_out(play.read(TEXT * 50)) > 100
    with pytest.raises(UsageError, match="is empty"):
        next(play.write("  ", ENDS))


def test_policies_are_those_that_take_any_weighting_the_champion_first(steered, tmp_path):
    assert list(policies(steered)) == ["clp-full", "rewarded-soups"]
    assert policies(tmp_path) == {}
    project = Path(shutil.copytree(steered, tmp_path / "project", symlinks=True))
    (project / "models" / "clp-new").mkdir()
    (project / "models" / "clp-new" / "clp.json").write_text("{")
    kept = project / "models" / "kept" / "abc"
    shutil.copytree(project / "models" / "clp-full", kept / "clp-full")
    (project / "models" / "champion.json").write_text('{"id": "abc", "method": "clp-full"}')
    assert list(policies(project)) == ["champion (clp-full)", "clp-full", "rewarded-soups"]
    (project / "models" / "champion.json").write_text("[]")
    assert list(policies(project)) == ["clp-full", "rewarded-soups"]


def test_other_objectives_and_parameters_of_another_version_are_refused(steered):
    run = Store(steered / "frontier.duckdb").run()
    folder = steered / "models" / "clp-full"
    renamed = run["params"] | {"rewards": {"a": {"kind": "brevity", "min_words": 3}}}
    with pytest.raises(ClpError, match=r"steers informativeness, brevity, but the run has a"):
        Playground.load(folder, steered, renamed, run["normalization"])
    with pytest.raises(ClpError, match=r"another version of CLP Lightning \(training"):
        Playground.load(folder, steered, run["params"] | {"training": {"steps": 1}}, run["normalization"])


def page(store: Path, monkeypatch) -> AppTest:
    monkeypatch.syspath_prepend(str(REPOSITORY / "dashboard"))
    script = (
        f"from views import playground\nfrom clp_lightning.store import Store\nplayground.page(Store({str(store)!r}))\n"
    )
    app = AppTest.from_string(script, default_timeout=120).run()
    assert not app.exception, app.exception
    return app


def written(app: AppTest) -> list[str]:
    return [block.proto.body for block in app.get("html") if "class='answer-" in block.proto.body]


def test_the_page_writes_and_the_slider_changes_the_text(steered, monkeypatch):
    app = page(steered / "frontier.duckdb", monkeypatch)
    before = written(app)
    assert len(before) == 3 and before[1] != before[2]
    app.slider(key="weight-A").set_value(50).run()
    after = written(app)
    assert after[0] == before[0] and after[1] != before[1] and after[2] == before[2]
    app.selectbox(key="document").set_value("a text of my own").run()
    assert "Write a text" in app.info[0].value and not written(app)
    area = app.text_area[0]
    area.set_value("<script>alert(1)</script> queue " * 40).run()
    assert not app.exception and "do not fit" in app.warning[0].value
    assert len(written(app)) == 3


def test_the_first_document_is_the_one_that_tells_most(monkeypatch, tmp_path):
    from results_factory import write_results

    from clp_lightning.store.queries import publish

    monkeypatch.syspath_prepend(str(REPOSITORY / "dashboard"))
    from views import playground

    parameters = config()
    write_results(tmp_path / "results", parameters)
    path = tmp_path / "results" / "clp-full" / "results.parquet"
    rows = pd.read_parquet(path)
    rows.loc[rows.prompt_id != "service-007", "response"] = "always the same"
    rows.to_parquet(path, index=False)
    run = publish(tmp_path / "results", tmp_path / "frontier.duckdb", parameters)
    store = Store(tmp_path / "frontier.duckdb")
    view = type("View", (), {"run_id": run, "points": store.points(run), "objectives": list(parameters.objectives)})
    documents = store.documents(run).set_index("prompt_id").document
    assert documents.index[playground.most_telling(store, view, "clp-full", documents)] == "service-007"
    assert playground.most_telling(store, view, "not evaluated", documents) == 0


def test_without_a_model_the_page_says_how_to_get_one(tmp_path, published, monkeypatch):
    shutil.copy(published / "frontier.duckdb", tmp_path)
    app = page(tmp_path / "frontier.duckdb", monkeypatch)
    assert "There is no model in" in app.info[0].value and "`dvc repro` trains one" in app.info[0].value


def test_a_model_of_other_objectives_is_one_sentence(steered, tmp_path, monkeypatch):
    from results_factory import write_results

    from clp_lightning.store.queries import publish

    shutil.copytree(steered / "models", tmp_path / "models", symlinks=True)
    other = config(rewards={"a": {"kind": "brevity", "min_words": 3}})
    write_results(tmp_path / "results", other)
    publish(tmp_path / "results", tmp_path / "frontier.duckdb", other)
    app = page(tmp_path / "frontier.duckdb", monkeypatch)
    assert "but the run has a" in app.warning[0].value


def test_equal_answers_share_a_star(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "dashboard"))
    from views import playground

    found = playground.stars(np.array([[0.0, 0.0], [1.0, 0.5], [1.0, 0.5]]))
    assert [(label, x, y) for label, x, y, _ in found] == [("reference", 0.0, 0.0), ("A = B", 1.0, 0.5)]
    assert playground.stars(np.array([[0.0], [1.0], [2.0]]))[0][1:3] == (0.0, 0.5)
