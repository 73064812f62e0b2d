"""The paper's idea: experts on linear layers, averaged per row by a weighting; other ways to mix and merge them.

May import: config, the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
