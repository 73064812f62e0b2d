"""The store of frontiers, one DuckDB file: schema, atomic publication, queries. The only SQL of the project.

May import: frontier, config, the root modules (no torch).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
