"""Words: any word of a text finds it, and nothing that is no word of it does."""

import re
import string
import sys
from unicodedata import combining, normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain.errors import InvalidValue
from service.domain.words import (
    MARKS_MAX,
    QUERY_CHARACTERS_MAX,
    QUERY_WORDS_MAX,
    WORDS_MAX,
    _folded,  # pyright: ignore[reportPrivateUsage]  # what the runs are cut in
    has_words,
    parse_query,
    searched_text,
    words_of,
)

HAN = "東京都北京市天気予報日本語中文搜索"
WORDS = st.text(string.ascii_letters + string.digits + "äöüßéñçøąжяδ", min_size=1, max_size=12)
RUNS = st.text(HAN + "ひらがなカタカナ한국어", min_size=1, max_size=12)


def found(query: str, text: str) -> bool:
    return has_words(parse_query(query, "q"), text)


@given(st.lists(WORDS, min_size=1, max_size=8), st.data())
def test_every_word_of_a_text_finds_it_in_any_case(words, data):
    text = ", ".join(words)
    some = data.draw(st.lists(st.sampled_from(words), min_size=1, max_size=4))
    assert found(" ".join(some), text)
    assert found(" ".join(some).upper(), text)


@given(RUNS, RUNS, st.data())
def test_every_part_of_a_run_without_spaces_finds_its_text(before, run, data):
    start = data.draw(st.integers(0, len(run) - 1))
    end = data.draw(st.integers(start + 1, len(run)))
    assert found(run[start:end], f"{before} said: {run}!")


@given(st.lists(WORDS, max_size=8), WORDS)
def test_a_word_that_is_not_there_does_not_find_the_text(words, other):
    text = " ".join(words)
    assert found(other, text) == bool(words_of(other) <= words_of(text))


@given(st.text(HAN, min_size=3, max_size=5), st.text(HAN, max_size=30))
def test_three_characters_and_more_must_stand_together(word, text):
    assert found(word, text) == (word in text)


@pytest.mark.parametrize(
    ("query", "text", "is_found"),
    [
        ("straße", "STRASSE", True),
        ("café", "cafe\u0301 noir", True),
        ("cafe", "café noir", False),
        ("run", "running", False),
        ("ＡＢＣ１", "abc1", True),  # noqa: RUF001  # Full width.
        ("don't", "I don't know", True),
        ("snake case", "snake_case", True),
        ("हिन्दी", "मुझे हिन्दी आती है", True),
        ("ภาษา", "ฉันพูดภาษาไทย", True),
        ("京", "北京", True),
        ("都", "京都市", True),
        ("京北", "北京", False),
        ("東京都", "東京 京都", False),
        ("東京都", "東京。京都", False),
        ("서울", "서울에서 만나요", True),
        ("カタ", "カ・タ", False),
        ("မြန်မာ", "မြန်မာ။", True),
        ("𑄇𑄧", "x 𑄇𑄧 y", True),
        ("tokyo 東京", "東京 (Tokyo)", True),
    ],
)
def test_words_are_compared_as_people_expect(query, text, is_found):
    assert found(query, text) is is_found


@pytest.mark.parametrize(
    "query",
    [*("", "  ", "!?.,;", "_", "。、", "\u200b"), *("។", "။", "・", "฿", "๏", "\u20e3", "\u0301")],
)
def test_a_query_without_words_is_refused(query):
    with pytest.raises(InvalidValue, match="q: must contain a word"):
        parse_query(query, "q")


def test_a_query_too_long_or_of_too_many_words_is_refused():
    with pytest.raises(InvalidValue, match=f"at most {QUERY_CHARACTERS_MAX}"):
        parse_query("a" * (QUERY_CHARACTERS_MAX + 1), "q")
    many = " ".join(str(n) for n in range(QUERY_WORDS_MAX + 1))
    with pytest.raises(InvalidValue, match=f"at most {QUERY_WORDS_MAX} words"):
        parse_query(many, "q")


def test_a_text_has_at_most_so_many_words():
    assert len(words_of(" ".join(str(n) for n in range(3 * WORDS_MAX)))) == WORDS_MAX
    assert len(words_of("".join(chr(0x4E00 + n) for n in range(20_000)))) == WORDS_MAX


def test_only_what_is_said_is_searched():
    parts = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "b"}}]
    assert searched_text(parts) == "a"
    assert searched_text(None) == ""


def test_every_character_that_is_put_in_order_is_known_as_a_mark():
    everything = (chr(code) for code in range(sys.maxunicode + 1))
    ordered = {one for one in everything if combining(normalize("NFKD", one)[0])}
    for one in ordered:
        assert found("a" + one * (MARKS_MAX + 10), "a" + one * (MARKS_MAX + 20)), ascii(one)
    assert len(ordered) > 900


@given(st.integers(0, 100), st.integers(0, 100), st.integers(0, 100))
def test_long_runs_of_marks_are_met_wherever_they_stand(before, marks, after):
    text = "x" * before + "\u0316" * marks + "y" * after
    words = words_of(f"{text}b \u0301")
    assert max(map(len, words)) <= 48
    longest = max((len(run) for run in re.findall("\u0316+", _folded(text))), default=0)
    assert longest == min(marks, MARKS_MAX)


@pytest.mark.timeout(5)
def test_characters_that_become_many_take_no_time_without_end():
    assert len(words_of("\ufdfa" * 87_000)) <= WORDS_MAX


@pytest.mark.timeout(5)
@pytest.mark.parametrize(
    "marks",
    [
        "\u0301" * 65_000 + "\u0316" * 65_000,
        "\uff9e\u0316" * 40_000,
        ("\u0301" * 15 + "\u0316" * 15 + "\ufb1e") * 3_000,
    ],
)
def test_marks_without_end_take_no_time_without_end(marks):
    assert len(words_of(f"a{marks} b")) <= 4
    assert found("b", f"a{marks} b")
    assert found("a" + "\u0301" * 40, "a" + "\u0301" * 50)


def test_the_end_of_a_long_text_is_found_whatever_letters_it_has():
    assert found("needle", "é " + "word " * 70_000 + "needle")
