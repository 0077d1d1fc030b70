"""Rejection filters: one response each that passes, and the nearest that does not."""

import pytest

from r1jax.rewards.filters import (
    DEFAULT,
    FILTERS,
    LONGEST_PARAGRAPH,
    check_filters,
    rejections,
)

QUESTION, FRAGE = "How many are there?", "一共有多少个苹果?"
GOOD = "<think>First we count them all.\n\nThere are four.</think>There are \\boxed{4}."


def one(text, question=QUESTION):
    return rejections(question, [text])[0]


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        (QUESTION, GOOD, None),
        (FRAGE, "<think>我们数一数, 一共四个</think>四个", None),
        (FRAGE, GOOD, "mixed_language"),
        (QUESTION, GOOD.replace("all", "都是"), "mixed_language"),
        # One word of 40 is another language's: 0.975 are not.
        (QUESTION, f"<think>{'we go ' * 20} 好</think>4", None),
        (QUESTION, "<think>2 + 2 = 4</think>4", None),  # no words, nothing mixed
        (QUESTION, f"<think>{'a b ' * 490}</think>4", None),
        (QUESTION, f"<think>{'a b ' * 500}</think>4", "long_paragraph"),
        (QUESTION, f"<think>{('a' * 990 + chr(10)) * 2}</think>4", None),
        (QUESTION, f"<think>{('a' * 999 + chr(10)) * 3}</think>4", "long_paragraph"),
        (QUESTION, f"<think>{('a' * 999 + chr(10) * 2) * 3}</think>4", None),
        (QUESTION, "<think>so\n```\nx\n```\n</think>4", "code_block"),
        (QUESTION, "<think>so</think>\n```\nx\n```\n", None),  # asked for a program
        (QUESTION, "<think>so</think> \n\u200b", "missing_summary"),
        (QUESTION, "<think>so", "missing_summary"),
        (QUESTION, "so it is 4", "missing_summary"),
        (QUESTION, "<think>so</think><answer>4", "missing_summary"),
        (QUESTION, "<think>so</think><answer>4</answer>", None),
    ],
)
def test_first_filter_that_rejects(question, text, expected):
    assert one(text, question) == expected


def test_the_longest_paragraph_is_counted_without_its_line_breaks():
    assert LONGEST_PARAGRAPH == 2000  # the cases above are made for it


def test_duplicates_of_earlier_ones():
    texts = [GOOD, GOOD.upper().replace("THINK", "think"), GOOD + " !", GOOD.replace(" ", "\n")]
    assert rejections(QUESTION, texts, ["duplicate"]) == [None, "duplicate", None, "duplicate"]
    # An earlier one counts though it was itself rejected.
    bad = "<think>so"
    assert rejections(QUESTION, [bad, bad]) == ["missing_summary"] * 2
    assert rejections(QUESTION, [bad, bad], ["duplicate", "missing_summary"])[1] == "duplicate"


def test_only_the_chosen_filters():
    assert rejections(FRAGE, [GOOD, GOOD], []) == [None, None]
    assert rejections(FRAGE, [GOOD], ["code_block"]) == [None]
    with pytest.raises(ValueError, match="filter 'codes' is unknown; known: mixed_language"):
        check_filters(["codes"])
    check_filters(FILTERS)


@pytest.mark.parametrize(
    ("final", "bare"),
    [
        ("\\boxed{4}", True),
        ("<answer>\\boxed{4}</answer>", True),
        ("$x = 4$.", True),
        ("-17", True),
        ("x", True),  # a variable
        ("There are \\boxed{4}.", False),
        ("<answer>四</answer>", False),
        ("$4\\text{ apples}$", False),
        ("<answer>4", True),  # there is no final section
    ],
)
def test_bare_answers_are_rejected_by_who_asks_for_it(final, bare):
    text = f"<think>There are four.</think>{final}"
    assert rejections(QUESTION, [text], ["bare_answer"]) == ["bare_answer" if bare else None]
    assert rejections(QUESTION, [text])[0] != "bare_answer"


def test_the_default_filters_and_duplicates():
    asked_for = {"bare_answer", "foreign_summary", "malformed"}
    assert {*DEFAULT} == {*FILTERS, "duplicate"} - asked_for


def test_malformed_is_what_the_format_reward_refuses():
    texts = [GOOD, GOOD.replace("</think>", "</think><answer>") + "</answer>"]
    assert rejections(QUESTION, texts, ["malformed"]) == ["malformed", None]


def test_the_language_to_reply_in_counts_where_it_is_given():
    chinese = "<think>我们数一数, 一共四个</think>四个"
    assert rejections(QUESTION, [GOOD, chinese]) == [None, "mixed_language"]
    assert rejections(QUESTION, [GOOD, chinese], reply_in="zh") == ["mixed_language", None]
    with pytest.raises(ValueError, match="language 'xx' is unknown"):
        rejections(QUESTION, [GOOD], reply_in="xx")


def test_a_summary_in_another_language():
    asked = "What is 1+1 modulo a thousand?"

    def rejects(final, reply_in=""):
        (found,) = rejections(
            asked, [f"<think>so 1+1=2</think>{final}"], ("foreign_summary",), reply_in=reply_in
        )
        return found == "foreign_summary"

    assert rejects("答案是2。") and not rejects("the answer is 2.")
    assert rejects("the answer is 2.", "zh") and not rejects("答案是2。", "zh")
    # Three Chinese words, each a character, beside three English ones: just half.
    assert not rejects("答案是 happy to help.") and rejects("这答案是 happy to help.")
    assert not rejects("\\boxed{2}")  # no words at all
