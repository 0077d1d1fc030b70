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
_WORD = re.compile(r"\w+")


def count(text: str) -> int:
    """How many words of the reasoning in `text` are reflective.

    Whole words in any case: `Wait,` counts, `waiting` does not. The reasoning is what
    `sections.reasoning` says: the whole text when it has no think tags.
    """
    return sum(word.lower() in WORDS for word in _WORD.findall(sections.reasoning(text)))
