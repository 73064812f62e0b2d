"""Fourth page: one document at every weighting, and the answers with the least of a reward."""

import html

import pandas as pd
import streamlit as st
from common import MARK, View, choose_document, choose_view, download, guarded, marked, steady, without_reference

from clp_lightning.labels import weighting_label
from clp_lightning.store import REFERENCE, Store

LIMIT = 200  # answers in a list


def page(store: Store) -> None:
    """Draw the page."""
    guarded("Samples", "What the policies write, at every weighting; and where they do worst.", _page, store)


def _page(store: Store) -> None:
    view = choose_view(store)
    every, worst = st.tabs(["One document, all weightings", "Worst answers first"])
    with every:
        _document(store, view)
    with worst:
        _worst(store, view)


@st.fragment
def _document(store: Store, view: View) -> None:
    with steady(store):
        _one_document(store, view)


def _one_document(store: Store, view: View) -> None:
    chosen = choose_document(store, view)
    if chosen is None:
        return
    method = st.selectbox("Method", without_reference(view.methods) or view.methods, key="sampled", bind="query-params")
    with st.container(border=True):
        st.markdown("**Document**")
        st.text(chosen.document)
        st.markdown("**Summary written by people**")
        st.text(chosen.reference_summary)
    texts = store.texts(view.run_id, chosen.prompt_id)
    own = texts[texts.method == method].sort_values([f"w:{name}" for name in view.objectives], kind="stable")
    reference = texts[texts.method == REFERENCE]
    st.html(side_by_side(own, reference, view.objectives))
    st.caption("Marked: words that the answer one line above does not have.")
    download(texts.drop(columns=["document", "reference_summary"]), f"answers-{view.run_id}")


def side_by_side(own: pd.DataFrame, reference: pd.DataFrame, objectives: list[str]) -> str:
    """Return a table of a method's answers by weighting, as HTML; differences to the line above are marked."""
    head = "".join(f"<th scope=col>{html.escape(text)}</th>" for text in ("weighting", "answer", *objectives, "tokens"))
    lines, before = [], None
    for _, row in pd.concat([reference, own]).iterrows():
        weights = {name: row[f"w:{name}"] for name in objectives}
        label = "reference policy" if pd.isna(list(weights.values())).any() else weighting_label(weights)
        rewards = "".join(f"<td class=number>{row[f'reward:{name}']:+.2f}</td>" for name in objectives)
        lines.append(
            f"<tr><td class=w>{html.escape(label)}</td><td>{marked(row.response, before)}</td>{rewards}"
            f"<td class=number>{row.length:.0f}</td></tr>"
        )
        before = row.response
    return (
        "<style>.answers{width:100%;border-collapse:collapse;font-size:.95rem}.answers td,.answers th{padding:.35rem .6rem;"
        "border-bottom:1px solid rgba(128,128,128,.3);text-align:left;vertical-align:top}.answers .number{text-align:right;"
        "font-variant-numeric:tabular-nums}.answers .w{white-space:nowrap}"
        f"{MARK}</style><div style='overflow-x:auto' role=region tabindex=0 aria-label='Answers by weighting'>"
        f"<table class=answers><thead><tr>{head}</tr>"
        f"</thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


@st.fragment
def _worst(store: Store, view: View) -> None:
    with steady(store):
        _worst_answers(store, view)


def _worst_answers(store: Store, view: View) -> None:
    left, middle, right = st.columns(3)
    objective = left.selectbox("Least of", view.objectives, key="least", bind="query-params")
    method = middle.selectbox("Of the method", view.methods, key="of", bind="query-params")
    bound = right.number_input("Reward at most", value=None, step=0.5, placeholder="no limit", key="at-most")
    answers = store.answers(view.run_id, method, view.objectives.index(objective), bound, LIMIT)
    if answers.empty:
        st.info("No answer has so little of this reward.", icon=":material/check:")
        return
    st.dataframe(
        answers, hide_index=True, width="stretch", alt=f"Answers of {method} with the least {objective}",
        column_config={
            **{f"reward:{name}": st.column_config.NumberColumn(name, format="%.2f") for name in view.objectives},
            **{f"w:{name}": st.column_config.NumberColumn(f"w {name}", format="%.2f") for name in view.objectives},
            "response": st.column_config.TextColumn("answer", width="large"),
            "document": st.column_config.TextColumn(width="large"),
            "kl": st.column_config.NumberColumn("KL", format="%.2f"), "length": st.column_config.NumberColumn(format="%d"),
        },
    )  # fmt: skip
    st.caption(f"The {len(answers)} answers with the least {objective}, over all weightings.")
    download(answers, f"worst-{objective}-{view.run_id}")
