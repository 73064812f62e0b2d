from .loading import load_base as load_base
from .rollout import Prompts as Prompts
from .rollout import Responses as Responses
from .steerable import SteerablePolicy as SteerablePolicy
from .tokens import TokenPolicy as TokenPolicy

__all__ = ["Prompts", "Responses", "SteerablePolicy", "TokenPolicy", "load_base"]
