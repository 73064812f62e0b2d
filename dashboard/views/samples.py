"""Fourth page: one document at every weighting, and the answers with the least of a reward."""

import pandas as pd
import streamlit as st
from shared.common import View, choose_document, choose_view, download, guarded, marked, steady, without_reference
from shared.tables import LABEL, MARKUP, Column, rewards_and_tokens, show_answers, show_table, weighting_labels

from clp_lightning.errors import plural
from clp_lightning.store.queries import REFERENCE, Store

PLACE = 4  # among the pages

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
        if pd.notna(chosen.reference_summary):
            st.markdown("**Summary written by people**")
            st.text(chosen.reference_summary)
    texts = store.texts(view.run_id, chosen.prompt_id)
    own = texts[texts.method == method].sort_values([f"w:{name}" for name in view.objectives], kind="stable")
    reference = texts[texts.method == REFERENCE]
    show_table(side_by_side(own, reference, view.objectives), "Answers by weighting")
    st.caption("Marked: words that the answer one line above does not have.")
    download(texts.drop(columns=["document", "reference_summary"]), f"answers-{view.run_id}")


def side_by_side(own: pd.DataFrame, reference: pd.DataFrame, objectives: list[str]) -> list[Column]:
    """Return a method's answers by weighting as a table, differences to the line above marked."""
    rows = pd.concat([reference, own])
    before = [None, *rows.response[:-1]]
    return [
        Column("weighting", weighting_labels(rows, objectives), LABEL),
        Column("answer", [marked(*pair) for pair in zip(rows.response, before, strict=True)], MARKUP),
        *rewards_and_tokens(rows, objectives),
    ]


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
    show_answers(answers, view.objectives, f"Answers of {method} with the least {objective}")
    st.caption(f"The {plural(len(answers), 'answer')} with the least {objective}, over all weightings.")
    download(answers, f"worst-{objective}-{view.run_id}")
