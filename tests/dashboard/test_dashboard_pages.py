"""The pages beside the frontier, each on real stores through AppTest, and the functions that they draw from."""

import json
import shutil
from xml.etree import ElementTree

import duckdb
import numpy as np
import pandas as pd
import pytest
from locations import REPOSITORY
from results_factory import config, write_arena, write_results
from streamlit.testing.v1 import AppTest

from clp_lightning.store.queries import Store, publish

PAGES = ("dominance", "steering", "samples", "runs")


@pytest.fixture(autouse=True)
def _dashboard_modules(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "dashboard"))


def run(page: str, store) -> AppTest:
    script = f"from views import {page}\nfrom clp_lightning.store import Store\n{page}.page(Store({str(store)!r}))\n"
    app = AppTest.from_string(script, default_timeout=60).run()
    assert not app.exception, app.exception
    return app


def shown(app: AppTest) -> str:
    elements = [
        *app.text,
        *app.markdown,
        *app.caption,
        *app.warning,
        *app.info,
        *app.title,
        *app.header,
        *app.subheader,
    ]
    return "\n".join(str(element.value) for element in elements)


def written(app: AppTest) -> list[pd.DataFrame]:
    """The tables that are HTML, their cells as texts."""
    found = []
    for element in app.get("html"):
        _, start, body = element.proto.body.partition('<div class="readable"')
        if start:
            cells = [
                ["".join(cell.itertext()) for cell in row] for row in ElementTree.fromstring(start + body).iter("tr")
            ]
            found.append(pd.DataFrame(cells[1:], columns=cells[0]))
    return found


@pytest.fixture(scope="module")
def arena(tmp_path_factory):
    """A store with two runs of several methods, the second with another learning rate, and one decision."""
    return write_arena(tmp_path_factory.mktemp("arena"), [{"learning_rate": rate} for rate in (1e-3, 2e-3)])


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", ["missing", "foreign", "empty", "old"])
def test_a_store_that_cannot_be_shown_is_one_plain_sentence(page, kind, tmp_path, published):
    path = tmp_path / "frontier.duckdb"
    if kind == "foreign":
        path.write_text("something else")
    elif kind in ("empty", "old"):
        shutil.copy(published / "frontier.duckdb", path)
        with duckdb.connect(path) as connection:
            connection.execute("DELETE FROM runs" if kind == "empty" else "UPDATE meta SET schema_version = 3")
    app = run(page, path)
    assert len(app.warning) == 1 and "make repro" in app.warning[0].value


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_one_and_three_objectives(page, names, tmp_path):
    parameters = config(rewards={name: {"kind": "brevity", "min_words": 3} for name in names})
    write_results(tmp_path / "results", parameters)
    publish(tmp_path / "results", tmp_path / "frontier.duckdb", parameters)
    assert not run(page, tmp_path / "frontier.duckdb").warning


