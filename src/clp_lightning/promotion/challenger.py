"""`clp promote`: set the policy that the pipeline just evaluated against the one in use, and decide."""

import datetime
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

    Challenger, champion (the reference policy where there is none) and reference policy answer test prompts that are drawn for
    this decision: prompts on which one policy after another is chosen favour whoever was lucky on them. Returns the row of the
    store's table `decisions`, or None when there is nothing new to decide: the champion is that very policy, it was refused
    against this champion under this rule before, or it was rolled back. Raises `ClpError` when the pipeline is not up to date or
    the champion's files are damaged; the champion is then what it was.
    """
    method, before = config.promotion.method, champion.current()
    name = champion.identity(method)
    if before is not None and name in (before["id"], *champion.rolled_back(before)):
        return None
    if _refused(name, None if before is None else before["id"], config):
        return None
    if before is not None and before["method"] not in config.methods:
        raise ClpError(
            f"the champion is a {before['method']}, which params.yaml no longer has; add it, or delete {paths.CHAMPION}"
        )
    published = read_method(paths.RESULTS / method, method, config.objectives)
    if published.summary.get("weights_hash") != fingerprint(paths.MODELS / method):
        raise ClpError(f"{paths.RESULTS / method} holds the results of other parameters; run {make('repro')} first")
    champion.keep(name, method, paths.RESULTS / method)
    challenger, defender, reference = _answers(name, method, before, config)
    decision = promotion.decide(
        _candidate(challenger), None if defender is None else _candidate(defender), _candidate(reference),
        reference.groups, config,
    )  # fmt: skip
    now = datetime.datetime.now(datetime.UTC).replace(tzinfo=None)
    row = _row(decision, config) | {
        "run_id": Store(paths.STORE).run()["run_id"], "decided_at": now, "method": method, "challenger": name,
        "champion": None if before is None else before["id"], "prompts": len(reference.prompts),
    }  # fmt: skip
    record_decision(paths.STORE, row)  # before the champion changes: a decision without effect is made again
    if decision.promoted:
        champion.crown(name, method, now.isoformat(timespec="seconds"), against=row["champion"])
    return row


def _refused(challenger: str, defender: str | None, config: Config) -> bool:
    decisions, run = Store(paths.STORE).decisions(), Store(paths.STORE).run()["run_id"]
    theirs = decisions.champion.isna() if defender is None else decisions.champion == defender
    same = decisions[(decisions.run_id == run) & (decisions.challenger == challenger) & theirs]
    rule = config.promotion.model_dump(mode="json")
    return any(not row.promoted and row.rule == rule for row in same.itertuples())


def _answers(
    name: str, method: str, before: dict[str, Any] | None, config: Config
) -> tuple[MethodResults, MethodResults | None, MethodResults]:
    """Return what challenger, champion (if there is one) and reference policy answer to prompts drawn for this decision.

    The draw follows from the weights of the two policies: who decides again, or trains the same again, gets the same prompts.
    """
    from clp_lightning.evaluation.prompts import draw_prompts  # torch, for this only
    from clp_lightning.evaluation.results import evaluate_into

    against = REFERENCE if before is None else before["id"]
    folder = paths.KEPT / name / f"decision-{against}"
    asked = {"reference": (REFERENCE, name), "challenger": (method, name)}
    if before is not None:
        asked["champion"] = (before["method"], before["id"])
    weights = [
        file for what, whose in asked.values() for file in sorted((paths.KEPT / whose / what).glob("*.safetensors"))
    ]
    seed = int(
        fingerprint(config.seed, *weights)[:8], 16
    )  # not of the names: a policy's card holds the time that it took
    prompts = draw_prompts(config, count=config.promotion.prompts, seed=seed)
    found: dict[str, MethodResults] = {}
    for role, (what, whose) in asked.items():
        evaluate_into(config, what, paths.KEPT / whose, folder / role, prompts)
        found[role] = alike(found.get("reference"), read_method(folder / role, what, config.objectives))
    return found["challenger"], found.get("champion"), found["reference"]


def _candidate(found: MethodResults) -> promotion.Candidate:
    return promotion.Candidate(found.sampled, found.points["length"].to_numpy())


def _row(decision: promotion.Decision, config: Config) -> dict[str, Any]:
    difference = decision.difference
    return {
        "promoted": decision.promoted, "reasons": list(decision.reasons), "statistic": config.promotion.statistic,
        "value": decision.value, "other_value": decision.other_value, "difference": difference.value,
        "low": difference.low, "high": difference.high, "probability": difference.probability,
        "worst_case": list(decision.worst_case.values()),
        "worst_case_fall": list(decision.worst_case_fall.values()) or None,
        "kl": decision.kl, "length_ratio": decision.length_ratio, "rule": config.promotion.model_dump_json(),
    }  # fmt: skip


def sentence(row: dict[str, Any]) -> str:
    """Say in a line what was decided and why."""
    who = f"{row['method']} {row['challenger']}"
    against = "the reference policy (the first champion)" if row["champion"] is None else f"champion {row['champion']}"
    figures = (
        f"{promotion.NAMES[row['statistic']]} {row['value']:.3f} against {row['other_value']:.3f} on {row['prompts']} "
        f"prompts drawn for this, difference {row['difference']:.3f} [{row['low']:.3f}, {row['high']:.3f}], larger with "
        f"probability {row['probability']:.3f}"
    )
    verdict = "promoted" if row["promoted"] else "not promoted"
    return f"{verdict}: {who} against {against}: {figures}" + "".join(f"; {reason}" for reason in row["reasons"])
