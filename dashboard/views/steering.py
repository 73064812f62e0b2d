"""Third page: J by weighting and who is ahead where, whether more weight buys more of a reward, what steering costs in KL."""

import charts
import pandas as pd
import streamlit as st
from shared.common import View, choose_vectors, choose_view, download, guarded, plain, show, without_reference
from shared.tables import LABEL, Column, show_table

from clp_lightning.errors import ClpError, plural
from clp_lightning.report.labels import CAVEAT
from clp_lightning.store.queries import REFERENCE, Store
from clp_lightning.store.runs import obstacles

PLACE = 3  # among the pages

WATCHED = {"kl": "KL to the reference policy (nats per answer)", "length": "length (tokens)",
           "coverage": "coverage of the document (cosine)", "rouge_l": "ROUGE-L to the reference summary",
           "distinct_2": "distinct bigrams (share)"}  # fmt: skip


def page(store: Store) -> None:
    """Draw the page."""
    guarded("Steering", "What training maximizes, and each reward, by weighting: who is ahead where.", _page, store)


def _page(store: Store) -> None:
    view = choose_view(store)
    _objective(store, view)
    st.header("Rewards against their weights")
    _, drawn = choose_vectors(store, view)
    steered = drawn.points[view.points.method.isin(without_reference(view.methods))]
    if steered.empty:
        raise ClpError("the methods chosen take no weighting; choose another one")
    for start in range(0, len(view.objectives), 2):
        for column, name in zip(st.columns(2, gap="large"), view.objectives[start : start + 2], strict=False):
            with column:
                st.subheader(name, anchor=False)
                show(
                    charts.steering_figure(steered, name, view.styles),
                    f"steer-{name}",
                    f"Reward {name} against its weight for every method",
                )
    st.caption(
        "A policy that is steered rises from left to right. Bands (of up to four methods) are 95 % intervals over groups of test "
        "prompts. Beyond two objectives a line is the mean at its weight."
    )
    st.header("Steerability in numbers")
    table = steerability(view)
    columns = [Column("method", table.method, LABEL), Column("objective", table.objective)]
    figures = [
        ("Kendall's tau", table.tau, "z.2f"),
        ("range", table.range, ".2f"),
        ("violations", table.violations, ".0f"),
    ]
    show_table(
        columns + [Column(*figure) for figure in figures],
        "Kendall's tau, range and violations of every method and objective",
    )
    st.caption(
        "Kendall's tau: does more weight buy more reward? 1 always, 0 never, below 0 the reverse. Range: largest minus smallest "
        "mean reward over the weightings. Violations: steps to a higher weight at which the mean reward falls."
    )
    download(table, f"steerability-{view.run_id}")
    st.header("What steering does besides")
    left, right = st.columns([1, 1])
    watched = left.selectbox(
        "Monitor", list(WATCHED), format_func=WATCHED.__getitem__, key="monitor", bind="query-params"
    )
    against = right.selectbox("Against the weight of", view.objectives, key="against", bind="query-params")
    show(
        charts.steering_figure(steered, against, view.styles, watched, WATCHED[watched]),
        "monitors",
        f"{WATCHED[watched]} against the weight of {against}",
    )
    st.caption("Monitored, never optimized: a reward that is gamed shows here first.")
    st.header("KL strength against KL")
    strengths = by_strength(store, view)
    if strengths.alpha.nunique() < 2:
        st.caption(
            f"All comparable runs have one KL strength, alpha = {strengths.alpha.iloc[0]:g}. "
            "`dvc exp run -S training.alpha=0.1` adds a run at another."
        )
        return
    figure = charts.strength_figure(strengths, view.styles)
    show(figure, "strength", "KL to the reference policy against the KL strength alpha for every method")
    st.caption(
        "Means over the weightings, of the runs that can be compared with this one; each strength is a training."
    )


def _objective(store: Store, view: View) -> None:
    """Draw J against the weighting and, of two methods, who is ahead where."""
    if view.values.empty:
        return
    strength = f" (alpha {view.run['alpha']:g})" if view.values.alpha.nunique() == 1 else ""
    st.header("What training maximizes, by weighting")
    show(
        charts.objective_figure(view.values, view.objectives, view.styles),
        "objective",
        "J of every method against the weighting with 95 % bands",
    )
    st.caption(
        f"J = (1 - alpha) w·R - alpha KL{strength}: rewards and what they cost in KL. Bands (of up to four methods) are 95 % "
        "intervals over groups of test prompts."
    )
    pairs = store.by_weighting(view.run_id)
    pairs = pairs[pairs.method_a.isin(view.methods) & pairs.method_b.isin(view.methods)]
    if pairs.empty:
        return
    st.subheader("Who is ahead where", anchor=False)
    options = list(dict.fromkeys(zip(pairs.method_a, pairs.method_b, strict=True)))
    steered = [number for number, pair in enumerate(options) if REFERENCE not in pair]
    number = st.selectbox(
        "Two methods", range(len(options)), index=steered[0] if steered else 0, key="two", bind="query-params",
        format_func=lambda number: f"{options[number][0]} against {options[number][1]}",
    )  # fmt: skip
    a, b = options[number]
    own = pairs[(pairs.method_a == a) & (pairs.method_b == b)]
    show(charts.ahead_figure(own, view.objectives, view.styles), "ahead", f"J of {a} minus J of {b} by weighting")
    first, second = int((own.from_ > 0).sum()), int((own.to_ < 0).sum())
    st.caption(
        f"J of {plain(a)} minus J of {plain(b)}, paired over prompts. At {plural(len(own), 'weighting')} {plain(a)} is shown to "
        f"be ahead at {first}, {plain(b)} at {second}; hollow points are not shown to differ from 0. {CAVEAT}"
    )


def by_strength(store: Store, view: View) -> pd.DataFrame:
    """Return method, alpha (the run's KL strength) and mean kl, over all runs that can be compared with the one shown."""
    comparable = [run for run in store.each_run() if not obstacles(view.run, run)]
    alphas = {run["run_id"]: run["params"]["training"]["alpha"] for run in comparable}
    table = store.mean_kl().assign(alpha=lambda rows: rows.run_id.map(alphas)).dropna(subset="alpha")
    table = table[table.method.isin(without_reference(view.methods))]
    return table.groupby(["method", "alpha"], as_index=False).kl.mean()


def steerability(view: View) -> pd.DataFrame:
    """Return method, objective, tau, range and violations of the chosen methods."""
    kinds = {"steerability": "tau", "range": "range", "violations": "violations"}
    own = view.metrics[view.metrics.metric.isin(kinds)]
    table = own.pivot(index=["method", "target"], columns="metric", values="value").rename(columns=kinds)
    table = table.reindex(columns=list(kinds.values())).reset_index(names=["method", "objective"])
    order = {method: position for position, method in enumerate(view.methods)}
    return table.sort_values(["method"], key=lambda methods: methods.map(order), kind="stable").reset_index(drop=True)
