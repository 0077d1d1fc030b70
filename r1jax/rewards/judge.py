"""A generative judge: a model asked whether a prediction says the same as a reference.

R1's second fine-tuning has prompts that no rule decides; there a model is given the reference
and the prediction (arXiv:2501.12948, section 2.3.3). Here is what it is asked and how its
verdict is read. The question is short, so that a miniature model can read it as well.
"""

from collections.abc import Iterable

from r1jax.rewards import sections

_VERDICTS = {"yes": True, "yes.": True, "no": False, "no.": False}


def judge_question(question: str, reference: str, prediction: str) -> str:
    """What the judge is asked, on one line.

    `prediction` is what the response finally says (`sections.final`), without its reasoning.
    The three are set on one line and lose their tags: a judge's prompt must not open or close
    a section of its own.
    """
    asked, true, said = map(_plain, (question, reference, prediction))
    return f"Judge. Question: {asked} Reference: {true} Prediction: {said} Same?"


def verdict(text: str) -> bool | None:
    """What a judge's response says: True for `yes`, False for `no`, None for all else.

    Strict: the final section of `text` (a whole response, the opening think tag included) is
    that word alone, in any case, with at most a full stop behind it.
    """
    return _VERDICTS.get((sections.final(text) or "").strip().casefold())


def agreement(ruled: Iterable[bool], judged: Iterable[bool | None]) -> dict[str, int]:
    """How often the judge says what the rule says, where both are known; counts.

    Returns `both_yes`, `both_no`, `judge_yes` (the rule says no), `judge_no` (the rule says
    yes) and `unparsed` (no verdict); they add up to the number of pairs. Raises ValueError
    when the two differ in length.
    """
    counts = dict.fromkeys(("both_yes", "both_no", "judge_yes", "judge_no", "unparsed"), 0)
    names = {
        (True, True): "both_yes",
        (False, False): "both_no",
        (False, True): "judge_yes",
        (True, False): "judge_no",
    }
    for rule, said in zip(ruled, judged, strict=True):
        counts["unparsed" if said is None else names[bool(rule), said]] += 1
    return counts


def _plain(text: str) -> str:
    for tag in sections.TAGS:
        text = text.replace(tag, " ")
    return " ".join(text.split())
