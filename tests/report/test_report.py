"""The report: the JSON contract, the printed tables, the picture and the files."""

import csv
import io
import json
import re
import shutil
import struct
from pathlib import Path

import pytest
from results_factory import config, write_results
from rich.console import Console

from clp_lightning.errors import ClpError
from clp_lightning.report.html import write_html
from clp_lightning.report.labels import difference_sentence, method_styles
from clp_lightning.report.picture import picture
from clp_lightning.report.points import print_points
from clp_lightning.report.run import comparison, write_report
from clp_lightning.report.several import print_against, print_seeds, seeds_as_json
from clp_lightning.report.tables import print_table
from clp_lightning.store import runs
from clp_lightning.store.queries import Store, publish

RULE = {"kind": "brevity", "min_words": 3}


def publish_and_compare(folder: Path, **changes: object) -> dict:
    parameters = config(**changes)
    write_results(folder / "results", parameters)
    publish(folder / "results", folder / "frontier.duckdb", parameters)
    return comparison(Store(folder / "frontier.duckdb"))


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> dict:
    return publish_and_compare(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module", params=[1, 3])
def other_counts(request, tmp_path_factory) -> dict:
    names = ("informativeness", "brevity", "faithfulness")[: request.param]
    return publish_and_compare(tmp_path_factory.mktemp("report"), rewards={name: RULE for name in names})


def printed(compared: dict, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_table(compared, console)
    return console.file.getvalue()


def test_comparison_is_the_contract_of_clp_frontier_json(compared):
    assert json.loads(json.dumps(compared, allow_nan=False)) == compared
    assert {
        "run",
        "reference_point",
        "normalization",
        "methods",
        "seed",
        "corpus_hash",
        "comparisons",
    } <= compared.keys()
    assert compared["reference_point"] == {"informativeness": -3.0, "brevity": -3.0}
    assert [method["method"] for method in compared["methods"]] == ["reference", "clp-full", "rewarded-soups"]
    full = compared["methods"][1]
    assert {"method", "hypervolume", "hypervolume_interval", "points", "cost"} <= full.keys()
    assert full["hypervolume_interval"][0] < full["hypervolume"] < full["hypervolume_interval"][1]
    assert full["points"][1]["weighting"] == {"informativeness": 0.25, "brevity": 0.75}
    # the truth of the results factory: (sqrt(w), sqrt(1 - w))
    assert full["points"][1]["rewards"] == pytest.approx({"informativeness": 0.5, "brevity": 0.75**0.5})
    low, high = full["points"][1]["intervals"]["informativeness"]
    assert low < 0.5 < high
    assert full["points"][1]["monitors"].keys() == {"rouge_l", "coverage", "kl", "length", "distinct_2"}
    assert full["cost"]["rollouts"] == 1600
    assert full["steerability"] == {"informativeness": 1.0, "brevity": 1.0}
    assert full["dominated_share"]["rewarded-soups"]["value"] == 1.0
    assert compared["methods"][0]["points"][0]["weighting"] is None
    # J at w is 0.95 (w^1.5 + (1 - w)^1.5) - 0.05 * 1.5 of clp-full, 0.6 times that of the soups, 0 of the reference policy
    assert (compared["alpha"], compared["groups"]) == (0.05, 12)
    assert compared["computed_on"]["evaluation"] == "float32, cpu, 2 threads"
    at = full["by_weighting"][2]
    assert at["weighting"] == {"informativeness": 0.5, "brevity": 0.5}
    assert at["j"] == pytest.approx(0.95 * 2 * 0.5**1.5 - 0.075) and at["j_interval"][0] < at["j"] < at["j_interval"][1]
    assert full["mean_j"] == pytest.approx(sum(point["j"] for point in full["by_weighting"]) / 5)
    assert full["mean_kl"] == 1.5 and full["mean_regret"] == pytest.approx(0, abs=1e-9)
    soups = compared["methods"][2]
    assert soups["by_weighting"][2]["regret"] == pytest.approx(0.4 * at["j"])
    assert soups["regularized_points"][0]["rewards"]["brevity"] == pytest.approx(0.95 * 0.6 - 0.05 * 0.9)
    pair = next(
        pair for pair in compared["comparisons"] if pair["statistic"] == "mean_j" and pair["methods"][0] != "reference"
    )
    assert pair["difference"] == pytest.approx(0.4 * full["mean_j"]) and pair["kl"] == pytest.approx(
        {"clp-full": 1.5, "rewarded-soups": 0.9}
    )
    where = [each for each in compared["by_weighting"] if each["methods"] == ["clp-full", "rewarded-soups"]]
    assert where[2]["difference"] == pytest.approx(0.4 * at["j"]) and len(where) == 5


def test_a_difference_is_told_from_the_side_of_the_method_ahead():
    pair = {"methods": ["a", "b"], "difference": -0.5, "interval": [-0.9, -0.1], "probability": 0.02,
            "statistic": "hypervolume", "kl": {"a": 1.25, "b": 4.5}}  # fmt: skip
    assert difference_sentence(pair) == (
        "b encloses 0.50 more than a, 95 % interval [0.10, 0.90], with probability 98%, KL 4.50 against 1.25 nats"
    )
    undecided = difference_sentence(pair | {"interval": [-0.9, 0.1], "kl": None})
    assert undecided.endswith("98%; the interval includes 0, so neither is shown to be better")
    assert difference_sentence(pair | {"statistic": "mean_j"}) == (
        "b is ahead of a by 0.500 in mean J, 95 % interval [0.100, 0.900], with probability 98%, KL 4.50 against 1.25 nats"
    )


@pytest.mark.parametrize("width", [100, 120])
def test_the_tables_fit_and_show_every_number(compared, width):
    text = printed(compared, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert "…" not in text
    for expected in ("0.25 : 0.75", "reference point", "Seed 0", "tau", "Hypervolume", "24 prompts", "1,600", "dist-2"):
        assert expected in text
    for method in compared["methods"]:
        assert f"{method['hypervolume']:.2f} [{method['hypervolume_interval'][0]:.2f}," in text
        assert f"{method['mean_j']:.3f} [{method['mean_j_interval'][0]:.3f},".replace("-0.000", "0.000") in text
    assert "clp-full encloses" in text and "KL 1.50 against 0.90 nats" in " ".join(text.split())
    # what training maximizes comes first
    first, second = (
        text.index(words) for words in ("clp-full is ahead of rewarded-soups by", "Hypervolume of rewards")
    )
    assert text.index("mean J") < first < second < text.index("Hypervolume of (1 - alpha) R - alpha KL")
    assert "0.60  best" in text and "0.36 -0.24" in text  # of 0.5 : 0.5, see the contract's test
    assert "24 prompts of 12 groups" in text and "Evaluated on float32, cpu, 2 threads." in " ".join(text.split())


def test_tables_and_pictures_work_for_any_number_of_objectives(other_counts, tmp_path):
    assert "…" not in printed(other_counts, 120)
    picture(other_counts, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size < 400_000


def test_the_report_folder(compared, tmp_path):
    write_report(compared, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["frontier.json", "frontier.png", "points.csv"]
    assert json.loads((tmp_path / "frontier.json").read_text()) == compared
    png = (tmp_path / "frontier.png").read_bytes()
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(b"\x89PNG") and width > 1000 and height > 700 and len(png) < 400_000
    with (tmp_path / "points.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 11
    assert rows[0]["method"] == "reference" and rows[0]["w:brevity"] == ""
    assert rows[2]["w:brevity"] == "0.75" and float(rows[2]["brevity"]) == pytest.approx(0.75**0.5)


def test_the_picture_as_svg_names_its_axes_and_methods(compared, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        picture(compared, tmp_path / "frontier.svg")
    text = (tmp_path / "frontier.svg").read_text()
    for expected in (
        "informativeness (standardized; higher is better)",
        "brevity (standardized; higher is better)",
        "clp-full: mean J 0.73",
        "KL 0.9, hypervolume",
        "0 : 1",
        "1 : 0",
    ):
        assert expected in text


@pytest.fixture(scope="module")
def many(tmp_path_factory) -> dict:
    """Six methods, one of them without results."""
    folder, values = tmp_path_factory.mktemp("many"), config().model_dump()
    full = values["methods"]["clp-full"]
    methods = values["methods"] | {"clp-prompt": full, "clp-attn": full, "lost": full}
    derived = {"logit-mixing": {"of": "rewarded-soups", "decoding": {"kind": "logit_mixing"}}}
    parameters = config(methods=methods, derived=derived)
    write_results(folder / "results", parameters)
    shutil.rmtree(folder / "results" / "lost")
    publish(folder / "results", folder / "frontier.duckdb", parameters)
    return {"store": Store(folder / "frontier.duckdb"), "compared": comparison(Store(folder / "frontier.duckdb"))}


def test_many_methods_are_set_against_the_baselines(many):
    compared = many["compared"]
    assert [method["method"] for method in compared["methods"]] == [
        "reference", "clp-full", "rewarded-soups", "clp-prompt", "clp-attn", "logit-mixing",
    ]  # fmt: skip
    text = printed(compared, 120)
    prose = " ".join(text.split())
    assert "Against rewarded-soups" in text and "Against clp-prompt" in text
    assert "0.25 : 0.75" not in text  # points only when asked for
    assert "Left out: lost. " in prose and "has not been evaluated" in prose
    assert "10 pairs of methods are compared" in prose  # five methods besides the reference
    assert "Budget: 1,600 rollouts each." in prose
    row = next(line for line in text.splitlines() if line.startswith("clp-full") and "%" in line)
    # the truth of the factory: radius 1 against 0.6 dominates all of it; the vertices tie in one objective but for noise
    j = 0.4 * next(m for m in compared["methods"] if m["method"] == "clp-full")["mean_j"]
    assert row.split()[:2] == ["clp-full", f"{j:.2f}"] and "1.5/0.9" in row and row.count("100% [80,100]") == 2
    console = Console(file=io.StringIO(), width=120)
    print_table(compared, console, points=True)
    assert "0.25 : 0.75" in console.file.getvalue()


def test_no_number_is_cut_off_on_a_narrow_terminal(other_counts):
    text = printed(other_counts, 80)
    points = text[: text.index("Monitored")]
    assert "…" not in points
    for method in other_counts["methods"]:
        for point in method["points"]:
            for low, high in point["intervals"].values():
                assert f"[{low:.2f},{high:.2f}]".replace("-0.00", "0.00") in points


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_points_of_a_policy_are_whole_at_any_width(count, width):
    names = ("informativeness", "brevity", "readability", "harmlessness", "politeness", "on_topic")[:count]
    point = {
        "weighting": {name: 0.12 for name in names}, "rewards": dict.fromkeys(names, -0.25),
        "intervals": {name: [-0.5 - n, 0.75] for n, name in enumerate(names)},
        "monitors": {"rouge_l": None, "coverage": 0.81, "kl": 12.34, "length": 123.4, "distinct_2": 0.98},
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=width)
    print_points({"objectives": names, "methods": [{"method": "rewarded-soups", "points": [point]}]}, "Title", console)
    text = console.file.getvalue()
    assert "…" not in text and max(len(line.rstrip()) for line in text.splitlines()) <= width
    shown = [*names, "coverage", "ROUGE-L", "length", "dist-2", "12.34", "123.4", "0.98"]
    shown += [f"[{-0.5 - n:.2f},0.75]" for n in range(count)]
    assert [word for word in shown if word not in text.split()] == []


def test_win_rates_and_dominance_probabilities_are_in_the_contract(many):
    full = next(method for method in many["compared"]["methods"] if method["method"] == "clp-full")
    wins = full["against"]["win_rate"]["rewarded-soups"]
    assert 0.5 < wins["interval"][0] < wins["value"] < wins["interval"][1] <= 1
    assert full["against"]["dominates_all"]["rewarded-soups"]["value"] > 0.5
    assert full["against"]["epsilon"]["rewarded-soups"]["value"] < 0
    assert full["metrics"]["expected_utility"]["value"] >= full["metrics"]["mean_inner_product"]["value"]
    assert full["by_objective"]["range"]["brevity"]["value"] == pytest.approx(1)


def test_the_html_report_is_one_file_that_loads_nothing(many, tmp_path):
    path = tmp_path / "deep" / "report.html"
    write_html(many["store"], None, path)
    text = path.read_text(encoding="utf-8")
    outside = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.search(r'(src|href)="(?!#)', outside) and "<script src" not in text
    for expected in (
        "logit-mixing",
        "informativeness",
        "Left out",
        "0.25 : 0.75",
        "What reproduces it",
        "best, KL 1.5",
    ):
        assert expected in outside
    assert outside.index("What training maximizes") < outside.index("Frontiers of mean rewards")
    assert text.count("window.PlotlyConfig") == 1  # plotly's script stands in it once


def test_runs_and_seeds_print(many, tmp_path):
    store = many["store"]
    run = store.run()["run_id"]
    for shown, values in (
        (print_against, runs.against(store, run, run)),
        (print_seeds, seeds_as_json(runs.over_seeds(store, runs.siblings(store)))),
    ):
        json.dumps(values, allow_nan=False)
        console = Console(file=io.StringIO(), width=120)
        shown(values, console)
        assert "clp-full" in console.file.getvalue() and "…" not in console.file.getvalue()
    rows = runs.against(store, run, run)["methods"]
    assert all(found["difference"] == 0 for row in rows for found in row["measures"].values())


def test_styles_are_fixed_for_known_methods_and_distinct_for_others():
    styles = method_styles(["reference", "mine", "clp-full", "yours"])
    assert styles["clp-full"] == method_styles(["clp-full"])["clp-full"]
    assert len({colour for colour, _ in styles.values()}) == 4


def test_a_missing_store_is_one_sentence(tmp_path):
    with pytest.raises(ClpError, match=r"does not exist yet; run `make repro`"):
        comparison(Store(tmp_path / "frontier.duckdb"))
