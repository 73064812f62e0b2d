"""The first page's texts: what each method writes for one document, side by side, at the weighting that is chosen."""

import html

import charts
import numpy as np
import pandas as pd
import streamlit as st

from clp_lightning.report.labels import weighting_label
from clp_lightning.store.queries import Store
from shared.common import View, choose_document, dark, plain, steady


@st.fragment
def texts(store: Store, view: View) -> None:
    """Let the user choose document, methods and weighting, and show the answers with their rewards."""
    with steady(store):
        _one_document(store, view)


def _one_document(store: Store, view: View) -> None:
    run_id, objectives = view.run_id, view.objectives
    chosen = choose_document(store, view)
    if chosen is None:
        return
    found = store.texts(run_id, chosen.prompt_id)
    found, methods = found[found.method.isin(view.methods)], view.methods
    # Many methods do not fit beside the weighting.
    method_column, weighting_column = st.columns([2, 3]) if len(methods) <= 3 else (st.container(), st.container())
    shown = method_column.pills("Whose texts", methods, default=methods, selection_mode="multi", format_func=plain)
    weightings = found[[f"w:{name}" for name in objectives]].dropna().drop_duplicates().to_numpy()
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
        document.text(chosen.document)
        if pd.notna(chosen.reference_summary):
            summary.markdown("**Summary written by people**")
            summary.text(chosen.reference_summary)
    if not shown:
        st.info("Choose a method to see what it writes.", icon=":material/checklist:")
        return
    for start in range(0, len(shown), 3):
        for column, method in zip(st.columns(min(3, len(shown))), shown[start : start + 3], strict=False):
            with column:
                _card(
                    _nearest(found[found.method == method], target, objectives),
                    method,
                    view.styles[method][0],
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
            f'<div style="border-left:4px solid {charts.shade(colour, dark=dark())};padding-left:.6rem;line-height:1.35">'
            f'<b>{html.escape(method)}</b><br><span style="color:{charts.shade(charts.FAINT, dark=dark())};font-size:.85rem">'
            f"{where}</span></div>"
        )
        for _, row in rows.iterrows():
            st.text(row.response or "(an empty text)")
            rewards = " · ".join(f"{plain(name)} **{row[f'reward:{name}']:+.2f}**" for name in objectives)
            st.markdown(f"{rewards} · **{row.length:.0f}** tokens")
