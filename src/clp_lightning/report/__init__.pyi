from .run import comparison as comparison
from .run import write_report as write_report

__all__ = ["comparison", "write_report"]
