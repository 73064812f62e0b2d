"""Sixth page: a text of one's own at weightings of one's own, written live beside the reference policy."""

import difflib
import html
from pathlib import Path
from typing import Any, NamedTuple

import charts
import numpy as np
import pandas as pd
import streamlit as st
from shared.common import LISTED, MARK, View, choose_view, dark, guarded, heading, marked, show

from clp_lightning.errors import ClpError, make
from clp_lightning.report.labels import weighting_label
from clp_lightning.store.queries import Store

PLACE = 5  # among the pages

OWN = "a text of my own"
LONGEST = 20_000  # characters
FIRST = "prompt 1: "  # there is one text only
PANES = (("A", "#0072B2"), ("B", "#D55E00"))  # their colours in the panes and on the plot


class Request(NamedTuple):
    """All that decides what is written; two equal requests have one result."""

    policy: Path
    written: float  # modification time of the policy's files
    text: str
    weightings: tuple[tuple[float, ...], ...]
    alpha: float | None
    temperature: float
    seed: int


class Outcome(NamedTuple):
    """Answers (the reference policy's first) and their standardized rewards [1 + panes, K]."""

    answers: list[str]
    rewards: np.ndarray


def page(store: Store) -> None:
    """Draw the page."""
    guarded("Playground", "Move a weight and read how the text changes.", _page, store)


def _page(store: Store) -> None:
    from clp_lightning.serving.playground import policies

    root = store.path.resolve().parent
    found = policies(root)
    if not found:
        st.info(
            f"There is no model in {root / 'models'}. {make('repro', folder=root)} trains one; {make('pull', folder=root)} "
            "fetches those of a remote.",
            icon=":material/model_training:",
        )
        return
    view = choose_view(store, methods=False)
    left, right = st.columns(2)
    start = list(found).index("clp-full") if "clp-full" in found and not next(iter(found)).startswith("champion") else 0
    name = left.selectbox("Policy", list(found), start, key="policy", bind="query-params")
    text = _text(store, view, found[name].name, right)
    written = _written(found[name])
    play = _load(found[name], written, root, view.run_id, view.run["params"], view.run["normalization"])
    weightings, alpha, temperature, seed = _settings(view, play)
    request = Request(found[name], written, text.strip(), weightings, alpha, temperature, seed)
    if not text.strip():
        st.info("Write a text, or choose a document.", icon=":material/edit:")
        return
    try:
        note = play.policy.template.check([play.read(text)])
    except ClpError as error:
        st.error(f"The policy refuses this text: {str(error).removeprefix(FIRST)}.", icon=":material/content_cut:")
        return
    if note:
        st.warning(
            f"The policy reads only part of this text: {note.removeprefix(FIRST)}.", icon=":material/content_cut:"
        )
    outcome = _write(play, request, view.objectives)
    _plot(view, found[name].name, outcome)


@st.cache_resource(max_entries=1, show_spinner="Loading the policy and its rewards …")
def _load(folder: Path, written: float, root: Path, run_id: str, _params: dict, _normalization: dict) -> Any:
    """Load a policy once for all sessions; again when its files or the run change."""
    from clp_lightning.serving.playground import Playground

    return Playground.load(folder, root, _params, _normalization)


def _written(folder: Path) -> float:
    try:
        return (folder / "experts.safetensors").stat().st_mtime
    except OSError as error:
        raise ClpError(f"{folder} is incomplete ({error}); run `dvc repro` to write it again") from error


def _text(store: Store, view: View, method: str, column: Any) -> str:
    documents = store.documents(view.run_id, "", LISTED).set_index("prompt_id").document
    chosen = column.selectbox(
        "Document", [*documents.index, OWN], most_telling(store, view, method, documents), key="document",
        format_func=lambda i: OWN if i == OWN else heading(documents.get(i, i)), bind="query-params",
    )  # fmt: skip
    # a key for each document: choosing another one fills the area anew
    return st.text_area(
        "Text", documents.get(chosen, ""), height=110, max_chars=LONGEST, key=f"text-{chosen}",
        placeholder="Paste a text to summarize.",
    )  # fmt: skip


def most_telling(store: Store, view: View, method: str, documents: pd.Series) -> int:
    """Return the position of the document whose answers in the run differ most between the first two objectives' ends."""
    own = view.points[view.points.method == method].dropna(subset=[f"w:{name}" for name in view.objectives])
    if own.empty or len(view.objectives) < 2:
        return 0
    ends = [int(own.loc[own[f"w:{name}"].idxmax()].weighting_id) for name in view.objectives[:2]]
    texts = [store.answers_at(view.run_id, method, end, LISTED).groupby("document").response.first() for end in ends]
    alike = pd.concat(texts, axis=1, keys=["a", "b"]).dropna().apply(lambda row: _likeness(row.a, row.b), axis=1)
    told = documents.map(alike).fillna(1.0)
    return int(told.to_numpy(float).argmin())


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(a=a.split(), b=b.split(), autojunk=False).ratio()


