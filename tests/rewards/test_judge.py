"""What a generative judge is asked, and how strictly its verdict is read."""

import pytest

from r1jax.rewards.judge import agreement, judge_question, verdict


def test_the_question_is_one_line_without_tags():
    assert judge_question("Is it\n\nwarm?", "yes, <b>it</b> is", "<answer> Yes.\n</answer>") == (
        "Judge. Question: Is it warm? Reference: yes, <b>it</b> is Prediction: Yes. Same?"
    )
    # Taking a tag out does not put one together.
    assert "<think>" not in judge_question("q", "r", "<thi<answer>nk>")
    assert judge_question("q", "r", "<thi<answer>nk>").count("<") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", True),
        ("No", False),
        (" YES.\n", True),
        ("no.", False),
        ("<think>They differ, no.</think> yes", True),
        ("<think>yes</think><answer>no</answer>", False),
        ("<think>so</think>\n<answer> Yes. </answer>", True),
        ("yes..", None),
        ("yes!", None),
        ("yes no", None),
        ("yes, they are", None),
        ("The answer is yes", None),
        ("y", None),
        ("**yes**", None),
        ("", None),
        ("<think>yes", None),  # never came to an answer
        ("<answer>yes", None),
        ("<answer>yes</answer> <answer>no", None),
        ("是", None),
    ],
)
def test_a_verdict_is_yes_or_no_and_nothing_else(text, said):
    assert verdict(text) is said


def test_agreement_counts_every_pair_once():
    ruled = [True, True, True, False, False, True]
    judged = [True, True, False, False, True, None]
    assert agreement(ruled, judged) == {
        "both_yes": 2, "both_no": 1, "judge_yes": 1, "judge_no": 1, "unparsed": 1,
    }  # fmt: skip
    assert set(agreement([], []).values()) == {0}
    with pytest.raises(ValueError):
        agreement([True], [])
