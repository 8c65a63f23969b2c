"""What a stored message is found by."""

from service.domain.messages import content_of
from service.domain.words import as_vector, searched_text, words_of


def vector_of(body: bytes) -> str:
    """The words of an encoded body as the text of a tsvector."""
    return as_vector(words_of(searched_text(content_of(body))))
