"""First page: the frontier of every method, how they compare, and what the policies write."""

from typing import Any

import charts
import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from shared.common import View, choose_vectors, choose_view, guarded, plain, show, without_reference
from shared.tables import LABEL, Column, show_answers, show_table
from shared.texts import texts

from clp_lightning.report.labels import CAVEAT, difference_sentence, weighting_label
from clp_lightning.report.run import comparison
from clp_lightning.store.queries import REFERENCE, Store
from clp_lightning.store.runs import attainment, siblings

PLACE = 1  # among the pages

# Pictures of a frontier by the number of objectives (4: four and more), the first is the default.
KINDS = {1: ["plane"], 2: ["plane"], 3: ["plane", "weightings", "rotatable"], 4: ["parallel", "plane"]}
PICTURES = {
    "plane": "Two objectives", "weightings": "Triangle of weightings", "rotatable": "All three, in 3D",
    "parallel": "All objectives",
}  # fmt: skip
UNITS = {"rewards": "standardized", "regularized": "(1 - alpha) R - alpha KL"}
CLICKED = 12  # answers shown of a point that was clicked
FEW_PAIRS = 6
FEW_METHODS = 4  # with a column each in the table of dominated points


def page(store: Store) -> None:
    """Draw the page."""
    guarded("Frontier", "What each method offers: one point per trade-off.", _page, store)


def _page(store: Store) -> None:
    view = choose_view(store)
    run = view.run
    st.caption(
        f"Run {view.run_id}, published {run['published_at']:%d %B %Y, %H:%M} UTC. Every point is one weighting of the "
        f"rewards: the mean over {run['prompts']} unseen prompts, with 95 % intervals. Up and to the right is better."
    )
    kind, drawn = choose_vectors(store, view)
    _picture(store, drawn, kind)
    _methods(store, view)
    st.header("What the policies write")
    texts(store, view)
    _provenance(run)


def _picture(store: Store, view: View, vectors: str) -> None:
    """Draw the frontier in one of the ways that the number of objectives allows; a point that is clicked shows its texts."""
    objectives = view.objectives
    kinds = KINDS[min(len(objectives), 4)]
    kind = kinds[0]
    if len(kinds) > 1:
        kind = st.segmented_control(
            "Picture", kinds, default=kinds[0], format_func=PICTURES.__getitem__, key="picture", bind="query-params",
            required=True,
        )  # fmt: skip
    if kind == "rotatable":
        show(
            charts.rotatable_figure(view.points, objectives, view.styles),
            "rotatable",
            "Mean rewards of every method in 3D",
        )
        st.caption("Turn it with the mouse; the picture of two objectives has the intervals.")
        return
    if kind == "parallel":
        show(
            charts.parallel_figure(view.points, objectives, view.styles),
            "parallel",
            "Mean rewards of every point by objective",
        )
        st.caption("A line per weighting: all of its rewards.")
        return
    if kind == "weightings":
        left, right = st.columns(2)
        method = left.selectbox(
            "Method", without_reference(view.methods) or view.methods, key="on", bind="query-params"
        )
        coloured = right.selectbox("Coloured by", objectives, key="coloured", bind="query-params")
        own = view.points[view.points.method == method]
        figure = charts.ternary_figure(own, objectives, coloured)
        clicked = show(
            figure, "ternary", f"Mean {coloured} of {method} by weighting", on_select="rerun", selection_mode="points"
        )
        st.caption(
            "Each corner is all the weight on one objective. A policy that is steered is brightest at its corner."
        )
    else:
        axes = _choose_axes(objectives)
        figure = charts.frontier_figure(
            view.points, objectives, view.styles, axes, _samples(store, view), UNITS[vectors]
        )
        band = _bands(store, view, figure, regularized=vectors == "regularized")
        alt = f"Mean {vectors} of every method and weighting with 95 % intervals"
        clicked = show(figure, "frontier", alt, on_select="rerun", selection_mode="points")
        legend = "Hollow points are dominated by another point of their method. Click a point to read its texts."
        labelled = len(objectives) == 2 and len(view.methods) <= charts.FEW
        ends = f" The labels at the ends give the weighting, {' : '.join(objectives)}." if labelled else ""
        st.caption(legend + ends + band)
    _clicked(store, view, clicked)


def _samples(store: Store, view: View) -> dict[charts.Key, str]:
    """Return an answer to the first document for every point."""
    first = store.documents(view.run_id, "", 1).prompt_id.iloc[0]
    texts = store.texts(view.run_id, first).drop_duplicates(["method", "weighting_id"])
    return {(row.method, int(row.weighting_id)): row.response for row in texts.itertuples()}


def _bands(store: Store, view: View, figure: go.Figure, *, regularized: bool) -> str:
    """Offer bands over training seeds where the store has several; return what they mean once they are drawn."""
    if len(view.objectives) != 2:
        return ""
    same = siblings(store, view.run_id)
    if len(same) < 2 or not st.toggle(f"Bands over {len(same)} training seeds", key="bands", bind="query-params"):
        return ""
    surfaces = attainment(store, same, (1 / len(same), 0.5, 1.0), regularized=regularized)
    shown = {method: surfaces[method] for method in view.methods if method in surfaces}
    charts.attainment_bands(figure, shown, view.styles)
    seeds = ", ".join(str(run["training_seed"]) for run in same)
    return f" Bands: from what all runs attain to what one of them does, dotted the median (training seeds {seeds})."


