from .corpus import build_corpus as build_corpus
from .pairs import build_pairs as build_pairs
from .splits import read_split as read_split
from .splits import references as references
from .transcripts import is_transcript as is_transcript
from .transcripts import to_messages as to_messages

__all__ = ["build_corpus", "build_pairs", "is_transcript", "read_split", "references", "to_messages"]
