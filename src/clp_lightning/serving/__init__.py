"""A policy in use: continuous batching, the OpenAI-compatible server, the playground.

May import: policy, rewards, data (transcripts), config, the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
