"""What a stored message is found by."""

import msgspec

from service.domain.messages import content_of
from service.domain.words import as_vector, searched_text, words_of


def vector_of(body: bytes) -> str:
    """The words of an encoded body as the text of a tsvector."""
    try:
        content = content_of(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        # No JSON of ours: PostgreSQL is the one to refuse it, or it has no words.
        return ""
    return as_vector(words_of(searched_text(content)))