def test_dominance_says_who_is_ahead_and_how_sure_that_is(arena):
    from views import dominance

    app = run("dominance", arena)
    # the truth: J of a radius is proportional to it, 1.2 against 1.0, and so is KL, 1.5 times the radius
    assert "**clp-attn** has the largest mean J, 0.147 more than" in shown(app)
    assert "Their KL is 1.80 and 1.50 nats." in shown(app)
    store = Store(arena)
    run_id = store.run()["run_id"]
    view = type(
        "View", (), {"run_id": run_id, "methods": ["clp-attn", "rewarded-soups"], "metrics": store.metrics(run_id)}
    )
    shares = dominance.pair_matrix(store, view, "dominated_share")
    assert shares.loc["clp-attn", "rewarded-soups"] == 1 and shares.loc["rewarded-soups", "clp-attn"] == 0
    # every point of the larger circle is outside of the smaller, also less what its KL costs
    assert dominance.pair_matrix(store, view, "regularized_dominated_share").loc["clp-attn", "rewarded-soups"] == 1
    j = dominance.pair_matrix(store, view, "mean_j")
    assert j.loc["clp-attn", "rewarded-soups"] > 0.95 and j.loc["rewarded-soups", "clp-attn"] < 0.05
    ahead = dominance.pair_matrix(store, view, "hypervolume")
    assert ahead.loc["clp-attn", "rewarded-soups"] == pytest.approx(1 - ahead.loc["rewarded-soups", "clp-attn"])
    assert ahead.loc["clp-attn", "rewarded-soups"] > 0.95 and pd.isna(ahead.loc["clp-attn", "clp-attn"])
    (measures,) = (table.set_index("method") for table in written(app))
    assert list(measures.index) == store.methods(run_id).method.tolist()
    values = store.metrics(run_id).query("target.isna()").set_index(["method", "metric"]).value
    for method in measures.index:
        assert measures.hypervolume[method] == f"{values[method, 'hypervolume']:.2f}"
        assert measures["mean J"][method] == f"{values[method, 'mean_j']:z.3f}"
        assert measures["KL"][method] == f"{values[method, 'mean_kl']:z.2f}"
    assert measures.loc["reference", "mean w·R"] == "–"  # it has no weighting


def test_methods_and_statistic_are_chosen_and_garbage_in_the_address_is_the_default(arena):
    app = run("dominance", arena)
    app.pills(key="methods").set_value(["clp-full", "rewarded-soups"]).run()
    assert not app.exception and "Pairs compared: 1; " in shown(app)
    app.query_params["statistic"] = "<script>"
    app.query_params["methods"] = "nonsense"
    app.query_params["run"] = "' OR 1=1 --"
    app.run()
    assert not app.exception and not app.warning


@pytest.mark.parametrize(("page", "count"), [("frontier", 3), ("dominance", 3), ("steering", 5), ("runs", 2)])
@pytest.mark.parametrize("dark", [False, True])
def test_figures_are_sent_so_that_plotly_draws_them_once(page, count, dark, arena, monkeypatch):
    from shared import common

    monkeypatch.setattr(common, "dark", lambda: dark)
    figures = run(page, arena).get("plotly_chart")
    assert len(figures) == count
    for figure in figures:
        # Streamlit hands plotly a copy of each figure: a template or a typed array of the copy counts as another one
        spec = figure.proto.spec
        assert '"bdata"' not in spec and '"template"' not in spec
        assert json.loads(spec)["layout"]["datarevision"] == 1
    text = "".join(figure.proto.spec for figure in figures)
    assert ("#1F2933" in text, "#E6EAEE" in text) == (not dark, dark)


def test_dominance_says_what_remains_over_training_seeds(arena, tmp_path):
    assert "Another training seed may fall otherwise" in shown(run("dominance", arena))
    store = write_arena(tmp_path, [{"seed": seed} for seed in (0, 1, 2)])
    text = shown(run("dominance", store))
    # the factory's J at w is 0.95 reach (w^1.5 + (1 - w)^1.5) - 0.075 reach, of reach 1.2 and 1.0 in every run
    w = np.arange(5) / 4
    ahead = 0.2 * np.mean(0.95 * (w**1.5 + (1 - w) ** 1.5) - 0.075)
    assert f"**clp-attn** has the largest mean J, {ahead:.3f} more" in text
    assert f"Over 3 training seeds and the prompts together {ahead:.3f} more (" in text


def test_steering_says_who_is_ahead_where(arena):
    app = run("steering", arena)
    # the first two methods that are steered, clp-full and clp-attn: the latter reaches 1.2 against 1.0 at every weighting
    text = shown(app)
    assert "What training maximizes, by weighting" in text and "(alpha 0.05)" in text
    assert "J of clp-full minus J of clp-attn" in text and "clp-full is shown to be ahead at 0" in text
    app.selectbox(key="two").set_value(0).run()  # the reference policy against clp-full
    assert not app.exception and "J of reference minus J of clp-full" in shown(app)


