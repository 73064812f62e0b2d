"""Second page: who dominates whom, with which probability, and at what cost."""

import charts
import pandas as pd
import streamlit as st
from shared.common import VECTORS, View, choose_vectors, choose_view, download, guarded, plain, show
from shared.explanations import COSTS, METRICS, PAIRS
from shared.tables import LABEL, Column, show_table

from clp_lightning.report.labels import CAVEAT
from clp_lightning.store.queries import Store
from clp_lightning.store.runs import over_seeds, siblings

PLACE = 2  # among the pages
ABOVE = {"point": "The reference point", "reference": "The reference policy"}


def page(store: Store) -> None:
    """Draw the page."""
    lead = "Which method is better, by how much, and how sure that is."
    guarded("Dominance", lead, _page, store)


def _page(store: Store) -> None:
    view = choose_view(store)
    st.markdown(_verdict(store, view))
    st.header("Every method against every other")
    there = {*view.metrics.metric, *store.comparisons(view.run_id).statistic}
    kinds = [name for name in PAIRS if name in there]
    kind = st.segmented_control(
        "Statistic", kinds, default=kinds[0], format_func=lambda name: PAIRS[name].title, key="statistic",
        bind="query-params", required=True,
    )  # fmt: skip
    values = pair_matrix(store, view, kind)
    show(charts.matrix_figure(values, PAIRS[kind].title), "matrix", f"Matrix of methods: {PAIRS[kind].sentence}")
    pairs = len(view.methods) * (len(view.methods) - 1) // 2
    st.caption(
        f"Row against column, in percent. {PAIRS[kind].sentence} Pairs compared: {pairs}; none is corrected for that."
    )
    download(values.reset_index(names="method"), f"{kind}-{view.run_id}")
    _volumes_and_costs(store, view)
    st.header("All measures")
    _measures(view)
    st.caption(CAVEAT)


def _verdict(store: Store, view: View) -> str:
    """Say in one sentence who is ahead of whom, how sure that is, and what KL both have."""
    leads = view.leads
    values = view.metrics[view.metrics.metric == leads].sort_values("value", ascending=False)
    if len(values) < 2:
        return "There is one method only."
    first, second = values.method.iloc[0], values.method.iloc[1]
    compared = store.comparisons(view.run_id)
    pair = compared[
        (compared.statistic == leads)
        & (compared.method_a.isin([first, second]) & compared.method_b.isin([first, second]))
    ]
    if pair.empty:
        return f"{plain(first)} and {plain(second)} were given no weighting in common."
    pair = pair.iloc[0]
    sign = 1 if pair.method_a == first else -1
    low, high = sorted((sign * pair.low, sign * pair.high))
    probability = pair.probability if sign == 1 else 1 - pair.probability
    shown = "the interval excludes 0" if low > 0 else "**neither is shown to be better**"
    what = "has the largest mean J" if leads == "mean_j" else "encloses most"
    kl = view.metrics[view.metrics.metric == "mean_kl"].set_index("method").value
    paid = f" Their KL is {kl[first]:.2f} and {kl[second]:.2f} nats." if len(kl) else ""
    return (
        f"**{plain(first)}** {what}, {sign * pair.difference:.3f} more than {plain(second)} "
        f"(95 % interval {low:.3f} to {high:.3f}): ahead with probability {probability:.0%}, {shown}.{paid} "
        + _over_seeds(store, view, (first, second))
    )


def _over_seeds(store: Store, view: View, pair: tuple[str, str]) -> str:
    """Say what remains of a difference over the training seeds that the store has: intervals of one run do not cover them."""
    same = siblings(store, view.run_id)
    if len(same) < 2:
        return "Another training seed may fall otherwise: the interval covers the choice of prompts only."
    pooled = _pooled(store, store.identity(), tuple(run["run_id"] for run in same), pair, view.leads)
    if pooled is None:
        return "The other training seeds lack one of the two."
    value, low, high = pooled
    verdict = "the interval excludes 0" if low > 0 or high < 0 else "**neither is shown to be better**"
    return f"Over {len(same)} training seeds and the prompts together {value:.3f} more ({low:.3f} to {high:.3f}): {verdict}."


