from .conditioned import ConditionedLinear as ConditionedLinear
from .experts import Experts as Experts
from .layers import conditioned_set as conditioned_set
from .merging import merge as merge
from .mixing import Mixture as Mixture

__all__ = ["ConditionedLinear", "Experts", "Mixture", "conditioned_set", "merge"]
