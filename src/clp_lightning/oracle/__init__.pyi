from . import run as run
from .exact import Problem as Problem
from .exact import Score as Score
from .exact import optimum as optimum

__all__ = ["Problem", "Score", "optimum", "run"]
