from . import stages as stages

__all__ = ["stages"]
