"""How answers are graded, by the kind of problem: the problem's `grader`, `math` without one."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from r1jax.rewards import code, math, sections
from r1jax.rewards.checks import check_all, check_fields
from r1jax.rewards.hints import hint
from r1jax.rewards.math import choice

Problem = Mapping[str, Any]


@dataclass(frozen=True)
class Grader:
    """One kind of answer.

    Attributes:
      check: raises ValueError, saying what is wrong, for a problem that cannot be graded.
      grade: (problem, text of the response with its opening think tag) to 0 or 1. Raises as
        `check` does.
      answer: text of a response to the answer in it, which may vote, or None. No function
        where answers do not vote: programs, open requests.
      equal: whether two answers are the same vote.
    """

    check: Callable[[Problem], None]
    grade: Callable[[Problem, str], float]
    answer: Callable[[str], str | None] | None = None
    equal: Callable[[str, str], bool] | None = None


UNSAFE = "R1JAX_UNSAFE_CODE"  # set to 1 by who is in a container of their own


def _check_math(problem: Problem) -> None:
    math.check_gold(problem["answer"])


def _grade_math(problem: Problem, text: str) -> float:
    _check_math(problem)
    return float(math.grade(problem["answer"], text))


def _check_choice(problem: Problem) -> None:
    choice.letter_of(problem["answer"])


def _grade_choice(problem: Problem, text: str) -> float:
    return float(choice.grade_choice(problem["answer"], text))


def _same_letter(a: str, b: str) -> bool:
    return choice.letter_of(a) == choice.letter_of(b)


def _check_code(problem: Problem) -> None:
    code.check_tests(problem.get("tests"), problem.get("language"))
    code.check_limits(problem.get("limits") or {}, problem["tests"])


def _grade_code(problem: Problem, text: str) -> float:
    return float(_judged(problem, text, code.judge) is code.Verdict.ACCEPTED)


def _check_open(problem: Problem) -> None:
    check_fields(problem)
    if not isinstance(problem.get("answer", ""), str):
        raise ValueError(
            f"field 'answer' is {problem['answer']!r:.60}; write a reference text, or nothing"
        )


def _grade_open(problem: Problem, text: str) -> float:
    """1.0 when the final section meets every check; 0.0 without checks: no rule decides."""
    _check_open(problem)
    final, checks = sections.final(text), problem.get("checks")
    if not checks or final is None or not sections.visible(final):
        return 0.0
    return float(all(check_all(checks, final)))


def share_passed(problem: Problem, text: str) -> float:
    """Share of the tests that the last program in a response passes; 0 without tests."""
    if problem.get("grader") != "code":
        return 0.0
    return _judged(problem, text, code.judge_share) or 0.0


def _judged(problem: Problem, text: str, judge: Callable):
    """What `judge` says of the last program in a response; None where there is none."""
    found = code.program(text, problem["language"])
    limits = problem.get("limits") or code.LIMITS
    return found and judge(*found, problem["tests"], limits, unsafe=_unsafe())


def _unsafe() -> bool:
    """Without a sandbox, which nobody but the user decides."""
    return os.environ.get(UNSAFE) == "1"


GRADERS: dict[str, Grader] = {
    "math": Grader(_check_math, _grade_math, math.extract, math.equivalent),
    "choice": Grader(_check_choice, _grade_choice, choice.choice, _same_letter),
    "code": Grader(_check_code, _grade_code),
    "open": Grader(_check_open, _grade_open),
}


def grader_of(problem: Problem) -> Grader:
    """Raises ValueError for a grader that is not in GRADERS."""
    name = problem.get("grader", "math")
    if not isinstance(name, str) or name not in GRADERS:
        raise ValueError(f"unknown grader {name!r}{hint(name, GRADERS)}")
    return GRADERS[name]


def is_open(problem: Problem) -> bool:
    """Whether no grader decides what the right answer is."""
    return problem.get("grader") == "open"


def check_ready(problems: Iterable[Problem]) -> None:
    """Raises ValueError, saying what to install, where this machine cannot grade some of them."""
    languages = {p["language"] for p in problems if p.get("grader") == "code"}
    if languages:
        code.check_available(sorted(languages), unsafe=_unsafe())
