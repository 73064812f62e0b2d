"""What every table and picture says alike: a method's colour and marker, a weighting, a difference, a monitor's name."""

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from clp_lightning.store.queries import MONITORS, REFERENCE

# Okabe & Ito's palette, told apart with any colour vision; shapes differ too, for print in grey.
METHOD_STYLES: dict[str, tuple[str, str]] = {
    REFERENCE: ("#6E6E6E", "star"),
    "clp-full": ("#0072B2", "circle"),
    "clp-attn": ("#56B4E9", "square"),
    "clp-logit": ("#009E73", "diamond"),
    "clp-prompt": ("#CC79A7", "triangle-up"),
    "rewarded-soups": ("#D55E00", "triangle-down"),
    "logit-mixing": ("#E69F00", "x"),
    "morlhf": ("#000000", "cross"),
    "clp-full+prompt": ("#332288", "hexagon"),
    "best-of-4": ("#882255", "triangle-left"),
    "dera-half": ("#88CCEE", "diamond-tall"),
    "soups-ties": ("#AA4499", "triangle-right"),
    "soups-dare": ("#999933", "pentagon"),
}
MONITOR_NAMES = dict(zip(MONITORS, ("ROUGE-L", "coverage", "KL", "length", "dist-2"), strict=True))
BASELINES = ("rewarded-soups", "clp-prompt")  # every method is set against them
# What methods are compared by (`store.objective.MEASURES`), as a table heads it.
MEASURE_NAMES = {
    "mean_j": "mean J", "mean_kl": "mean KL", "worst_objective": "highest floor", "hypervolume": "hypervolume",
    "hypervolume_above_reference": "hypervolume above the reference policy",
    "regularized_hypervolume": "hypervolume of regularized rewards",
    "regularized_hypervolume_above_reference": "hypervolume of regularized rewards above the reference policy",
}  # fmt: skip
CAVEAT = "Intervals cover the choice of test prompts and their groups, not the spread between training runs."


def method_styles(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker (plotly's name) of each method, the same in every picture; unknown ones take unused styles."""
    methods = list(methods)
    free = [style for name, style in METHOD_STYLES.items() if name not in methods and name != REFERENCE]
    spare = itertools.cycle(free or list(METHOD_STYLES.values())[1:])
    return {method: METHOD_STYLES.get(method) or next(spare) for method in methods}


def difference_sentence(pair: Mapping[str, Any]) -> str:
    """One paired difference of a comparison in words, with the method that is ahead first, and the KL of both."""
    (a, b), difference, (low, high), ahead = (
        pair["methods"],
        pair["difference"],
        pair["interval"],
        pair["probability"],
    )
    if difference < 0:
        a, b, difference, low, high, ahead = b, a, -difference, -high, -low, 1 - ahead
    verdict = "" if low > 0 else "; the interval includes 0, so neither is shown to be better"
    if pair["statistic"] == "mean_j":
        lead = f"{a} is ahead of {b} by {difference:.3f} in mean J, 95 % interval [{low:.3f}, {high:.3f}]"
    else:
        lead = f"{a} encloses {difference:.2f} more than {b}, 95 % interval [{low:.2f}, {high:.2f}]"
    kl = pair["kl"]
    paid = "" if kl is None else f", KL {kl[a]:.2f} against {kl[b]:.2f} nats"
    return f"{lead}, with probability {ahead:.0%}{paid}{verdict}"


def strength(comparison: Mapping[str, Any]) -> str:
    """Say at which KL strength a comparison's J is: one, or each weighting's own; nothing where a run does not tell."""
    alphas = {round(point["alpha"], 9) for method in comparison["methods"] for point in method["by_weighting"]}
    if not alphas:
        return ""
    return f"alpha {min(alphas):g}" if len(alphas) == 1 else "alpha 1 - w, each weighting's own"


def weighting_label(weighting: Mapping[str, float] | None) -> str:
    """Weights in the order of the objectives, as in `0.3 : 0.7`; a dash for a policy that takes none."""
    if weighting is None:
        return "–"
    separator = " : " if len(weighting) <= 2 else ":"
    return separator.join(f"{round(value, 2):g}" for value in weighting.values())
