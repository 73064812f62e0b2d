"""The stages that dvc.yaml runs, one function each: they read and write files and call everything below.

May import: everything below it; heavy libraries when a stage runs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
