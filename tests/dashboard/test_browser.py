"""The dashboard as a person sees it: every page in headless Chromium, loaded, used, and compared with the store."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from locations import REPOSITORY
from processes import wait_until
from results_factory import config, write_arena, write_results

from bench.pages.browsing import PAGES, Visit, chromium, serving
from clp_lightning.store.queries import Store, publish

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        if found is None:
            pytest.skip("no chromium on this machine")
        yield found


@pytest.fixture(scope="module")
def arena(tmp_path_factory) -> Path:
    """Three training seeds of four methods, stages, one decision."""
    return write_arena(tmp_path_factory.mktemp("browsed"), [{"seed": seed} for seed in range(3)])


@pytest.fixture(scope="module")
def address(arena):
    with serving(arena) as found:
        yield found


@pytest.fixture
def visit(browser, address):
    visiting = Visit(browser, address)
    yield visiting
    visiting.page.close()
    assert visiting.problems == []


def drawn(visit, key: str, count: int) -> list[dict]:
    traces = visit.traces(key)
    assert len(traces) >= count, [trace["name"] for trace in traces]
    return traces


def test_frontier_draws_the_stores_points_and_a_click_shows_their_texts(visit, arena):
    page = visit.open("Frontier")
    store = Store(arena)
    points = store.points(store.run()["run_id"])
    for method in ("reference", "clp-full", "clp-attn"):
        own = points[points.method == method]
        (trace,) = (t for t in drawn(visit, "frontier", 10) if t["name"] == method)
        expected = own[["reward:informativeness", "reward:brevity"]].to_numpy()  # drawn with those of the front first
        assert sorted(zip(trace["x"], trace["y"], strict=True)) == [
            pytest.approx(row) for row in sorted(expected.tolist())
        ]
    assert page.locator(".st-key-frontier .legendtext").all_text_contents() == list(points.method.unique())
    # the middle of five weightings of clp-attn, which nothing covers: click where plotly says that it is
    middle = points[(points.method == "clp-attn")].iloc[2]
    place = page.locator(".st-key-frontier .js-plotly-plot").evaluate(
        """(plot, [x, y]) => { const box = plot.getBoundingClientRect(), {xaxis, yaxis} = plot._fullLayout;
            return [box.x + xaxis._offset + xaxis.d2p(x), box.y + yaxis._offset + yaxis.d2p(y)]; }""",
        [middle["reward:informativeness"], middle["reward:brevity"]],
    )
    page.mouse.move(*place)
    page.locator(".hoverlayer").get_by_text("Creates the resource", exact=False).first.wait_for()
    page.mouse.click(*place)
    page.get_by_role("heading", name="clp-attn at 0.5 : 0.5").wait_for()
    page.get_by_text("Bands over 3 training seeds").click()
    page.get_by_text("from what all runs attain").wait_for()
    page.wait_for_function("document.querySelectorAll('.st-key-frontier .scatterlayer .js-fill').length >= 4")


def test_the_weighting_of_the_texts_moves_with_the_keyboard(visit):
    page = visit.open("Frontier")
    middle = page.get_by_text("Creates the resource of CreateBucket0 in the [clp-full]", exact=True)
    middle.wait_for()
    page.get_by_role("slider").press("ArrowRight")
    page.get_by_text("Creates the resource of CreateBucket0 in the Region that [clp-full]", exact=True).wait_for()
    assert middle.count() == 0


def test_dominance_draws_the_matrix_of_the_statistic_that_is_chosen(visit, arena):
    page = visit.open("Dominance")
    store = Store(arena)
    run = store.run()["run_id"]
    metrics, methods = store.metrics(run), list(store.points(run).method.unique())

    def expected(row, column, metric):
        found = metrics[(metrics.metric == metric) & (metrics.method == row) & (metrics.target == column)]
        return found.value.iloc[0]

    (trace,) = drawn(visit, "matrix", 1)
    one, other = methods.index("clp-attn"), methods.index("clp-full")
    pairs = store.comparisons(run).query("statistic == 'mean_j'").set_index(["method_a", "method_b"])
    assert trace["z"][one][other] == pytest.approx(1 - pairs.probability["clp-full", "clp-attn"])
    page.get_by_role("radio", name="Win rate").click()
    page.wait_for_url(re.compile("statistic=Win"))
    won = pytest.approx(expected("clp-attn", "clp-full", "win_rate"))
    assert wait_until(
        lambda: visit.traces("matrix")[0]["z"][one][other] == won, 20
    )  # the address changes before the figure
    assert "clp-attn has the largest mean J" in visit.shown()


def test_steering_draws_rewards_that_rise_with_their_weight(visit):
    visit.open("Steering")
    lines = {trace["name"]: trace for trace in drawn(visit, "steer-brevity", 4) if trace["name"]}
    # the truth: reach * sqrt(w)
    assert lines["clp-attn"]["y"] == pytest.approx([1.2 * w**0.5 for w in (0, 0.25, 0.5, 0.75, 1)])


def test_steering_draws_j_by_weighting_and_who_is_ahead_where(visit, arena):
    visit.open("Steering")
    store = Store(arena)
    values = store.objective(store.run()["run_id"])
    lines = {trace["name"]: trace for trace in drawn(visit, "objective", 5) if trace["name"]}
    assert list(lines) == list(values.method.unique())
    for method, own in values.groupby("method"):
        assert lines[method]["y"] == pytest.approx(own.j.tolist())
    pairs = store.by_weighting(store.run()["run_id"])
    own = pairs[(pairs.method_a == "clp-full") & (pairs.method_b == "clp-attn")]
    assert drawn(visit, "ahead", 2)[1]["y"] == pytest.approx(own.difference.tolist())


def test_samples_show_markup_as_text_and_mark_what_changes(visit):
    page = visit.open("Samples")
    answers = page.get_by_role("region", name="Answers by weighting")
    rows = answers.locator("tbody tr")
    rows.first.wait_for()
    assert rows.count() == 6  # the reference policy and five weightings
    assert answers.locator("mark").count() > 3
    markup = "<b>creates</b> a *new* resource"
    assert page.get_by_test_id("stText").get_by_text(markup, exact=False).count() == 1
    page.get_by_role("tab", name="Worst answers first").click()
    worst = page.get_by_role("region", name="Answers of reference")
    worst.locator("summary").first.click()
    assert markup in worst.locator("details").first.inner_text() and worst.locator("b, em").count() == 0
    page.get_by_role("tab", name="One document").click()
    page.get_by_label("Search the documents").fill("tagqueue11")
    page.keyboard.press("Enter")
    page.get_by_text("Creates a TagQueue11 resource.", exact=True).wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").first.click()
    assert "clp-full" in pd.read_csv(download.value.path()).method.tolist()


def test_runs_draw_history_and_stages(visit, arena):
    page = visit.open("Runs")
    history = Store(arena).history()
    (trace,) = (t for t in drawn(visit, "history", 4) if t["name"] == "clp-attn")
    assert trace["x"] == [1, 2, 3]
    assert trace["y"] == pytest.approx(history[history.method == "clp-attn"].value.tolist())
    (bars,) = drawn(visit, "stages", 1)
    assert bars["x"] == [61.0] and bars["y"] == ["sft"]
    assert (
        page.get_by_role("link", name="Scheduled runs in Prefect").get_attribute("href").startswith("http://127.0.0.1")
    )


def test_the_playgrounds_slider_changes_the_text(browser, steered):
    with serving(steered / "frontier.duckdb") as address:
        visit = Visit(browser, address)
        page = visit.open("Playground")
        page.locator(".answer-2").wait_for()
        page.locator(".st-key-landed .js-plotly-plot .main-svg").first.wait_for()
        assert violations(page) == []
        before = [page.locator(f".answer-{pane}").inner_text() for pane in range(3)]
        page.get_by_role("slider").first.press("ArrowLeft")
        page.wait_for_url(re.compile("weight-A=95"))
        for _ in range(9):
            page.get_by_role("slider").first.press("ArrowLeft")
        page.wait_for_url(re.compile("weight-A=50"))
        page.wait_for_function("before => document.querySelector('.answer-1')?.innerText !== before", arg=before[1])
        visit.settle()
        after = [page.locator(f".answer-{pane}").inner_text() for pane in range(3)]
        assert after[0] == before[0] and after[1] != before[1] and after[2] == before[2]
        stars = [trace for trace in visit.traces("landed") if trace["name"] is None]
        assert len(stars) >= 3
        area = page.get_by_label("Text", exact=True)
        area.fill("<img src=x onerror=alert(1)> **bold** queue")
        area.press("Control+Enter")
        visit.settle()
        assert page.locator("img[src=x]").count() == 0
        area.fill("queue " * 100)
        area.press("Control+Enter")
        visit.settle()
        assert re.search(
            r"reads only part of this text: \d+ of its \d+ tokens do not fit into generation\.max_prompt_tokens \(64\); its "
            r"end is left out\.", page.get_by_role("alert").inner_text(),
        )  # fmt: skip
        page.close()
    assert visit.problems == []


@pytest.mark.parametrize("title", PAGES)
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_nothing_is_wider_than_the_window_and_axe_finds_nothing_serious(browser, address, title, width, scheme):
    visit = Visit(browser, address, width, scheme)
    page = visit.open(title, width)
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= width
    found = violations(page)
    page.close()
    assert found == [] and visit.problems == []


def violations(page) -> list[str]:
    """Return the serious and critical violations that axe-core finds."""
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{rule['id']}: {rule['help']} at {[node['html'][:160] for node in rule['nodes'][:3]]}"
        for rule in Axe().run(page).response["violations"]
        if rule["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("title", PAGES)
def test_a_page_is_shared_by_its_address_and_garbage_in_it_is_the_default(browser, address, title):
    visit = Visit(browser, address)
    path = "" if title == "Frontier" else title.lower()
    garbage = (
        "run=%27%20OR%201=1&methods=%3Cscript%3E&statistic=x&weight-A=999&document=nobody&picture=x&x=1&y=2&bands=maybe"
    )
    visit.page.goto(f"{address}/{path}?{garbage}")
    visit.arrived(title)
    visit.settle()
    assert visit.page.get_by_test_id("stException").count() == 0
    assert visit.page.get_by_test_id("stAlertContentWarning").count() == 0
    visit.page.close()
    assert visit.problems == []


def test_a_foreign_file_is_said_and_the_next_publication_followed(browser, project):
    store, shown = project / "frontier.duckdb", []
    with serving(store) as address:
        visit = Visit(browser, address)
        page = visit.open("Frontier")
        (project / "beside").write_text("something else")
        (project / "beside").replace(store)
        page.get_by_text("There is nothing to show yet").wait_for(timeout=10_000)
        visit.arrived("Frontier")
        write_results(project / "results", config(), seed=77)
        shown.append(publish(project / "results", store, config()))
        page.get_by_text(f"Run {shown[0]}").first.wait_for(timeout=10_000)
        page.close()
    assert visit.problems == []


def test_publications_while_somebody_browses(browser, project):
    """No error is shown, and no view is older than 5 s (CLP_PUBLICATIONS=1000 takes a quarter of an hour)."""
    count = int(os.environ.get("CLP_PUBLICATIONS", "100"))
    command = [sys.executable, str(REPOSITORY / "tests" / "publisher.py"), str(project), str(count)]
    log, seen, first = project / "published.txt", [], Store(project / "frontier.duckdb").run()["run_id"]
    with serving(project / "frontier.duckdb") as address:
        visit = Visit(browser, address)
        page = visit.open("Frontier")
        with log.open("w") as out, subprocess.Popen(command, stdout=out) as publisher:
            while publisher.poll() is None:
                for title in PAGES:
                    visit.go(title)
                    until = time.monotonic() + 6
                    while time.monotonic() < until and publisher.poll() is None:
                        text = visit.shown()
                        assert "There is nothing to show" not in text and "encountered an error" not in text
                        found = re.search(r"Run ([0-9a-f]{16}), published", text)
                        if found:
                            seen.append((time.time(), found[1]))
                        page.wait_for_timeout(200)
        assert publisher.returncode == 0
        page.close()
    published = [(0.0, first)]
    published += [(float(when), run) for when, run in (line.split() for line in log.read_text().splitlines())]
    assert len(published) == count + 1 and len(seen) > count / 20
    assert len({run for _, run in seen}) > count / 50  # the page followed
    ages = [age(when, run, published) for when, run in seen]
    assert max(ages) <= 5, (
        f"{sum(old > 5 for old in ages)} of {len(ages)} views were older than 5 s: {sorted(ages)[-5:]}"
    )
    assert visit.problems == []
    print(f"{count} publications, {len(seen)} views, the oldest {max(ages):.1f} s, {visit.lost_clicks} clicks lost")


def age(when: float, run: str, published: list[tuple[float, str]]) -> float:
    """Return for how many seconds a view of `run` at `when` had been superseded; 0 for the newest."""
    earlier = [position for position, (then, _) in enumerate(published) if then <= when + 0.5]
    shown = [position for position in earlier if published[position][1] == run]
    assert shown, f"{run} was shown before it was published"
    newest = shown[-1]
    return 0.0 if newest == earlier[-1] else when - published[newest + 1][0]


def test_three_objectives_have_a_triangle_and_a_front_to_turn(browser, tmp_path):
    parameters = config(rewards={name: {"kind": "brevity", "min_words": 3} for name in ("a", "b", "c")})
    write_results(tmp_path / "results", parameters)
    publish(tmp_path / "results", tmp_path / "frontier.duckdb", parameters)
    with serving(tmp_path / "frontier.duckdb") as address:
        visit = Visit(browser, address)
        page = visit.open("Frontier")
        page.get_by_role("radio", name="Triangle of weightings").click()
        points = page.locator(".st-key-ternary .ternary .points path")
        points.first.wait_for()
        assert points.count() == 15  # a lattice of five per edge
        page.get_by_role("radio", name="All three, in 3D").click()
        page.locator(".st-key-rotatable .js-plotly-plot").wait_for()
        visit.settle()
        assert {trace["type"] for trace in visit.traces("rotatable")} == {"scatter3d"}
        page.close()
    # without a GPU, Chromium draws 3D in software and says so
    assert [problem for problem in visit.problems if "WebGL" not in problem and "GPU" not in problem] == []


@pytest.mark.parametrize("title", ["Frontier", "Dominance", "Steering", "Runs"])
def test_margins_suffice_so_that_no_figure_is_drawn_anew_for_its_labels(visit, title):
    page = visit.open(title)
    page.locator(".js-plotly-plot .main-svg").first.wait_for()
    visit.settle()
    wider = page.evaluate(
        """() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => {
            const {_size, margin} = plot._fullLayout;
            return ['l', 'r', 'b'].filter(side => _size[side] > margin[side] + 1)  // the legend's place, t, costs no drawing
                .map(side => `${plot.layout.height}: ${side} ${_size[side]} for ${margin[side]}`) })"""
    )
    assert wider == []


def test_the_hypervolumes_look_as_they_did(visit):
    import numpy as np
    from PIL import Image

    page = visit.open("Frontier")
    page.mouse.move(5, 5)
    picture = REPOSITORY / "reports" / "hypervolume_now.png"
    picture.parent.mkdir(exist_ok=True)
    page.locator(".st-key-hypervolume .js-plotly-plot").screenshot(path=picture)
    stored = Path(__file__).parent / "screens" / "hypervolume.png"
    now, then = (blocks(np.asarray(Image.open(path).convert("L"), float)) for path in (picture, stored))
    # a label that is missing or elsewhere moves its block's mean by about 11, another version of the browser by 1 or 2
    assert np.abs(now - then).max() < 6, f"{np.abs(now - then).max():.1f} of 255 at most; look at {picture}"


def blocks(picture):
    """Return the mean brightness of 8 x 8 blocks."""
    import numpy as np

    return np.array([[cell.mean() for cell in np.array_split(row, 8, axis=1)] for row in np.array_split(picture, 8)])