def _settings(view: View, play: Any) -> tuple[tuple[tuple[float, ...], ...], float | None, float, int]:
    """Let the user choose a weighting per pane, a KL strength where the policy takes one, temperature and seed."""
    names = view.objectives
    weightings = []
    for column, (pane, _), start in zip(st.columns(len(PANES), gap="large"), PANES, (1, 0), strict=True):
        with column:
            weightings.append(_weighting(names, pane, start))
    with st.expander("Sampling"):
        alpha = None
        if play.policy.takes_alpha:
            trained = float(view.run["params"]["training"]["alpha"])
            alpha = st.slider(
                "KL strength alpha (1 is the reference)", 0.0, 1.0, trained, 0.01, key="alpha", bind="query-params"
            )
        temperature = st.slider(
            "Temperature (0: the likeliest text)", 0.0, 2.0, 0.0, 0.1, key="temperature", bind="query-params"
        )
        seed = st.number_input("Seed", 0, 10_000, 0, key="seed", disabled=temperature == 0, bind="query-params")
    return tuple(weightings), alpha, temperature, int(seed)


def _weighting(names: list[str], pane: str, start: int) -> tuple[float, ...]:
    """Sliders on the simplex: one for two objectives; for more, one each, of which the shares are taken."""
    if len(names) == 1:
        st.caption(f"{pane}: the only objective is {names[0]}.")
        return (1.0,)
    if len(names) == 2:
        share = st.slider(
            f"{pane}: weight of {names[0]} against {names[1]}", 0, 100, 100 * start, 5, format="%d %%",
            key=f"weight-{pane}", bind="query-params",
        )  # fmt: skip
        return (share / 100, 1 - share / 100)
    values = np.array([
        st.slider(
            f"{pane}: {name}", 0, 100, 100 if (position == 0) == bool(start) else 0, 5, key=f"weight-{pane}-{position}",
            bind="query-params",
        )
        for position, name in enumerate(names)
    ], dtype=float)  # fmt: skip
    shares = values / values.sum() if values.sum() else np.full(len(names), 1 / len(names))
    st.caption(" : ".join(f"{share:.0%}" for share in shares))
    return tuple(shares)


def _write(play: Any, request: Request, names: list[str]) -> Outcome:
    """Write live into the panes, then show rewards; what was written for the same request is shown at once."""
    from clp_lightning.serving.playground import Setting

    settings = [Setting(None), *(Setting(np.array(w), request.alpha) for w in request.weightings)]
    titles = [("Reference policy", "takes no weighting", charts.FAINT)]
    titles += [
        (f"Policy at {pane}", weighting_label(dict(zip(names, w, strict=True))), colour)
        for (pane, colour), w in zip(PANES, request.weightings, strict=True)
    ]
    panes = []
    for column, title in zip(st.columns(len(settings)), titles, strict=True):
        with column.container(border=True, height="stretch"):
            _head(*title)
            panes.append((st.empty(), st.empty()))
    kept = st.session_state.get("played")
    if kept is None or kept[0] != request:
        answers = [""] * len(settings)
        for answers in play.write(request.text, settings, temperature=request.temperature, seed=request.seed):
            for (body, _), answer in zip(panes, answers, strict=True):
                body.text(f"{answer} ▍")
        kept = (request, Outcome(answers, play.score(request.text, answers)))
        st.session_state.played = kept
    outcome = kept[1]
    for position, (body, foot) in enumerate(panes):
        before = outcome.answers[0] if position else None
        body.html(
            f"<style>{MARK}</style><div class='answer-{position}'>{marked(outcome.answers[position], before)}</div>"
        )
        rewards = " · ".join(
            f"{html.escape(n)} <b>{r:+.2f}</b>" for n, r in zip(names, outcome.rewards[position], strict=True)
        )
        foot.html(f"<div style='font-size:.9rem'>{rewards}</div>")
    st.caption("Marked: words that the reference policy does not write. Rewards are standardized, as everywhere.")
    return outcome


def _head(title: str, where: str, colour: str) -> None:
    line, small = (charts.shade(each, dark=dark()) for each in (colour, charts.FAINT))
    st.html(
        f'<div style="border-left:4px solid {line};padding-left:.6rem;line-height:1.35"><b>{html.escape(title)}</b><br>'
        f'<span style="color:{small};font-size:.85rem">{html.escape(where)}</span></div>'
    )


def _plot(view: View, method: str, outcome: Outcome) -> None:
    st.header("Where these answers lie")
    names = view.objectives
    own = view.points[view.points.method.isin([charts.REFERENCE, method])]
    figure = charts.frontier_figure(own, names, view.styles, (names[0], names[1]) if len(names) > 2 else None)
    show(
        charts.add_stars(figure, stars(outcome.rewards)), "landed", "Rewards of the three answers on the frontier plot"
    )
    st.caption(
        f"Stars: the answers above, one text each. The other points are means over {view.run['prompts']} test prompts, so a "
        "star may lie far from them."
    )


def stars(rewards: np.ndarray) -> list[tuple[str, float, float, str]]:
    """Return label, place and colour of each answer, rewards [1 + panes, K]; equal answers share a star."""
    found: dict[tuple[float, float], tuple[list[str], str]] = {}
    for (label, colour), row in zip([("reference", charts.REFERENCE_COLOUR), *PANES], rewards, strict=True):
        place = float(row[0]), float(row[1]) if len(row) > 1 else 0.5
        labels, _ = found.setdefault(place, ([], colour))
        labels.append(label)
    return [(" = ".join(labels), *place, colour) for place, (labels, colour) in found.items()]
