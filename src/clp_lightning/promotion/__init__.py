"""Which policy is in use: champion and challenger, the decision, rollback, what is kept and what is pruned.

May import: evaluation, store, frontier, config, the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
