"""What every page shares: which run and which methods are looked at (in the URL), and a sentence when there is nothing."""

import contextlib
import difflib
import html
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import charts
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from clp_lightning.errors import ClpError
from clp_lightning.report.labels import method_styles
from clp_lightning.store.queries import REFERENCE, Store


class View(NamedTuple):
    """A run as chosen on the page; frames hold the chosen methods only, `styles` has all of the run's."""

    run: dict[str, Any]
    run_id: str
    objectives: list[str]
    methods: list[str]
    points: pd.DataFrame
    metrics: pd.DataFrame
    styles: dict[str, tuple[str, str]]
    values: pd.DataFrame  # J by weighting; no rows in a run that has none

    @property
    def leads(self) -> str:
        """The metric that methods are ordered by: mean J, or the hypervolume where a run has no J."""
        return "mean_j" if (self.metrics.metric == "mean_j").any() else "hypervolume"


def guarded(title: str, lead: str, draw: Callable[[Store], None], store: Store) -> None:
    """Draw a page under its title; a store that cannot be read becomes one plain sentence."""
    st.session_state.drawn = store.identity()
    st.title(title)
    st.caption(lead)
    with steady(store):
        draw(store)


@contextlib.contextmanager
def steady(store: Store) -> Iterator[None]:
    """Draw again what failed because the store was swapped while it was drawn, e.g. because its run was pruned.

    What a page's fragments draw needs this as well: they come back to a run that may be gone by then.
    """
    try:
        yield
    except Exception as error:
        if st.session_state.get("drawn", store.identity()) != store.identity():
            st.rerun()
        if not isinstance(error, ClpError):
            raise
        st.warning(f"There is nothing to show yet: {error}.", icon=":material/hourglass_empty:")


def dark() -> bool:
    """Whether the user's theme is the dark one."""
    return bool(st.context.theme.type == "dark")


def show(figure: go.Figure, key: str, alt: str, **options: Any) -> Any:
    """Draw a figure in the user's theme; it can be saved as SVG. Returns what `st.plotly_chart` does."""
    config = {
        "displaylogo": False, "responsive": True, "modeBarButtons": [["toImage"]],
        "toImageButtonOptions": {"format": "svg", "filename": key},
    }  # fmt: skip
    figure = charts.themed(figure, dark=dark())
    return st.plotly_chart(figure, width="stretch", config=config, theme=None, key=key, alt=alt, **options)


def marked(text: str, before: str | None) -> str:
    """Return a text as HTML, its words that `before` has not marked; nothing in it is interpreted."""
    words = text.split()
    if not words:
        return "<i>(an empty text)</i>"
    if before is None:
        return html.escape(text)
    parts = []
    for kind, _, _, start, end in difflib.SequenceMatcher(a=before.split(), b=words, autojunk=False).get_opcodes():
        if start < end:
            piece = html.escape(" ".join(words[start:end]))
            parts.append(piece if kind == "equal" else f"<mark>{piece}</mark>")
    return " ".join(parts)


LISTED = 200  # documents in a list; a longer one would be slow, and nobody reads it
MARK = "mark{background:#FFE08A;color:#1F2933;border-radius:3px;padding:0 2px}"


def choose_view(store: Store, *, methods: bool = True) -> View:
    """Let the user choose run and, if asked for, `methods`; raises `ClpError` when the store holds none."""
    store.run()  # says so when there is none
    run = store.run(choose_run(store))
    run_id = run["run_id"]
    points, metrics = store.points(run_id), store.metrics(run_id)
    everything = list(points.method.unique())
    chosen = everything
    if methods and len(everything) > 3:
        picked = st.pills(
            "Methods", everything, default=everything, selection_mode="multi", format_func=plain, key="methods",
            bind="query-params",
        )  # fmt: skip
        chosen = [method for method in everything if method in picked] or everything
    return View(
        run, run_id, run["objectives"], chosen, points[points.method.isin(chosen)],
        metrics[metrics.method.isin(chosen) & (metrics.target.isna() | ~metrics.target.isin(set(everything) - set(chosen)))],
        method_styles(everything), (values := store.objective(run_id))[values.method.isin(chosen)],
    )  # fmt: skip


