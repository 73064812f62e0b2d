from .bootstrap import Bootstrap as Bootstrap
from .bootstrap import cluster_bootstrap as cluster_bootstrap
from .clusters import intraclass_correlation as intraclass_correlation
from .metrics import hypervolume as hypervolume
from .metrics import nondominated as nondominated
from .metrics import steerability as steerability
from .objective import objective as objective
from .objective import regret as regret
from .objective import regularized as regularized
from .objective import split_weightings as split_weightings
from .seeds import Estimate as Estimate
from .seeds import hierarchical as hierarchical

__all__ = [
    "Bootstrap",
    "Estimate",
    "cluster_bootstrap",
    "hierarchical",
    "hypervolume",
    "intraclass_correlation",
    "nondominated",
    "objective",
    "regret",
    "regularized",
    "split_weightings",
    "steerability",
]