@st.cache_data(max_entries=32, show_spinner=False)
def _pooled(
    _store: Store, publication: tuple[int, int] | None, run_ids: tuple[str, ...], pair: tuple[str, str], metric: str
) -> tuple[float, float, float] | None:
    """Return the difference in a metric of a pair over several runs, with its interval; None if one run lacks a method."""
    found = over_seeds(_store, [_store.run(run_id) for run_id in run_ids], pair)["differences"]
    if not found:
        return None
    (((first, _), measures),) = found.items()
    if (estimate := measures.get(metric)) is None:
        return None
    sign = 1 if first == pair[0] else -1
    low, high = sorted((sign * estimate.low, sign * estimate.high))
    return sign * estimate.value, low, high


def pair_matrix(store: Store, view: View, kind: str) -> pd.DataFrame:
    """Return a statistic of PAIRS for every row method against every column method."""
    values = pd.DataFrame(float("nan"), index=view.methods, columns=view.methods)
    if kind in ("mean_j", "hypervolume"):
        compared = store.comparisons(view.run_id)
        for row in compared[compared.statistic == kind].itertuples():
            if row.method_a in view.methods and row.method_b in view.methods:
                values.loc[row.method_a, row.method_b] = row.probability
                values.loc[row.method_b, row.method_a] = 1 - row.probability
        return values
    for row in view.metrics[view.metrics.metric == kind].itertuples():
        if row.target in view.methods:
            values.loc[row.method, row.target] = row.value
    return values


def _volumes_and_costs(store: Store, view: View) -> None:
    kind, _ = choose_vectors(store, view)
    prefix = "" if kind == "rewards" else "regularized_"
    left, right = st.columns(2, gap="large")
    with left:
        st.header("Hypervolume")
        above = st.segmented_control(
            "Above", ["point", "reference"], default="point", format_func=ABOVE.__getitem__, key="above", bind="query-params",
            required=True,
        )  # fmt: skip
        metric = f"{prefix}hypervolume" + ("_above_reference" if above == "reference" else "")
        show(
            charts.metric_figure(view.metrics, metric, "hypervolume", view.styles),
            "hypervolume",
            f"Hypervolume of every method, {kind}, with its 95 % interval",
        )
        point = ", ".join(f"{value:g}" for value in view.run["reference_point"])
        where = f"the point ({point})" if above == "point" else "what the reference policy itself reaches"
        st.caption(f"Of {VECTORS[kind].lower()}, above {where}, with 95 % intervals.")
    with right:
        st.header("Benefit beside cost")
        cost = st.selectbox("Cost", list(COSTS), format_func=COSTS.__getitem__, key="cost", bind="query-params")
        costs = store.methods(view.run_id)[["method", cost]]
        own = view.metrics[view.metrics.metric == view.leads][["method", "value", "low", "high"]]
        benefit, name = own.merge(costs, on="method").dropna(subset=cost), METRICS[view.leads].title
        show(
            charts.cost_figure(benefit, cost, COSTS[cost], view.styles, name),
            "cost-figure",
            f"{name} against {COSTS[cost]}",
        )
        st.caption("Further up is better, further left is cheaper.")


def _measures(view: View) -> None:
    own = view.metrics[view.metrics.target.isna() & view.metrics.metric.isin(METRICS)]
    table = own.pivot(index="method", columns="metric", values="value").reindex(view.methods)
    table = table[[name for name in METRICS if name in table]]
    columns = [Column(METRICS[name].title, table[name], f"z.{METRICS[name].digits}f") for name in table]
    show_table([Column("method", table.index, LABEL), *columns], "Measures of every method")
    with st.expander("What the measures mean"):
        st.markdown("\n".join(f"- **{METRICS[name].title}**: {METRICS[name].sentence}" for name in table))
    download(own.drop(columns="target"), f"measures-{view.run_id}")
