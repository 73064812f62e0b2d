"""Each metric of the store in one sentence for people; docs/metrics.md has definitions and sources."""

from typing import NamedTuple


class Explanation(NamedTuple):
    """Heading of a column, what it means, and digits after the point."""

    title: str
    sentence: str
    digits: int = 2


METRICS = {
    "mean_j": Explanation(
        "mean J", "What training maximizes, (1 - alpha) w·R - alpha KL, averaged over the weightings. More is better.", 3
    ),
    "mean_regret": Explanation(
        "regret", "How much more J the best method at each weighting has, on average. Less is better.", 3
    ),
    "mean_kl": Explanation("KL", "KL to the reference policy in nats per answer: what rewards are bought with."),
    "hypervolume": Explanation("hypervolume", "The space the frontier encloses above the reference point. More is better."),
    "hypervolume_above_reference": Explanation(
        "above the reference", "The space the frontier encloses above what the reference policy itself reaches. More is better."
    ),
    "regularized_hypervolume": Explanation(
        "regularized", "The hypervolume of (1 - alpha) R - alpha KL, which KL cannot buy. More is better."
    ),
    "regularized_hypervolume_above_reference": Explanation(
        "regularized, above the reference", "The same above what the reference policy itself reaches. More is better."
    ),
    "expected_utility": Explanation(
        "expected utility", "What a user gets on average who may pick the best of all points for their weighting. More is better."
    ),
    "mean_inner_product": Explanation(
        "mean w·R", "What a user gets on average who takes the point made for their weighting. More is better."
    ),
    "worst_objective": Explanation(
        "highest floor", "Of each point its worst objective, of all points the best of these. More is better."
    ),
    "cvar": Explanation(
        "worst quarter", "Mean w·R of the quarter of prompts with the least of it, averaged over the weightings. More is better."
    ),
    "tradeoff_distance": Explanation(
        "off the request", "How far the trade-off that is reached is from the one that was asked for, 0 to 1. Less is better."
    ),
    "reward_covariance": Explanation(
        "spread", "Determinant of the rewards' covariance over prompts at one weighting, averaged. Less: it lands more reliably."
    ),
    "igd_plus": Explanation("IGD+", "How far the points fall short of all methods' frontier together. Less is better."),
    "sparsity": Explanation(
        "sparsity", "Mean squared gap between neighbours; its authors say: only beside the hypervolume. Less is better."
    ),
    "cardinality": Explanation("points on front", "How many points no other point of the method dominates.", 0),
    "off_grid_regret": Explanation(
        "off-grid regret", "What is lost at weightings between the grid's against its best point; at or below 0 nothing is."
    ),
}  # fmt: skip

PAIRS = {
    "mean_j": Explanation(
        "J ahead", "Probability that the row's mean J is larger than the column's, from the paired bootstrap over groups of "
        "prompts."
    ),
    "dominated_share": Explanation(
        "Points dominated", "Share of the column's points that some point of the row beats in one objective and equals or beats "
        "in all."
    ),
    "hypervolume": Explanation(
        "Hypervolume ahead", "Probability that the row's hypervolume is larger than the column's, from the paired bootstrap over "
        "groups of prompts."
    ),
    "regularized_dominated_share": Explanation(
        "Regularized points dominated", "The same share of the points (1 - alpha) R - alpha KL, which KL cannot buy."
    ),
    "dominates_all": Explanation(
        "Dominates all", "Share of resamples of the prompts in which the row dominates every point of the column."
    ),
    "win_rate": Explanation(
        "Win rate", "Share in which the row's answer has more w·R than the column's at the same weighting; ties are halves."
    ),
}  # fmt: skip

COSTS = {
    "rollouts": "rollouts of training",
    "generated_tokens": "tokens generated in training",
    "train_seconds": "seconds of training",
    "stored_parameters": "parameters stored",
    "models": "models kept",
    "forward_passes_per_token": "forward passes per token of an answer",
}
