"""Reflective words, the trace that looking back at one's own work leaves in the text.

A metric of training, not a reward: paying for the words would buy the words.
"""

import re

from r1jax.rewards import sections

# The list with which the later version of arXiv:2501.12948 draws the rise of reflection
# over training; second-hand (we have it from a summary of that version).
WORDS = frozenset({
    "wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check",
})  # fmt: skip
# The same in (simplified) Chinese, our own translation, for a model that reasons in it: to wait,
# a mistake, however, but, to retry, an error, to verify, wrong, to evaluate, to check.
CHINESE = frozenset({
    "等等", "等一下", "错误", "然而", "不过", "但是", "重试", "再试", "出错", "验证", "核实",
    "错了", "不对", "评估", "检查", "验算",
})  # fmt: skip
_WORD = re.compile(r"[^\W\u2e80-\u9fff]+")  # ends where Chinese begins, which has no spaces
_CHINESE = re.compile("|".join(sorted(CHINESE, key=len, reverse=True)))


def count(text: str) -> int:
    """How many words of the reasoning in `text` are reflective, in English or Chinese.

    Whole words in any case: `Wait,` counts, `waiting` does not. Chinese words count wherever
    they stand. The reasoning is what `sections.reasoning` says: the whole text when it has no
    think tags.
    """
    thought = sections.reasoning(text)
    english = sum(word.lower() in WORDS for word in _WORD.findall(thought))
    return english + len(_CHINESE.findall(thought))
