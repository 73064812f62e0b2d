from . import champion as champion
from .challenger import promote as promote
from .challenger import sentence as sentence
from .decision import Candidate as Candidate
from .decision import Decision as Decision
from .decision import decide as decide

__all__ = ["Candidate", "Decision", "champion", "decide", "promote", "sentence"]
