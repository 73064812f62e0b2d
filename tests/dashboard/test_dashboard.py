"""The dashboard's first page on real stores, through AppTest; test_browser.py sees it as a person does."""

import os
import re
from pathlib import Path

import duckdb
import pytest
from locations import REPOSITORY
from results_factory import config, write_results
from streamlit.testing.v1 import AppTest

from clp_lightning.store.queries import Store, publish

APP = REPOSITORY / "dashboard" / "app.py"
CONFIG = config()


@pytest.fixture(autouse=True)
def _dashboard_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(APP.parent))  # as `streamlit run` does


def run(store: Path, monkeypatch) -> AppTest:
    monkeypatch.setenv("CLP_STORE", str(store))
    app = AppTest.from_file(str(APP), default_timeout=60).run()
    assert not app.exception
    return app


def shown(app: AppTest) -> str:
    elements = [*app.text, *app.markdown, *app.caption, *app.warning, *app.info, *app.title, *app.header]
    return "\n".join(str(element.value) for element in elements)


def test_the_page_shows_the_run_its_comparison_and_texts(project, monkeypatch):
    app = run(project / "frontier.duckdb", monkeypatch)
    text = shown(app)
    run_id = Store(project / "frontier.duckdb").run()["run_id"]
    for expected in (
        run_id,
        "24 unseen prompts",
        "clp-full is ahead of rewarded-soups by",
        "reference point (-3, -3)",
        "not the spread",
    ):
        assert expected in text
    (table,) = [element.proto.body for element in app.get("html") if "<table>" in element.proto.body]
    lines = [re.findall("<t[hd][^>]*>(.*?)</t[hd]>", line) for line in table.split("</tr>")]
    assert lines[0][1:5] == ["KL", "dominates reference", "dominates clp-full", "dominates rewarded-soups"]
    assert [line[0] for line in lines[1:4]] == ["reference", "clp-full", "rewarded-soups"]
    assert lines[2][1:5] == ["1.50", "100%", "–", "100%"]
    assert not app.warning
    texts = [element.value for element in app.text]
    # shown as text: neither Markdown nor HTML of a document is interpreted
    assert any("<b>creates</b> a *new*" in value for value in texts)


def test_the_weighting_changes_the_texts(project, monkeypatch):
    app = run(project / "frontier.duckdb", monkeypatch)
    assert "Creates the resource of CreateBucket0 in the [clp-full]" in [element.value for element in app.text]
    app.select_slider[0].set_value(0).run()
    assert not app.exception
    texts = [element.value for element in app.text]
    assert "Creates the resource [clp-full]" in texts
    # the reference policy takes no weighting: its text stays
    assert "Creates the resource of CreateBucket0 in the Region that you specify" in texts


def test_search_and_choice_of_document_and_methods(project, monkeypatch):
    app = run(project / "frontier.duckdb", monkeypatch)
    app.text_input[0].set_value("tagqueue").run()
    assert len(app.selectbox[0].options) == 4
    assert "Creates a TagQueue5 resource." in [element.value for element in app.text]
    app.selectbox[0].set_value("service-011").run()
    assert "Creates a TagQueue11 resource." in [element.value for element in app.text]
    app.button_group[1].set_value(["clp-full"]).run()  # the first is the switch to regularized rewards
    assert not any("[rewarded-soups]" in element.value for element in app.text)
    app.button_group[1].set_value([]).run()
    assert "Choose a method" in shown(app)
    app.text_input[0].set_value("no such words").run()
    assert "No document contains" in shown(app)
    assert not app.exception


def test_an_earlier_run_can_be_chosen(project, monkeypatch):
    first = Store(project / "frontier.duckdb").run()["run_id"]
    write_results(project / "results", CONFIG, seed=50)
    second = publish(project / "results", project / "frontier.duckdb", CONFIG)
    app = run(project / "frontier.duckdb", monkeypatch)
    assert f"Run {second}" in shown(app)
    app.selectbox(key="run").set_value(first).run()
    assert f"Run {first}" in shown(app)


def test_a_new_publication_is_shown(project, monkeypatch):
    app = run(project / "frontier.duckdb", monkeypatch)
    write_results(project / "results", CONFIG, seed=51)
    run_id = publish(project / "results", project / "frontier.duckdb", CONFIG)
    app.run()
    assert f"Run {run_id}" in shown(app)


def test_pictures_for_one_three_and_four_objectives(tmp_path, monkeypatch):
    pictures = {1: [], 3: ["plane", "weightings", "rotatable"], 4: ["parallel", "plane"]}
    for names in (("a",), ("a", "b", "c"), ("a", "b", "c", "d")):
        parameters = config(rewards={name: {"kind": "brevity", "min_words": 3} for name in names})
        folder = tmp_path / str(len(names))
        write_results(folder / "results", parameters)
        publish(folder / "results", folder / "frontier.duckdb", parameters)
        app = run(folder / "frontier.duckdb", monkeypatch)
        assert "clp-full is ahead of" in shown(app)
        assert not app.warning
        for picture in pictures[len(names)]:
            app.button_group(key="picture").set_value(picture).run()
            assert not app.exception and not app.warning, picture


@pytest.mark.parametrize("kind", ["missing", "foreign", "truncated", "empty"])
def test_a_store_that_cannot_be_shown_is_one_plain_sentence(project, monkeypatch, kind):
    path = project / "frontier.duckdb"
    if kind == "missing":
        path.unlink()
    elif kind == "foreign":
        path.write_text("something else")
    elif kind == "truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        with duckdb.connect(path) as connection:
            connection.execute("DELETE FROM runs")
    app = run(path, monkeypatch)
    assert len(app.warning) == 1
    assert "make repro" in app.warning[0].value and str(path) in app.warning[0].value
    assert "Traceback" not in shown(app)