def test_a_switch_draws_frontiers_less_what_kl_costs(arena):
    store = Store(arena)
    points = store.points(store.run()["run_id"], regularized=True)
    app = AppTest.from_string(
        f"from views import frontier\nfrom clp_lightning.store import Store\nfrontier.page(Store({str(arena)!r}))\n",
        default_timeout=60,
    )
    app.query_params["vectors"] = "Regularized"
    app.run()
    assert not app.exception
    spec = json.loads(app.get("plotly_chart")[0].proto.spec)
    assert spec["layout"]["xaxis"]["title"]["text"] == "informativeness ((1 - alpha) R - alpha KL)"
    (trace,) = (trace for trace in spec["data"] if trace.get("name") == "clp-attn")
    own = points[points.method == "clp-attn"]
    assert sorted(trace["x"]) == pytest.approx(sorted(own["reward:informativeness"]))


def test_steering_table_has_the_known_tau(arena):
    app = run("steering", arena)
    (table,) = written(app)
    full = table[(table.method == "clp-full") & (table.objective == "brevity")].iloc[0]
    assert full.tolist() == ["clp-full", "brevity", "1.00", "1.00", "0"]
    app.selectbox(key="monitor").set_value("length").run()
    assert not app.exception
    app.pills(key="methods").set_value(["reference"]).run()
    assert "take no weighting" in app.warning[0].value


def test_kl_strength_is_drawn_where_runs_differ_in_it(arena, tmp_path):
    assert "All comparable runs have one KL strength" in shown(run("steering", arena))
    for alpha, reach in ((0.05, 1.0), (0.2, 0.5)):  # the factory's KL is 1.5 times the reach
        parameters = config(training=config().training.model_dump() | {"alpha": alpha})
        write_results(tmp_path / "results", parameters, reach={"clp-full": reach})
        publish(tmp_path / "results", tmp_path / "frontier.duckdb", parameters)
    app = run("steering", tmp_path / "frontier.duckdb")
    assert "each strength is a training" in shown(app)
    from views import steering

    store = Store(tmp_path / "frontier.duckdb")
    view = type("View", (), {"run": store.run(), "methods": ["reference", "clp-full"]})
    table = steering.by_strength(store, view)
    assert table.alpha.tolist() == [0.05, 0.2] and table.kl.tolist() == pytest.approx([1.5, 0.75])


def test_samples_mark_what_changes_and_interpret_nothing():
    from views import samples

    assert samples.marked("the <b>name</b> of it", "the name of it") == "the <mark>&lt;b&gt;name&lt;/b&gt;</mark> of it"
    assert samples.marked("same words", "same words") == "same words"
    assert samples.marked("", "x") == "<i>(an empty text)</i>"
    assert samples.marked("<script>", None) == "&lt;script&gt;"


def test_samples_list_the_worst_answers_first_and_filter(arena):
    app = run("samples", arena)
    worst = written(app)[-1]
    assert len(worst) == 24 and worst.informativeness.astype(float).is_monotonic_increasing
    app.number_input(key="at-most").set_value(-1e9).run()
    assert "No answer has so little" in shown(app)
    app.text_input(key="search").set_value("no such words").run()
    assert "No document contains" in shown(app) and not app.exception


def test_runs_show_history_decision_stages_and_differences(arena):
    from views import runs

    app = run("runs", arena)
    text = shown(app)
    assert "No policy has been promoted yet" in text  # no models/champion.json beside this store
    assert "61 s together" in text
    assert app.dataframe[0].value.outcome.tolist() == ["promoted"]
    older = Store(arena).runs().run_id.iloc[1]
    app.selectbox(key="other").set_value(older).run()
    table = app.dataframe[-1].value
    assert table.parameter.tolist() == ["training.learning_rate"]
    assert runs.differences({"a": {"b": 1}}, {"a": {"b": 1}}).empty


