import pytest

from r1jax.rewards import reflection


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("", 0),
        ("All is well.", 0),
        ("Wait, wait. WAIT!", 3),
        ("waiting awaits checked errors", 0),  # whole words only
        ("but, (check) verify: wrong; however-evaluate/retry\nmistake error", 9),
        ("wait_for check2 2check", 0),
        ("<think>wait</think>wait, but", 1),  # in the reasoning
        ("wait</think>wait", 1),  # the prompt had opened the tag
        ("<think>wait but", 2),  # truncated in the reasoning
        ("wait <think>check</think>", 1),
        ("等等 wait 等", 2),  # a lone 等 is `and so on`
        ("等等，检查", 2),
        ("得127等等wait得check不对", 4),  # Chinese has no spaces: it ends English words
        ("等等等等", 2),
        ("<think>检查</think>检查，验算", 1),
    ],
)
def test_count(text, n):
    assert reflection.count(text) == n


def test_every_word_counts():
    assert reflection.count(" ".join(reflection.WORDS)) == len(reflection.WORDS) == 10
    assert reflection.count("，".join(reflection.CHINESE)) == len(reflection.CHINESE) == 16
