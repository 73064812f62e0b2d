"""Fifth page: retrainings over time, the champion, every decision, what each stage cost, and what differs between runs."""

import json
import os
from pathlib import Path
from typing import Any

import charts
import pandas as pd
import streamlit as st
from shared.common import choose_run, download, guarded, show
from shared.explanations import METRICS

from clp_lightning.errors import ClpError
from clp_lightning.report.labels import method_styles
from clp_lightning.store.queries import Store

PLACE = 6  # among the pages
SHOWN = (
    "mean_j",
    "mean_kl",
    "hypervolume",
    "hypervolume_above_reference",
    "regularized_hypervolume",
    "worst_objective",
)


def page(store: Store) -> None:
    """Draw the page."""
    guarded("Runs and promotions", "Every retraining, which policy is in use, and why.", _page, store)


def _page(store: Store) -> None:
    runs, decisions = store.runs(), store.decisions()
    store.run()
    st.info(champion_sentence(store.path.parent / "models" / "champion.json"), icon=":material/trophy:")
    st.link_button("Scheduled runs in Prefect", f"{prefect_address()}/runs", icon=":material/open_in_new:")
    metric = st.selectbox(
        "Measure", SHOWN, format_func=lambda name: METRICS[name].title, key="measure", bind="query-params"
    )
    history, title = store.history(metric), METRICS[metric].title
    st.header(f"{title[0].upper()}{title[1:]} over the runs")
    crowned = decisions[decisions.promoted]
    promoted = set(zip(crowned.run_id, crowned.method, strict=True))
    show(
        charts.history_figure(history, method_styles(history.method.unique()), title, promoted),
        "history",
        f"{title} of every method over the runs",
    )
    st.caption("Runs on other prompts or axes are not comparable by height.")
    _decisions(decisions, runs)
    st.header("One run")
    run = store.run(choose_run(store))
    _stages(store, run["run_id"])
    _differences(store, runs, run)


def prefect_address() -> str:
    """Return where Prefect's own pages are: as Prefect is configured, else where `make server` serves them."""
    api = os.environ.get("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    return os.environ.get("PREFECT_UI_URL") or api.removesuffix("/").removesuffix("/api")


def champion_sentence(path: Path) -> str:
    """Say which policy is in use, or that there is none or the file is broken."""
    from clp_lightning.files import read_json

    if not path.exists():
        return "No policy has been promoted yet. `clp promote` compares the newest one and makes it the champion if it is better."
    try:
        entry = read_json(path, remedy="restore it or delete it")
        earlier = f", {len(entry['history'])} before it" if entry["history"] else ""
        when = entry["promoted_at"].replace("T", " ")
        return f"Champion: **{entry['method']}** `{entry['id']}`, promoted {when} UTC{earlier}."
    except (ClpError, KeyError, TypeError, AttributeError) as error:
        return f"The champion's file cannot be read: {error}"


def _decisions(decisions: pd.DataFrame, runs: pd.DataFrame) -> None:
    st.header("Decisions")
    if decisions.empty:
        st.caption("None yet: they are made by the scheduled retraining, or by `clp promote`.")
        return
    shown = pd.DataFrame({
        "when": decisions.decided_at, "outcome": decisions.promoted.map({True: "promoted", False: "refused"}),
        "method": decisions.method, "challenger": decisions.challenger,
        "against": decisions.champion.fillna("reference policy"),
        "statistic": decisions.statistic, "value": decisions.value, "the other's": decisions.other_value,
        "difference": decisions.difference, "probability": decisions.probability, "KL": decisions.kl,
        "length ratio": decisions.length_ratio, "prompts": decisions.prompts,
        "reasons": ["; ".join(reasons) for reasons in decisions.reasons],
        "run": decisions.run_id,
    })  # fmt: skip
    number = st.column_config.NumberColumn(format="%.2f")
    st.dataframe(
        shown, hide_index=True, width="stretch", alt="Every promotion and refusal with its figures",
        column_config={
            **dict.fromkeys(("value", "the other's", "difference", "KL", "length ratio"), number),
            "probability": st.column_config.NumberColumn(format="percent", help="That the challenger's value is larger."),
            "when": st.column_config.DatetimeColumn(format="YYYY-MM-DD HH:mm"),
        },
    )  # fmt: skip
    download(shown, "decisions")


def _stages(store: Store, run_id: str) -> None:
    stages = store.stages(run_id)
    if stages.empty:
        st.caption("When its stages ran was not recorded (a run of an older version).")
        return
    st.subheader("Stages", anchor=False)
    show(charts.stages_figure(stages), "stages", "Seconds of each stage")
    st.caption(
        f"Last executions, {stages.seconds.sum():,.0f} s together; one that was resumed counts its last part only."
    )


def _differences(store: Store, runs: pd.DataFrame, run: dict[str, Any]) -> None:
    st.subheader("Parameters", anchor=False)
    if len(runs) > 1:
        other = store.run(choose_run(store, "Compare with", key="other"))
        table = differences(run["params"], other["params"])
        if other["run_id"] != run["run_id"]:
            if table.empty:
                st.caption("Both runs have the same parameters.")
            else:
                st.dataframe(table, hide_index=True, width="stretch", alt="Parameters that differ between the two runs")
    with st.expander("All parameters of the run"):
        st.json(run["params"], expanded=1)
        commit = run["code_commit"] if pd.notna(run["code_commit"]) else "not known"
        st.text(f"Code {commit}, corpus {run['corpus_hash']}, {run['machine']}")
        st.text(", ".join(f"{name} {version}" for name, version in run["versions"].items()))


def differences(left: dict[str, Any], right: dict[str, Any]) -> pd.DataFrame:
    """Return the parameters that differ between two runs: dotted name, value here, value there."""
    a, b = (pd.json_normalize(params).to_dict("records")[0] for params in (left, right))
    names = [name for name in sorted(a.keys() | b.keys()) if a.get(name, "–") != b.get(name, "–")]
    rows = [(name, *(json.dumps(params[name]) if name in params else "–" for params in (a, b))) for name in names]
    return pd.DataFrame(rows, columns=["parameter", "this run", "the other"])
