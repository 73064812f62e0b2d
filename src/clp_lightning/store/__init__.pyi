from .publishing import forget as forget
from .publishing import publish as publish
from .publishing import record_decision as record_decision
from .queries import Store as Store
from .results import MethodResults as MethodResults
from .results import read_results as read_results
from .runs import against as against
from .runs import comparable as comparable
from .runs import over_seeds as over_seeds
from .runs import siblings as siblings

__all__ = [
    "MethodResults",
    "Store",
    "against",
    "comparable",
    "forget",
    "over_seeds",
    "publish",
    "read_results",
    "record_decision",
    "siblings",
]
