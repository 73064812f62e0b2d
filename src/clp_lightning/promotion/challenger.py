"""`clp promote`: set the policy that the pipeline just evaluated against the one in use, and decide."""

import datetime
from pathlib import Path
from typing import Any

from clp_lightning import paths
from clp_lightning.config.methods import REFERENCE
from clp_lightning.config.parameters import Config
from clp_lightning.errors import ClpError, make
from clp_lightning.files import fingerprint
from clp_lightning.promotion import champion
from clp_lightning.promotion import decision as promotion
from clp_lightning.store.queries import Store, record_decision
from clp_lightning.store.results import MethodResults, alike, read_method


def promote(config: Config) -> dict[str, Any] | None:
    """Decide about the method that `promotion.method` names, keep it, record the decision, and crown it if it is better.

    Returns the row of the store's table `decisions`, or None when there is nothing new to decide: the champion is that very
    policy, it was refused against this champion under this rule before, or it was rolled back. A champion that was
    evaluated on other prompts or axes answers the present ones first. Raises `ClpError` when the pipeline is not up to date or
    the champion's files are damaged; the champion is then what it was.
    """
    method, before = config.promotion.method, champion.current()
    name = champion.identity(method)
    if before is not None and name in (before["id"], *champion.rolled_back(before)):
        return None
    if before is not None and _refused(name, before["id"], config):
        return None
    reference = read_method(paths.RESULTS / REFERENCE, REFERENCE, config.objectives)
    challenger = alike(reference, read_method(paths.RESULTS / method, method, config.objectives))
    if challenger.summary.get("weights_hash") != fingerprint(paths.MODELS / method):
        raise ClpError(f"{paths.RESULTS / method} holds the results of other parameters; run {make('repro')} first")
    defender = None if before is None else _defender(before, reference, challenger, config)
    decision = promotion.decide(
        _candidate(challenger), None if defender is None else _candidate(defender),
        float(reference.points["length"].mean()), config,
    )  # fmt: skip
    champion.keep(name, method, paths.RESULTS / method)
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    row = _row(decision, config) | {
        "run_id": Store(paths.STORE).run()["run_id"], "decided_at": now, "method": method, "challenger": name,
        "champion": None if before is None else before["id"],
    }  # fmt: skip
    record_decision(paths.STORE, row)  # before the champion changes: a decision without effect is made again
    if decision.promoted:
        champion.crown(name, method, now.isoformat(timespec="seconds"), against=row["champion"])
    return row


def _refused(challenger: str, defender: str, config: Config) -> bool:
    decisions, run = Store(paths.STORE).decisions(), Store(paths.STORE).run()["run_id"]
    same = decisions[
        (decisions.run_id == run) & (decisions.challenger == challenger) & (decisions.champion == defender)
    ]
    rule = config.promotion.model_dump(mode="json")
    return any(not row.promoted and row.rule == rule for row in same.itertuples())


def _defender(
    entry: dict[str, Any], reference: MethodResults, challenger: MethodResults, config: Config
) -> MethodResults:
    """Return the champion's results on the challenger's axes: as they were kept, or measured now."""
    folder, method = paths.KEPT / entry["id"], entry["method"]
    if method not in config.methods:
        raise ClpError(
            f"the champion is a {method}, which params.yaml no longer has; add it, or delete {paths.CHAMPION}"
        )
    try:
        return _matched(folder / "results", method, reference, challenger, config)
    except ClpError:  # other prompts, axes or weightings
        from clp_lightning.evaluation.results import evaluate_into  # torch, for this case only

        evaluate_into(config, method, folder, folder / "results-now")
        return _matched(folder / "results-now", method, reference, challenger, config)


def _matched(
    folder: Path, method: str, reference: MethodResults, challenger: MethodResults, config: Config
) -> MethodResults:
    """Read results that can be set against the challenger's; raises `ClpError` when they cannot."""
    found = alike(reference, read_method(folder, method, config.objectives))
    if not found.points["weighting"].equals(challenger.points["weighting"]):
        raise ClpError(f"{folder} was made at other weightings")
    return found


def _candidate(found: MethodResults) -> promotion.Candidate:
    if found.weightings is None:
        raise ClpError(f"{found.method} takes no weightings; promotion.method names one that does")
    points = found.points
    return promotion.Candidate(found.weightings, found.rewards, points["kl"].to_numpy(), points["length"].to_numpy())


def _row(decision: promotion.Decision, config: Config) -> dict[str, Any]:
    difference = decision.difference
    return {
        "promoted": decision.promoted, "reasons": list(decision.reasons), "hypervolume": decision.hypervolume,
        "champion_hypervolume": decision.champion_hypervolume,
        "difference": None if difference is None else difference.value,
        "low": None if difference is None else difference.low,
        "high": None if difference is None else difference.high,
        "probability": None if difference is None else difference.probability,
        "worst_case": list(decision.worst_case.values()),
        "worst_case_fall": list(decision.worst_case_fall.values()) or None,
        "kl": decision.kl, "length_ratio": decision.length_ratio, "rule": config.promotion.model_dump_json(),
    }  # fmt: skip


def sentence(row: dict[str, Any]) -> str:
    """Say in a line what was decided and why."""
    who = f"{row['method']} {row['challenger']}"
    against = "the first champion" if row["champion"] is None else f"against champion {row['champion']}"
    if row["probability"] is not None:
        against += (
            f": hypervolume {row['hypervolume']:.2f} against {row['champion_hypervolume']:.2f}, difference "
            f"{row['difference']:.2f} [{row['low']:.2f}, {row['high']:.2f}], larger with probability {row['probability']:.3f}"
        )
    return f"{'promoted' if row['promoted'] else 'not promoted'}: {who}, {against}" + "".join(
        f"; {reason}" for reason in row["reasons"]
    )
