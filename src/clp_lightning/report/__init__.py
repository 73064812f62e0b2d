"""What people read of a run: tables, pictures, one HTML file, and the words and colours that all of them share.

May import: store, frontier, config, the root modules (no torch).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
