"""Each metric of the store in one sentence for people; docs/metrics.md has definitions and sources."""

from typing import NamedTuple


class Explanation(NamedTuple):
    """Heading of a column, what it means, and digits after the point."""

    title: str
    sentence: str
    digits: int = 2


METRICS = {
    "hypervolume": Explanation("hypervolume", "The space the frontier encloses above the reference point. More is better."),
    "expected_utility": Explanation(
        "expected utility", "What a user gets on average who may pick the best of all points for their weighting. More is better."
    ),
    "mean_inner_product": Explanation(
        "mean w·R", "What a user gets on average who takes the point made for their weighting. More is better."
    ),
    "worst_objective": Explanation(
        "highest floor", "Of each point its worst objective, of all points the best of these. More is better."
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
    "dominated_share": Explanation(
        "Points dominated", "Share of the column's points that some point of the row beats in one objective and equals or beats "
        "in all."
    ),
    "hypervolume": Explanation(
        "Hypervolume ahead", "Probability that the row's hypervolume is larger than the column's, from the paired bootstrap over "
        "prompts."
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
