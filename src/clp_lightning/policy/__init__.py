"""The steerable policy: model, tokenizer and experts; its prompts, rollouts, log-probabilities, folders and exports.

May import: steering, data (transcripts), config, the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
