from .methods import Contestant as Contestant
from .on_demand import evaluate_policy as evaluate_policy
from .on_demand import summarize as summarize
from .results import evaluate_into as evaluate_into
from .sweep import Sweep as Sweep
from .sweep import evaluate as evaluate

__all__ = ["Contestant", "Sweep", "evaluate", "evaluate_into", "evaluate_policy", "summarize"]
