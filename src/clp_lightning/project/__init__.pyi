from .doctor import examine as examine
from .workspace import prepare as prepare

__all__ = ["examine", "prepare"]
