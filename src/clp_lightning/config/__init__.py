"""What params.yaml says: read, checked key by key, frozen.

May import: the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
