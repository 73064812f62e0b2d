"""The sweep: every method at every weighting on unseen prompts, scored and written as results.

May import: training and everything below it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
