from .corpus import build_corpus as build_corpus
from .pairs import build_pairs as build_pairs
from .splits import read_split as read_split
from .splits import references as references
from .transcripts import Conversation as Conversation
from .transcripts import from_messages as from_messages
from .transcripts import from_transcript as from_transcript
from .transcripts import is_transcript as is_transcript
from .transcripts import to_messages as to_messages

__all__ = [
    "Conversation",
    "build_corpus",
    "build_pairs",
    "from_messages",
    "from_transcript",
    "is_transcript",
    "read_split",
    "references",
    "to_messages",
]
