from .comparison import report as report
from .definition import Study as Study
from .definition import load_study as load_study
from .runs import Run as Run
from .runs import plan as plan
from .schedule import run_study as run_study

__all__ = ["Run", "Study", "load_study", "plan", "report", "run_study"]