def _clicked(store: Store, view: View, event: Any) -> None:
    """Show what was written at the point that was clicked."""
    points = [point for point in event.selection.points if "customdata" in point]
    if not points:
        return
    method, weighting_id = points[0]["customdata"][:2]
    chosen = view.points[(view.points.method == method) & (view.points.weighting_id == int(weighting_id))]
    if chosen.empty:
        return  # a click on the figure of an earlier publication
    weights = charts.weighting(chosen.iloc[0], view.objectives)
    where = "" if weights is None else f" at {weighting_label(weights)}"
    answers = store.answers_at(view.run_id, method, int(weighting_id), CLICKED)
    with st.container(border=True):
        st.subheader(f"{plain(method)}{where}", anchor=False)
        show_answers(answers, view.objectives, f"Answers of {method}{where}")


def _choose_axes(objectives: list[str]) -> tuple[str, str] | None:
    if len(objectives) < 3:
        return None
    left, right = st.columns(2)
    x = left.selectbox("Horizontal axis", objectives, index=0, key="x", bind="query-params")
    others = [name for name in objectives if name != x]
    return x, right.selectbox("Vertical axis", others, index=0, key="y", bind="query-params")


@st.cache_resource(max_entries=32, show_spinner=False)
def _compared(_store: Store, publication: tuple[int, int] | None, run_id: str) -> dict[str, Any]:
    """Compare a run's methods once for all sessions and reruns; the result is read only."""
    return comparison(_store, run_id)


def _methods(store: Store, view: View) -> None:
    st.header("How the methods compare")
    result = _compared(store, store.identity(), view.run_id)
    left, right = st.columns([4, 6], gap="large")
    with left:
        if view.leads == "mean_j":
            st.subheader("Mean J")
            show(
                charts.metric_figure(view.metrics, "mean_j", "mean J", view.styles),
                "mean-j",
                "Mean J of every method with its 95 % interval",
            )
            st.caption(
                "What training maximizes, (1 - alpha) w·R - alpha KL, averaged over the weightings. Larger is better."
            )
        st.subheader("Hypervolume")
        show(
            charts.metric_figure(view.metrics, "hypervolume", "hypervolume", view.styles),
            "hypervolume",
            "Hypervolume of every method with its 95 % interval",
        )
        point = ", ".join(f"{value:g}" for value in view.run["reference_point"])
        st.caption(
            f"The space a frontier of rewards encloses above the reference point ({point}). Larger is better, but it can be "
            "bought with KL, which mean J charges."
        )
    with right:
        st.subheader("Paired differences")
        pairs = [
            pair
            for pair in result["comparisons"]
            if pair["statistic"] == view.leads
            and set(pair["methods"]) <= set(view.methods)
            and (REFERENCE not in pair["methods"] or len(view.methods) == 2)
        ]
        if len(pairs) > FEW_PAIRS:
            st.markdown(f"{len(pairs)} pairs: the page **Dominance** has them all, with probabilities.")
        else:
            sentences = "\n".join(f"- {plain(difference_sentence(pair))}." for pair in pairs)
            st.markdown(sentences or "There is one method only.")
        st.caption(f"The same resamples of the prompts for both methods. {CAVEAT}")
        columns = _method_table(result, view.methods)
        dominance = any(column.title.startswith("dominates ") for column in columns)
        title = "KL, dominated points and steerability" if dominance else "KL and steerability"
        st.subheader(title)
        show_table(columns, title)
        if dominance:
            st.caption(
                "Dominates: the share of the named method's points that some point of the row's method beats in one "
                "objective and equals or beats in all."
            )
        st.caption("Steers: does more weight buy more reward? 1 always, 0 never (Kendall's tau).")


def _method_table(result: dict, shown: list[str]) -> list[Column]:
    """Return a row per method, KL, a column per method that it dominates (of a few) and per objective."""
    methods = {method["method"]: method for method in result["methods"] if method["method"] in shown}
    columns = [Column("method", methods, LABEL)]
    columns.append(Column("KL", [method["mean_kl"] for method in methods.values()], ".2f"))
    for other in methods if 1 < len(methods) <= FEW_METHODS else []:
        shares = [method["dominated_share"].get(other) for method in methods.values()]
        columns.append(Column(f"dominates {other}", [share and share["value"] for share in shares], ".0%"))
    for objective in result["objectives"]:
        taus = [method["steerability"].get(objective) for method in methods.values()]
        columns.append(Column(f"steers {objective}", taus, "z.2f"))
    return columns


def _provenance(run: dict) -> None:
    with st.expander("How this run was made"):
        scales = ", ".join(f"{n}: mean {s['mean']:.4g}, std {s['std']:.4g}" for n, s in run["normalization"].items())
        commit = run["code_commit"] if pd.notna(run["code_commit"]) else "not known"
        computed_on = run["computed_on"]["evaluation"] if run["computed_on"] else "a machine that was not recorded"
        st.text(
            f"Standardization of the rewards (measured on the reference policy): {scales}\n"
            f"Seed {run['seed']}, corpus {run['corpus_hash']}, {run['bootstrap_draws']} bootstrap resamples\n"
            f"Evaluated on {computed_on}\n"
            f"Code {commit}\n" + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        )
        st.json(run["params"], expanded=False)
