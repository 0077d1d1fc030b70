"""Judging in the miniature: is what a response finally says the same as the reference?

A document asks a judge in the words of `rewards.judge` about a translation of mini_general or a
problem of mini_world. The verdict is reasoned: digit by digit the reference's beside the
prediction's, `no` behind two that differ, so that a small model has only ever two to compare.

Every document is a function of its random generator; questions of the test files of the two
tasks are never drawn.
"""

import itertools

import numpy as np

from r1jax.data.tasks import mini_general, mini_world
from r1jax.data.tasks.requests import DIGITS, LANGUAGES, joined, other_language
from r1jax.rewards.checks import occurrences
from r1jax.rewards.judge import judge_question
from r1jax.templates import TEMPLATES

_ABSENT = "-"  # no digit where the other has one


def document(rng: np.random.Generator, *, wrong: float = 0.0) -> tuple[str, str]:
    """(question to a judge, its response): about what is right or nearly so, every second time.

    `wrong` is the share of verdicts that are not what the reasoning says.
    """
    same = rng.random() < 0.5
    make = _of_problem if rng.random() < 0.5 else _of_translation
    asked, digits, said = make(rng, same)
    lines = [
        f"{a}, {b}" + " no" * (a != b)
        for a, b in itertools.zip_longest(digits, said, fillvalue=_ABSENT)
    ]
    verdict = "yes" if same != (rng.random() < wrong) else "no"
    body = "\n".join(lines)
    return judge_question(*asked), f"<think>{body}\n</think>\n<answer>{verdict}</answer>"


def problems(seed: int, count: int) -> list[dict]:
    """`count` different translations to ask for, of which only a reference is given: no rule, so
    that a judge has to compare."""
    rng, found = np.random.default_rng([seed, 17]), {}
    while len(found) < count:
        request = mini_general.draw(rng)
        if request.kind == "translation":
            found.setdefault(
                request.question, mini_general.row(request, f"mini_judge/{len(found)}")
            )
    return [{k: v for k, v in row.items() if k != "checks"} for row in found.values()]


def examples(seed: int, count: int) -> list[dict]:
    """True verdicts, {"question", "response"}: what a judge is made of."""
    rng = np.random.default_rng([seed, 16])
    drawn = (document(rng) for _ in range(count))
    return [{"question": question, "response": response} for question, response in drawn]


def corpus(seed: int, documents: int = 1000) -> list[str]:
    """Texts for training a tokenizer, prompts included."""
    render = TEMPLATES["r1_zero_short"].render
    rows = examples(seed, documents)
    return [text for row in rows for text in (render(row["question"]), row["response"])]


def _of_problem(rng: np.random.Generator, same: bool):
    """(what the judge is asked, digits of the reference, digits of the prediction)."""
    problem = mini_world.row(mini_world.draw(rng), LANGUAGES[int(rng.integers(2))], "")
    value = int(problem["answer"])
    said = f"{value if same else _another(rng, value):03d}"
    prediction = f"\\boxed{{{said}}}"
    if rng.random() < 0.5:
        prediction = mini_world.WORDINGS[problem["reply_in"]].summary.format(prediction)
    return (problem["question"], problem["answer"], prediction), f"{value:03d}", said


def _of_translation(rng: np.random.Generator, same: bool):
    while (request := mini_general.draw(rng)).kind != "translation":
        pass
    target = other_language(request.language)
    said = reference = joined(target, request.items)
    while not same and said == reference:
        said = mini_general.wrong_content(rng, request, request.language)
    prediction = mini_general.closed(said, int(rng.integers(2)), request.language)
    found = occurrences(DIGITS[target], said) or [_ABSENT]
    return (request.question, reference, prediction), list(request.items), found


def _another(rng: np.random.Generator, value: int) -> int:
    """Another number below a thousand; every second time one digit alone differs."""
    if rng.random() < 0.5:
        return (value + int(rng.integers(1, 1000))) % 1000
    place = 10 ** int(rng.integers(3))
    digit = value // place % 10
    return value + ((digit + int(rng.integers(1, 10))) % 10 - digit) * place