def test_the_champion_is_named_or_its_file_is_said_to_be_broken(tmp_path):
    from views import runs

    path = tmp_path / "champion.json"
    path.write_text(json.dumps({"id": "x", "method": "clp-full", "promoted_at": "2026-01-01", "history": ["w"]}))
    assert runs.champion_sentence(path) == "Champion: **clp-full** `x`, promoted 2026-01-01 UTC, 1 before it."
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        assert "cannot be read" in runs.champion_sentence(path)


def test_a_document_of_which_the_heading_is_seen_goes_on_when_it_is_opened():
    from shared.tables import _folded

    assert _folded("one <line>") == "one &lt;line&gt;"
    assert _folded("a line\nand another") == "<details><summary>a line</summary>and another</details>"
    text = "word " * 30
    assert _folded(text) == f"<details><summary>{text[:89]}…</summary>…{text[89:]}</details>"
    assert _folded("") == ""


def test_bands_over_seeds_are_stairs_between_what_all_runs_attain_and_what_one_does(monkeypatch):
    import charts

    # one run attains (2, 1) and (1, 3), all of them (1, 1); a twentieth of the ranges 1 and 2 below (1, 1) is (0.95, 0.9)
    surfaces = {"clp-full": {1 / 3: np.array([[2.0, 1.0], [1.0, 3.0]]), 1.0: np.array([[1.0, 1.0]])}}
    band = charts.attainment_bands(charts.drawn([], 400), surfaces, {"clp-full": ("#0072B2", "circle")}).data[0]
    around = [[0.95, 3], [1, 3], [1, 1], [2, 1], [2, 0.9], [1, 0.9], [1, 1], [0.95, 1]]
    assert np.allclose(np.stack([band.x, band.y], 1), around)
    corner = np.array([0.0, 0.0])
    steps = charts.stairs(np.array([[2.0, 1.0], [1.0, 3.0]]), corner).tolist()
    assert steps == [[0, 3], [1, 3], [1, 1], [2, 1], [2, 0]]


def test_the_first_page_offers_bands_where_a_run_has_other_seeds(tmp_path):
    store = write_arena(tmp_path, [{"seed": seed} for seed in (0, 1, 2)])
    app = run("frontier", store)
    before = len(json.loads(app.get("plotly_chart")[0].proto.spec)["data"])
    app.toggle(key="bands").set_value(True).run()
    assert not app.exception and "(training seeds 2, 1, 0)" in shown(app)
    methods = 5
    after = json.loads(app.get("plotly_chart")[0].proto.spec)["data"]
    assert len(after) == before + 2 * methods  # a band and a median each


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A store of data without reference answers, as the tutorial's: no summaries, no ROUGE, no training curves, no stages."""
    folder, settings = tmp_path_factory.mktemp("bare"), config()
    write_results(folder / "results", settings)
    for file in (folder / "results").glob("*/results.parquet"):
        frame = pd.read_parquet(file)
        frame["reference_summary"] = pd.Series([None] * len(frame), dtype="string")
        frame["monitor:rouge_l"] = np.nan
        frame.to_parquet(file, index=False)
    for curve in (folder / "results").glob("*/training_curve.csv"):
        curve.unlink()
    publish(folder / "results", folder / "frontier.duckdb", settings)
    return folder / "frontier.duckdb"


@pytest.mark.parametrize("page", ["frontier", "dominance", "steering", "samples", "playground", "runs"])
def test_every_page_does_without_what_is_optional(page, bare, monkeypatch):
    monkeypatch.chdir(bare.parent)
    app = run(page, bare)
    assert "Summary written by people" not in shown(app) and not app.error


def test_documents_without_summaries_are_found(bare):
    store = Store(bare)
    run_id = store.run()["run_id"]
    everything = store.documents(run_id)
    assert len(everything) > 1 and everything.reference_summary.isna().all()
    assert len(store.documents(run_id, everything.document.iloc[0].split()[0])) >= 1
