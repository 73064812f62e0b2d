"""A study: methods x training seeds x budgets, run side by side over days and machines, and the table that decides it.

May import: everything below it; torch in the process of one run only.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
