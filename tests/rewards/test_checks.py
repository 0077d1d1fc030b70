import re

import pytest

from r1jax.rewards.checks import CHECKS, check_all, check_fields, occurrences, share_met

CONTAINS = {"kind": "contains", "texts": ["hello", "good day"]}
AVOIDS = {"kind": "avoids", "texts": ["fig"]}
ONCE = {"kind": "count", "text": "happy to help.", "low": 1, "high": 1}
SHORT = {"kind": "words_at_most", "words": 3}
CHINESE = {"kind": "language", "language": "zh", "share": 0.5}
TWO_OF = {"kind": "list_of", "items": ["cat", "dog", "hen", "猫"], "least": 2}
DIGITS = {"kind": "sequence", "items": ["one", "two", "one"], "among": ["one", "two", "three"]}
CHINESE_DIGITS = {"kind": "sequence", "items": ["三", "五"], "among": ["三", "四", "五"]}


@pytest.mark.parametrize(
    ("check", "answer", "met"),
    [
        (CONTAINS, "Well, HELLO!", True),
        (CONTAINS, "a good day.", True),
        (CONTAINS, "good, day", False),
        (CONTAINS, "hellos othello", False),  # whole words only
        (CONTAINS, "hello1", False),
        (CONTAINS, "您hello您", True),  # Chinese characters border a word
        (CONTAINS, "", False),
        (AVOIDS, "a figure", True),
        (AVOIDS, "a Fig.", False),
        (ONCE, "yes. happy to help.", True),
        (ONCE, "yes.", False),
        (ONCE, "happy to help. Happy to help.", False),
        (ONCE, "unhappy to help.", False),
        (SHORT, "one two three", True),
        (SHORT, "one two three four", False),
        (SHORT, "一二三四", False),  # a Chinese character counts as a word
        (SHORT, "\\boxed{1} 22 + 3 = 4 one", True),  # mathematics has no words
        (CHINESE, "三五. happy now", True),  # 2 of 4
        (CHINESE, "三五. happy to help", False),  # 2 of 5
        (CHINESE, "123", False),
        (TWO_OF, "cat, dog", True),
        (TWO_OF, "cat, cat", False),  # different ones
        (TWO_OF, "cat and 三猫", True),
        (TWO_OF, "cats and hen", False),
        (DIGITS, "it is one, two; One", True),
        (DIGITS, "one two", False),
        (DIGITS, "one two one three", False),  # nothing else of what it is among
        (DIGITS, "one one two", False),
        (CHINESE_DIGITS, "三五。", True),
        (CHINESE_DIGITS, "三四五", False),
    ],
)
def test_check(check, answer, met):
    check_fields({"checks": [check]})
    assert check_all([check], answer) == [met]


def test_every_kind_is_in_the_table_above():
    tabled = [CONTAINS, AVOIDS, ONCE, SHORT, CHINESE, TWO_OF, DIGITS]
    assert {check["kind"] for check in tabled} == set(CHECKS)


def test_the_longest_text_at_a_place_occurs():
    assert occurrences(["西瓜", "瓜", "good", "good day"], "西瓜, good day, 瓜 good") == [
        "西瓜", "good day", "瓜", "good",
    ]  # fmt: skip


def test_texts_are_literal():
    assert occurrences(["a.c", "(x", "\\d"], "abc (x \\d 5 a.c") == ["(x", "\\d", "a.c"]


def test_share_met():
    checks = [CONTAINS, ONCE, SHORT, AVOIDS]
    # contains and avoids are met, the closing is absent, 4 words are too many: 2 of 4.
    assert share_met(checks, "hello dear old friend") == 0.5
    assert share_met(checks, "hello") == 0.75
    # Nothing said meets `short` and `avoids`, and earns nothing by it.
    assert [share_met(checks, answer) for answer in (None, "", " \n\u2800")] == [0, 0, 0]
    assert share_met([], "hello") == 0


@pytest.mark.parametrize("text", ["", "\x00\ud800", "<answer>", "ß" * 50_000, "cat " * 50_000])
def test_answers_never_raise(text):
    checks = [CONTAINS, AVOIDS, ONCE, SHORT, CHINESE, TWO_OF, DIGITS]
    assert all(isinstance(met, bool) for met in check_all(checks, text))


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ("contains", "field 'checks' is 'contains'; write a list of objects"),
        (["contains"], "checks[0] is 'contains'; write an object with a field 'kind'"),
        ([CONTAINS, {}], "checks[1] is {}; write an object with a field 'kind'"),
        ([{"kind": ["avoids"]}], "checks[0]: unknown kind ['avoids']"),
        ([{"kind": "avoid"}], "checks[0]: unknown kind 'avoid'; did you mean 'avoids'?"),
        ([{"kind": "avoids"}], "checks[0]: field 'texts' of 'avoids' is absent; write a list of"),
        ([AVOIDS | {"text": "fig"}], "checks[0]: unknown field 'text' of 'avoids'; did you mean"),
        ([AVOIDS | {"texts": "fig"}], "checks[0]: field 'texts' is 'fig'; write a list of differ"),
        ([AVOIDS | {"texts": []}], "checks[0]: field 'texts' is []"),
        ([AVOIDS | {"texts": ["fig", "Fig"]}], "checks[0]: field 'texts' is ['fig', 'Fig']"),
        ([AVOIDS | {"texts": [" "]}], "checks[0]: field 'texts' is [' ']"),
        ([ONCE | {"text": ""}], "checks[0]: field 'text' is ''; write a text that shows something"),
        ([ONCE | {"low": -1}], "checks[0]: field 'low' is -1; write an integer, 0 or more"),
        ([ONCE | {"low": True}], "checks[0]: field 'low' is True"),
        ([ONCE | {"low": 2}], "checks[0]: low=2 is above high=1; swap them"),
        ([SHORT | {"words": 2.5}], "checks[0]: field 'words' is 2.5"),
        ([CHINESE | {"language": "la"}], "checks[0]: field 'language' is 'la'; write one of en, "),
        ([CHINESE | {"share": 0}], "checks[0]: field 'share' is 0; write a number above 0, at"),
        ([CHINESE | {"share": float("nan")}], "checks[0]: field 'share' is nan"),
        ([TWO_OF | {"least": 5}], "checks[0]: least=5 of 4 items; list more of them"),
        ([DIGITS | {"items": ["six"]}], "checks[0]: some of 'items' are not in 'among'; add them"),
    ],
)
def test_bad_checks(checks, message):
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        check_fields({"checks": checks})


@pytest.mark.parametrize("avoid", ["silly", [""], ["silly", "Silly"], [1], {"silly": 1}])
def test_bad_words_to_avoid(avoid):
    with pytest.raises(ValueError, match="field 'avoid' is .*; write a list of different texts"):
        check_fields({"avoid": avoid})


@pytest.mark.parametrize("problem", [{}, {"checks": [], "avoid": []}, {"avoid": ["silly", "笨"]}])
def test_good_fields(problem):
    check_fields(problem)
