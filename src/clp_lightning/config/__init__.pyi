from .derived import Derived as Derived
from .methods import REFERENCE as REFERENCE
from .methods import Method as Method
from .parameters import Config as Config
from .parameters import load_config as load_config

__all__ = ["REFERENCE", "Config", "Derived", "Method", "load_config"]
