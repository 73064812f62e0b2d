"""The dashboard on real stores: its logic through AppTest, and once as a person sees it, in a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from results_factory import ROOT, config, write_results
from streamlit.testing.v1 import AppTest

from clp_lightning.store import Store, publish

APP = ROOT / "dashboard" / "app.py"
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
    for expected in (run_id, "24 unseen prompts", "clp-full encloses", "reference point (-3, -3)", "not the spread"):
        assert expected in text
    table = app.table[0].value
    assert list(table[""]) == ["reference", "clp-full", "rewarded-soups"]
    assert table.set_index("").loc["clp-full", "dominates rewarded-soups"] == "100%"
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
    app.button_group[0].set_value(["clp-full"]).run()
    assert not any("[rewarded-soups]" in element.value for element in app.text)
    app.button_group[0].set_value([]).run()
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


def test_one_and_three_objectives(tmp_path, monkeypatch):
    for names in (("a",), ("a", "b", "c")):
        parameters = config(rewards={name: {"kind": "brevity", "min_words": 3} for name in names})
        folder = tmp_path / str(len(names))
        write_results(folder / "results", parameters)
        publish(folder / "results", folder / "frontier.duckdb", parameters)
        app = run(folder / "frontier.duckdb", monkeypatch)
        assert "clp-full encloses" in shown(app)
        assert not app.warning


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


@pytest.fixture
def server(project) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "streamlit", "run", str(APP), "--server.port", str(port)]
    command += ["--", "--store", str(project / "frontier.duckdb")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until and process.poll() is None, "streamlit did not start"
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_in_a_browser(server, project, width):
    from playwright.sync_api import sync_playwright

    chromium = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport={"width": width, "height": 900})
        errors, requests = [], []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.on("websocket", lambda socket: requests.append(socket.url))
        page.goto(server)
        page.get_by_text("How this run was made").wait_for(timeout=60_000)
        page.locator(".js-plotly-plot").nth(1).wait_for()
        middle = page.get_by_text("Creates the resource of CreateBucket0 in the [clp-full]", exact=True)
        middle.wait_for()
        page.get_by_role("slider").press("ArrowRight")
        page.get_by_text("Creates the resource of CreateBucket0 in the Region that [clp-full]", exact=True).wait_for()
        assert middle.count() == 0
        # nothing is wider than the window
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width

        # a publication shows up by itself
        write_results(project / "results", CONFIG, seed=77)
        run_id = publish(project / "results", project / "frontier.duckdb", CONFIG)
        page.get_by_text(f"Run {run_id}").first.wait_for(timeout=30_000)
        browser.close()
    assert errors == []
    assert {url.split("/")[2] for url in requests if not url.startswith(("data:", "blob:"))} == {server.split("/")[2]}
