"""A folder to work in: `clp init`, the workspaces of `make repro RECIPE=...`, dvc.yaml made to fit, `clp doctor`.

May import: config, data, store and policy (doctor, when it looks), the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
