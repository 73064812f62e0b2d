"""What comes in: the default corpus, a user's own rows, preference pairs; split, checked and counted.

May import: config, the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
