"""First page: the frontier of every method, how they compare, and what the policies write."""

import html

import charts
import numpy as np
import pandas as pd
import streamlit as st
from common import CHART, choose_run, guarded, plain

from clp_lightning.report import CAVEAT, comparison, difference_sentence, method_styles, weighting_label
from clp_lightning.store import REFERENCE, Store


def page(store: Store) -> None:
    """Draw the page."""
    guarded("Frontier", "What each method offers: one point per trade-off.", _page, store)


def _page(store: Store) -> None:
    store.run()  # says so when there is none
    run = store.run(choose_run(store))
    run_id, objectives = run["run_id"], run["objectives"]
    points, metrics = store.points(run_id), store.metrics(run_id)
    st.caption(
        f"Run {run_id}, published {run['published_at']:%d %B %Y, %H:%M} UTC. Every point is one weighting of the "
        f"rewards: the mean over {run['prompts']} unseen prompts, with 95 % intervals. Up and to the right is better."
    )
    axes = _choose_axes(objectives)
    figure = charts.frontier_figure(points, objectives, axes)
    st.plotly_chart(figure, width="stretch", config=CHART, theme=None, key="frontier")
    if len(objectives) == 2:
        st.caption(f"The labels at the ends give the weighting, {objectives[0]} : {objectives[1]}.")
    _methods(store, run, metrics)
    st.header("What the policies write")
    _texts(store, run_id, objectives)
    _provenance(run)


def _choose_axes(objectives: list[str]) -> tuple[str, str] | None:
    if len(objectives) < 3:
        return None
    left, right = st.columns(2)
    x = left.selectbox("Horizontal axis", objectives, index=0)
    return x, right.selectbox("Vertical axis", [name for name in objectives if name != x], index=0)


def _methods(store: Store, run: dict, metrics: pd.DataFrame) -> None:
    st.header("How the methods compare")
    result = comparison(store, run["run_id"])
    left, right = st.columns([4, 6], gap="large")
    with left:
        st.subheader("Hypervolume")
        st.plotly_chart(
            charts.hypervolume_figure(metrics), width="stretch", config=CHART, theme=None, key="hypervolume"
        )
        point = ", ".join(f"{value:g}" for value in run["reference_point"])
        st.caption(f"The space a frontier encloses above the reference point ({point}). Larger is better.")
    with right:
        st.subheader("Paired differences")
        pairs = [
            pair
            for pair in result["comparisons"]
            if pair["statistic"] == "hypervolume" and (REFERENCE not in pair["methods"] or len(result["methods"]) == 2)
        ]
        st.markdown(
            "\n".join(f"- {plain(difference_sentence(pair))}." for pair in pairs) or "There is one method only."
        )
        st.caption(f"The same resamples of the prompts for both methods. {CAVEAT}")
        st.subheader("Dominated points and steerability")
        st.table(_method_table(result).style.hide(axis="index"))
        st.caption(
            "Dominates: the share of the named method's points that some point of the column's method beats in one "
            "objective and equals or beats in all. Steerability: does more weight buy more reward? "
            "1 always, 0 never (Kendall's tau)."
        )


def _method_table(result: dict) -> pd.DataFrame:
    """A column per method, a row per share and per objective."""
    methods = {method["method"]: method for method in result["methods"]}
    table: dict[str, list[str]] = {"": []} | {name: [] for name in methods}
    for other in methods if len(methods) > 1 else ():
        table[""].append(f"dominates {other}")
        for name, method in methods.items():
            share = method["dominated_share"].get(other)
            table[name].append("–" if share is None else f"{share['value']:.0%}")
    for objective in result["objectives"]:
        table[""].append(f"steers {objective}")
        for name, method in methods.items():
            tau = method["steerability"].get(objective)
            table[name].append("–" if tau is None else f"{tau:.2f}")
    return pd.DataFrame(table)


