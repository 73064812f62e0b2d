"""Rewards as plug-ins: learned, rules, Python, HTTP, judges; their frozen normalization; monitors that are only watched.

May import: data (transcripts), config, the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
