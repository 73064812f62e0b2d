"""Training: SFT, CLP (`clp.py` reads like the algorithm box), reward models; losses, baselines, checkpoints.

May import: policy, rewards, steering, data, config, the root modules.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