VECTORS = {"rewards": "Rewards", "regularized": "Regularized"}  # what frontiers are drawn of


def choose_vectors(store: Store, view: View) -> tuple[str, View]:
    """Let the user switch to (1 - alpha) R - alpha KL, which KL cannot buy; return the choice and the view of it.

    A run that has none (its weightings are KL strengths, or it is too old) has no switch.
    """
    points = store.points(view.run_id, regularized=True)
    if points.empty:
        return "rewards", view
    kind = st.segmented_control(
        "Frontiers of", list(VECTORS), default="rewards", format_func=VECTORS.__getitem__, key="vectors", bind="query-params",
        required=True, help="Regularized: (1 - alpha) R - alpha KL of each reward R. Rewards alone can be bought with KL.",
    )  # fmt: skip
    if kind == "rewards":
        return kind, view
    return kind, view._replace(points=points[points.method.isin(view.methods)])


def choose_run(store: Store, label: str = "Run", key: str = "run") -> str | None:
    """Return the run chosen, None for the latest; a run in the URL that is not in the store is the latest."""
    runs = store.runs()
    if len(runs) < 2:
        return None
    labels = {
        row.run_id: f"{row.published_at:%Y-%m-%d %H:%M} · seed {row.training_seed} · {row.run_id}"
        for _, row in runs.iterrows()
    }
    options = ["latest", *labels]
    run = st.selectbox(
        label, options, format_func=lambda run: "Latest" if run == "latest" else labels.get(run, run), key=key,
        bind="query-params",
    )  # fmt: skip
    return None if run == "latest" else run


def without_reference(methods: list[str]) -> list[str]:
    """Methods that can be steered: all but the reference policy."""
    return [method for method in methods if method != REFERENCE]


def choose_document(store: Store, view: View) -> pd.Series | None:
    """Let the user search the documents and choose one: prompt_id, document, reference_summary; None if none is found."""
    left, right = st.columns([2, 3])
    search = left.text_input(
        "Search the documents", placeholder="a word, a service, an operation", key="search", bind="query-params"
    )
    found = store.documents(view.run_id, search.strip(), LISTED + 1)
    if found.empty:
        st.info("No document contains these words. Try fewer of them.", icon=":material/search_off:")
        return None
    many = len(found) > LISTED
    found = found.head(LISTED).set_index("prompt_id", drop=False)
    label = f"Document (the first {LISTED}: search for others)" if many else f"Document ({len(found)} found)"
    chosen = right.selectbox(
        label, found.index, format_func=lambda i: heading(found.document.get(i, i)), key="document", bind="query-params"
    )
    return found.loc[chosen]


def heading(document: str) -> str:
    """Return a document's first line, cut where it is long."""
    words = str(document).split("\n")[0]
    return words if len(words) <= 90 else f"{words[:89]}…"


def download(frame: pd.DataFrame, name: str) -> None:
    """Offer a frame as a CSV and as a Parquet file; the latter is made when it is asked for."""
    with st.container(horizontal=True):
        st.download_button(
            "Download CSV", frame.to_csv(index=False).encode(), file_name=f"{name}.csv", mime="text/csv",
            icon=":material/download:", key=f"csv-{name}", on_click="ignore",
        )  # fmt: skip
        st.download_button(
            "Parquet", lambda: frame.to_parquet(index=False), file_name=f"{name}.parquet",
            mime="application/vnd.apache.parquet", icon=":material/download:", key=f"parquet-{name}", on_click="ignore",
        )  # fmt: skip


def plain(text: str) -> str:
    """Escape what Streamlit's Markdown would interpret."""
    return "".join(f"\\{letter}" if letter in r"\`*_{}[]<>#|~$:" else letter for letter in text)
