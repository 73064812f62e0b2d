"""The command `clp`, a module for each group of commands.

May import: everything; heavy libraries when a command needs them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
