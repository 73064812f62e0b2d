"""Statistics of frontiers, on arrays alone: hypervolume and its kin, the paired bootstrap, intervals over seeds.

May import: the root modules (numpy, scipy and moocore besides; no torch).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