@st.fragment
def _texts(store: Store, run_id: str, objectives: list[str]) -> None:
    search_column, document_column = st.columns([2, 3])
    search = search_column.text_input("Search the documents", placeholder="a word, a service, an operation")
    documents = store.documents(run_id, search.strip()).set_index("prompt_id")
    if documents.empty:
        st.info("No document contains these words. Try fewer of them.", icon=":material/search_off:")
        return
    chosen = document_column.selectbox(
        f"Document ({len(documents)} found)",
        documents.index,
        format_func=lambda i: _title(documents.document.get(i, i)),
    )
    texts = store.texts(run_id, chosen)
    methods = list(texts.method.unique())
    # Many methods do not fit beside the weighting.
    method_column, weighting_column = st.columns([2, 3]) if len(methods) <= 3 else (st.container(), st.container())
    shown = method_column.pills("Methods", methods, default=methods, selection_mode="multi", format_func=plain)
    weightings = texts[[f"w:{name}" for name in objectives]].dropna().drop_duplicates().to_numpy()
    if len(weightings) > 1:
        # The options are positions: a tuple as the value would make this a slider for ranges.
        position = weighting_column.select_slider(
            f"Weighting ({' : '.join(objectives)})",
            range(len(weightings)),
            value=len(weightings) // 2,
            format_func=lambda i: weighting_label(dict(zip(objectives, weightings[i], strict=True))),
        )
        target = tuple(weightings[position])
    else:
        target = tuple(weightings[0]) if len(weightings) else ()
    with st.container(border=True):
        document, summary = st.columns([3, 2], gap="large")
        document.markdown("**Document**")
        document.text(documents.document[chosen])
        summary.markdown("**Summary written by people**")
        summary.text(documents.reference_summary[chosen])
    if not shown:
        st.info("Choose a method to see what it writes.", icon=":material/checklist:")
        return
    styles = method_styles(methods)
    for start in range(0, len(shown), 3):
        for column, method in zip(st.columns(min(3, len(shown))), shown[start : start + 3], strict=False):
            with column:
                _card(
                    _nearest(texts[texts.method == method], target, objectives),
                    method,
                    styles[method][0],
                    target,
                    objectives,
                )


def _nearest(rows: pd.DataFrame, target: tuple[float, ...], objectives: list[str]) -> pd.DataFrame:
    """Rows of the method's weighting that is nearest to the chosen one: grids of methods may differ."""
    weights = rows[[f"w:{name}" for name in objectives]].to_numpy(float)
    if np.isnan(weights).any() or not target:
        return rows
    distance = np.abs(weights - np.array(target)).sum(1)
    return rows[rows.weighting_id == rows.weighting_id.iloc[int(distance.argmin())]]


def _card(rows: pd.DataFrame, method: str, colour: str, target: tuple[float, ...], objectives: list[str]) -> None:
    weights = charts.weighting(rows.iloc[0], objectives)
    where = "takes no weighting" if weights is None else f"at {weighting_label(weights)}"
    if weights is not None and not np.allclose(list(weights.values()), target):
        where += ", its nearest"
    with st.container(border=True, height="stretch"):
        st.html(
            f'<div style="border-left:4px solid {colour};padding-left:.6rem;line-height:1.35">'
            f'<b>{html.escape(method)}</b><br><span style="color:{charts.FAINT};font-size:.85rem">{where}</span></div>'
        )
        for _, row in rows.iterrows():
            st.text(row.response or "(an empty text)")
            rewards = " · ".join(f"{plain(name)} **{row[f'reward:{name}']:+.2f}**" for name in objectives)
            st.markdown(f"{rewards} · **{row.length:.0f}** tokens")


def _provenance(run: dict) -> None:
    with st.expander("How this run was made"):
        scales = ", ".join(f"{n}: mean {s['mean']:.4g}, std {s['std']:.4g}" for n, s in run["normalization"].items())
        commit = run["code_commit"] if pd.notna(run["code_commit"]) else "not known"
        st.text(
            f"Standardization of the rewards (measured on the reference policy): {scales}\n"
            f"Seed {run['seed']}, corpus {run['corpus_hash']}, {run['bootstrap_draws']} bootstrap resamples\n"
            f"Code {commit}\n" + ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        )
        st.json(run["params"], expanded=False)


def _title(document: str) -> str:
    words = document.split("\n")[0]
    return words if len(words) <= 90 else f"{words[:89]}…"
