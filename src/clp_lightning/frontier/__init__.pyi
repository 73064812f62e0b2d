from .bootstrap import Bootstrap as Bootstrap
from .metrics import hypervolume as hypervolume
from .metrics import nondominated as nondominated
from .metrics import steerability as steerability
from .seeds import Estimate as Estimate
from .seeds import nested as nested

__all__ = ["Bootstrap", "Estimate", "hypervolume", "nested", "nondominated", "steerability"]
