"""Tables as HTML of the page itself: there with the page, whole texts, and the keyboard reaches what has to be scrolled."""

import html
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import charts
import pandas as pd
import streamlit as st

from clp_lightning.report.labels import weighting_label
from shared.common import MARK, dark, heading

TEXT, LABEL, MARKUP = (
    "",
    "label",
    "markup",
)  # formats: a text, one that is not broken into lines, one that is HTML already
LOOK = (
    ".readable{overflow:auto;max-height:42rem}.readable table{width:100%;border-collapse:collapse;font-size:.95rem}"
    ".readable td,.readable th{padding:.35rem .6rem;border-bottom:1px solid rgba(128,128,128,.3);text-align:left;"
    "vertical-align:top}.readable th{position:sticky;top:0;z-index:1;background:var(--ground)}"
    ".readable .number{text-align:right;font-variant-numeric:tabular-nums}.readable .label{white-space:nowrap}"
    ".readable details{white-space:pre-wrap;min-width:14rem}"
)


class Column(NamedTuple):
    """A heading and its cells; the format is one of the above or, of numbers, a specification such as "z.2f" (z: no -0.00)."""

    title: str
    values: Iterable[Any]
    form: str = TEXT

    @property
    def kind(self) -> str:
        """The class of its cells as an attribute."""
        return {TEXT: "", MARKUP: "", LABEL: ' class="label"'}.get(self.form, ' class="number"')

    def cell(self, value: Any) -> str:
        """A value as HTML; what is missing is a dash."""
        if self.form == MARKUP:
            return str(value)
        if pd.isna(value):
            return "–"
        return html.escape(str(value)) if self.form in (TEXT, LABEL) else format(value, self.form)


def show_table(columns: Sequence[Column], label: str) -> None:
    """Draw a table; `label` names it for those who do not see it."""
    ground = charts.shade("white", dark=dark())
    st.html(f"<style>{LOOK}{MARK}.readable{{--ground:{ground}}}</style>{table(columns, label)}")


def show_answers(answers: pd.DataFrame, objectives: Sequence[str], label: str) -> None:
    """Draw answers as `Store.answers` gives them, each with its document, of which the first line is seen until it is opened."""
    columns = [
        Column("answer", [text or "(an empty text)" for text in answers.response]),
        *rewards_and_tokens(answers, objectives),
        Column("KL", answers.kl, ".2f"),
        Column("document", [_folded(text) for text in answers.document], MARKUP),
    ]
    if {f"w:{name}" for name in objectives} <= set(answers):
        columns.insert(0, Column("weighting", weighting_labels(answers, objectives), LABEL))
    show_table(columns, label)


def rewards_and_tokens(answers: pd.DataFrame, objectives: Sequence[str]) -> list[Column]:
    """Return the columns that all tables of answers have."""
    rewards = [Column(name, answers[f"reward:{name}"], "+z.2f") for name in objectives]
    return [*rewards, Column("tokens", answers.length, ".0f")]


def weighting_labels(answers: pd.DataFrame, objectives: Sequence[str]) -> list[str]:
    """Return each row's weighting as people write it; a row without one is the reference policy's."""
    rows = answers[[f"w:{name}" for name in objectives]].set_axis(list(objectives), axis=1).to_dict("records")
    return ["reference policy" if any(map(pd.isna, row.values())) else weighting_label(row) for row in rows]


def _folded(text: str) -> str:
    """Return a text of which the heading is seen until it is opened."""
    head = heading(text)
    shown = head.removesuffix("…") if not text.startswith(head) else head
    body = text[len(shown) :].strip("\n")
    if not body:
        return html.escape(head)
    cut = "…" if shown != head else ""
    return f"<details><summary>{html.escape(head)}</summary>{cut}{html.escape(body)}</details>"


def table(columns: Sequence[Column], label: str) -> str:
    """Return a table as HTML in which no text is interpreted but that of columns of `MARKUP`."""
    head = "".join(f'<th scope="col"{column.kind}>{html.escape(column.title)}</th>' for column in columns)
    cells = [[f"<td{column.kind}>{column.cell(value)}</td>" for value in column.values] for column in columns]
    lines = "".join(f"<tr>{''.join(line)}</tr>" for line in zip(*cells, strict=True))
    return (
        f'<div class="readable" role="region" tabindex="0" aria-label="{html.escape(label)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )
