"""Words: what a message is found by. The same rules make the index and read the query.

Text is compared by NFKC and case folding, without stemming: no language is known. Scripts that
write without spaces (and Hangul, whose words carry endings) are indexed by pairs of characters and
the last one of each run, so that words of any length are found; three characters and more are
looked for in the text again, for pairs alone would find "ab … bc" for "abc".
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from operator import add
from typing import Final

import msgspec

from service.domain.errors import InvalidValue
from service.domain.messages import Content

WORD_CHARACTERS_MAX: Final = 48
"""Of a longer word the beginning is indexed, and of one that is looked for too."""

WORDS_MAX: Final = 5000
"""Different words of one message that are indexed, the first ones. With the longest words of four
bytes a character that is still below the megabyte that PostgreSQL can index of a row."""

QUERY_CHARACTERS_MAX: Final = 500
QUERY_WORDS_MAX: Final = 16

# Scripts whose blocks have punctuation and signs beside their letters: Thai, Lao, Myanmar, Khmer,
# iteration marks, Kana and their extensions.
_MIXED_BLOCKS: Final = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007)),
    *((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F)),
)
# Blocks of letters alone: Hangul, Kana supplements, Han with its extensions.
_LETTERS: Final = (
    "\u1100-\u11ff\ua960-\ua97f\uac00-\ud7ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_MARK_BLOCKS: Final = (
    *((0x0300, 0x2FFF), (0xA000, 0xABFF), (0xFE20, 0xFE2F)),
    *((0x10A00, 0x11FFF), (0x16A00, 0x16FFF), (0x1E000, 0x1E94F)),
)


def _of(categories: str, blocks: Iterable[tuple[int, int]]) -> str:
    """Characters of these blocks whose category begins with one of the letters."""
    codes = (code for first, last in blocks for code in range(first, last + 1))
    return "".join(chr(code) for code in codes if unicodedata.category(chr(code))[0] in categories)


_SPACELESS: Final = _LETTERS + _of("LMN", _MIXED_BLOCKS)
# Python's word characters leave out combining marks, such as Indic vowels.
_RUNS: Final = re.compile(
    rf"([{_SPACELESS}]+)|([^\W_{_SPACELESS}](?:[^\W_{_SPACELESS}]|[{_of('M', _MARK_BLOCKS)}])*)"
)
MARKS_MAX: Final = 30
"""Marks on one character, as in Unicode's stream-safe format (UAX 15): putting more in order takes
time that grows with their square."""


def _is_mark(code: int) -> bool:
    """Whether the character, taken apart, begins with one that is put in order."""
    return unicodedata.combining(unicodedata.normalize("NFKD", chr(code))[0]) != 0


# Those outside these blocks are few and scattered.
_MARKS: Final = frozenset(
    chr(code)
    for first, last in (
        *(*_MARK_BLOCKS, (0x3000, 0x30FF), (0xFB1E, 0xFB1E), (0xFF00, 0xFFEF)),
        *((0x101FD, 0x1037A), (0x1BC9E, 0x1BC9E), (0x1D100, 0x1D2FF)),
    )
    for code in range(first, last + 1)
    if _is_mark(code)
)
_MARK: Final = "".join(sorted(_MARKS))
_MARK_RUNS: Final = re.compile(rf"([{_MARK}]{{{MARKS_MAX}}})[{_MARK}]+")
FOLDED_CHARACTERS_MAX: Final = 300_000
"""Of a text that folding makes longer the beginning is found: one character may become 18."""
_ASCII: Final = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}


class WordQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Words that a message must have, all of them."""

    lexemes: tuple[str, ...]
    prefixes: tuple[str, ...]
    """Beginnings of lexemes: single characters of scripts without spaces."""
    runs: tuple[str, ...]
    """To be looked for in the text, since their lexemes may be apart there."""


def searched_text(content: Content) -> str:
    """The text that a message is found by: what is said, not its metadata or tool calls."""
    match content:
        case str():
            return content
        case list():
            texts = (part.get("text") for part in content)
            return "\n".join(text for text in texts if isinstance(text, str))
        case None:
            return ""


def words_of(text: str) -> set[str]:
    """The lexemes of a text, at most WORDS_MAX."""
    if text.isascii():
        found = set(text.translate(_ASCII).split())
        if max(map(len, found), default=0) > WORD_CHARACTERS_MAX:
            found = {word[:WORD_CHARACTERS_MAX] for word in found}
    else:
        found = _lexemes(text)
    return found if len(found) <= WORDS_MAX else _first(_ordered_lexemes(text))


def as_vector(words: Iterable[str]) -> str:
    """The words as PostgreSQL reads a tsvector; none of them has a quote or a backslash."""
    joined = "' '".join(words)
    return f"'{joined}'" if joined else ""


def as_tsquery(query: WordQuery) -> str:
    """The query as PostgreSQL reads a tsquery."""
    exact = [f"'{lexeme}'" for lexeme in query.lexemes]
    return " & ".join([*exact, *(f"'{prefix}':*" for prefix in query.prefixes)])


def parse_query(text: str, field: str) -> WordQuery:
    """Raises InvalidValue for a query without words, or with too many."""
    if len(text) > QUERY_CHARACTERS_MAX:
        raise InvalidValue.of(field, f"must be at most {QUERY_CHARACTERS_MAX} characters")
    lexemes: dict[str, None] = {}
    prefixes: dict[str, None] = {}
    runs: dict[str, None] = {}
    # A mark alone is no word, though it may stand in one.
    found = [(run, kind) for run, kind in _runs(text) if any(map(str.isalnum, run))]
    for run, spaceless in found:
        if not spaceless:
            lexemes[run[:WORD_CHARACTERS_MAX]] = None
        elif len(run) == 1:
            prefixes[run] = None
        else:
            lexemes |= dict.fromkeys(_pairs(run))
            if len(run) > 2:  # noqa: PLR2004  # Longer than a pair.
                runs[run] = None
    if not found:
        raise InvalidValue.of(field, "must contain a word")
    if len(found) > QUERY_WORDS_MAX:
        raise InvalidValue.of(field, f"must be at most {QUERY_WORDS_MAX} words")
    return WordQuery(lexemes=tuple(lexemes), prefixes=tuple(prefixes), runs=tuple(runs))


def has_runs(query: WordQuery, text: str) -> bool:
    """Whether what only the text can tell is so; the lexemes were compared before."""
    if not query.runs:
        return True
    folded = _folded(text)
    return all(run in folded for run in query.runs)


def has_words(query: WordQuery, text: str) -> bool:
    """Whether a message of this text is found: the rule that an index follows."""
    words = words_of(text)
    return (
        words.issuperset(query.lexemes)
        and all(any(word.startswith(start) for word in words) for start in query.prefixes)
        and has_runs(query, text)
    )


def _lexemes(text: str) -> set[str]:
    lexemes: set[str] = set()
    for run, spaceless in _runs(text):
        if spaceless:
            lexemes.update(map(add, run, run[1:]))
            lexemes.add(run[-1])
        else:
            lexemes.add(run[:WORD_CHARACTERS_MAX])
    return lexemes


def _ordered_lexemes(text: str) -> Iterator[str]:
    for run, spaceless in _runs(text):
        if spaceless:
            yield from _pairs(run)
            yield run[-1]
        else:
            yield run[:WORD_CHARACTERS_MAX]


def _runs(text: str) -> Iterator[tuple[str, bool]]:
    for match in _RUNS.finditer(_folded(text)):
        yield match[0], match[1] is not None


def _pairs(run: str) -> Iterator[str]:
    return (run[place : place + 2] for place in range(len(run) - 1))


def _folded(text: str) -> str:
    if _has_long_run_of_marks(text):
        text = _MARK_RUNS.sub(r"\1", text)
    # Folding may take a text apart again: then it is put together once more.
    most = max(len(text), FOLDED_CHARACTERS_MAX)
    return _normal(_normal(text)[:most].casefold())


def _has_long_run_of_marks(text: str) -> bool:
    """Whether some run may be longer than MARKS_MAX; every such one is met at one of these places.

    A look at few characters: nearly all texts have none.
    """
    half = MARKS_MAX // 2
    return any(
        text[place] in _MARKS
        and (
            _MARKS.issuperset(text[place : place + half])
            or _MARKS.issuperset(text[max(0, place - half) : place])
        )
        for place in range(MARKS_MAX, len(text), MARKS_MAX + 1)
    )


def _normal(text: str) -> str:
    if unicodedata.is_normalized("NFKC", text):
        return text
    return unicodedata.normalize("NFKC", text)


def _first(words: Iterable[str]) -> set[str]:
    first: set[str] = set()
    for word in words:
        if len(first) == WORDS_MAX:
            break
        first.add(word)
    return first
