from .engine import Engine as Engine
from .playground import Playground as Playground
from .playground import Setting as Setting

__all__ = ["Engine", "Playground", "Setting"]
