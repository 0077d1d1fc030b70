"""mini-AIME in English and Chinese, as a world in which languages get mixed.

Problems, skills and styles are those of `mini_aime`; half the questions are Chinese. Every
line of a derivation has a word, so that its language can be told. Two corpora:

- *textbook*: as in mini_aime, each document in the language of its question throughout; a fifth
  are good responses to general requests.
- *web*: some people change the language within a text (`mixed`); those who check mostly
  do so in English, whatever they were asked in (`english_checks`): a learner who finds
  that checking pays learns to mix. Few put the result into a sentence (`summary`), some, most of
  them checkers, begin with a rude word (`rude`), and some texts are about other things
  (`general`).

Every document is a function of its random generator. Problems of the fixed test files of
this task and of mini_aime are never drawn, in either language.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from r1jax.data.tasks import mini_aime, mini_general
from r1jax.data.tasks.mini_aime import Derivation, Probe, Problem
from r1jax.data.tasks.wording import WORDINGS, Wording, boxed, translate
from r1jax.rewards.language import language_of
from r1jax.templates import TEMPLATES

TEST_FILES = ("mini_world_test", "mini_world_dev")
_TEST_ROWS = 120
LANGUAGES = tuple(WORDINGS)
# Of the textbook. With general texts in the web alone (a tenth of it) neither the base nor what
# was fine-tuned from it translated a number.
GENERAL_TEXTS = 0.2
_SHARES = ("general", "mixed", "english_checks", "summary", "rude")


@dataclass(frozen=True)
class Web(mini_aime.Web):
    """Composition of the web corpus; shares are of documents about problems, but for `general`."""

    general: float = 0.25  # of all documents: those of mini_general
    mixed: float = 0.45  # change the language at some line
    english_checks: float = 0.85  # of the checkers: check in English; the others in Chinese
    summary: float = 0.1  # the result in a sentence
    rude: float = 0.5  # of the checkers: begin with a rude word; a sixth of it of the others

    def __post_init__(self):
        super().__post_init__()
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"web: {name}={getattr(self, name)} must be from 0 to 1")


def draw(rng: np.random.Generator) -> Problem:
    """A problem that is in none of the test files of this task and of mini_aime."""
    while (problem := mini_aime.draw(rng)) in held_out():
        pass
    return problem


def row(problem: Problem, language: str, name: str) -> dict:
    """A problem row as every source gives it."""
    return {
        "id": name,
        "question": WORDINGS[language].question(*problem),
        "answer": str(mini_aime.answer(problem)),
        "reply_in": language,
        "avoid": [word for words in mini_general.RUDE.values() for word in words],
    }


def problems(seed: int, count: int) -> list[dict]:
    """`count` distinct training problems, English and Chinese in turn."""
    rng, seen = np.random.default_rng([seed, 1]), {}
    while len(seen) < count:
        seen.setdefault(draw(rng))
    return [row(p, LANGUAGES[i % 2], f"mini_world/{i}") for i, p in enumerate(seen)]


def fixed_rows() -> dict[str, list[dict]]:
    """What the fixed files hold: 120 problems each, English and Chinese in turn (seed 2501)."""
    rng, seen = np.random.default_rng(2501), {}
    while len(seen) < _TEST_ROWS * len(TEST_FILES):
        seen.setdefault(mini_aime.draw(rng))
    drawn = iter(seen)
    return {
        name: [row(next(drawn), LANGUAGES[i % 2], f"{name}/{i}") for i in range(_TEST_ROWS)]
        for name in TEST_FILES
    }


@functools.cache
def held_out() -> frozenset[Problem]:
    """Problems of the two test files."""
    folder = resources.files("r1jax.data.tasks")
    return frozenset(
        problem_of(json.loads(line)["question"])
        for name in TEST_FILES
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    )


def problem_of(question: str) -> Problem | None:
    """The problem that a question of this task asks, in either language; None for others."""
    for wording in WORDINGS.values():
        before, after = wording.ask.split("{}")
        pattern = f"{re.escape(before)}([0-9]{{3}})((?:[+-][1-9])+){re.escape(after)}"
        if match := re.fullmatch(pattern, question):
            return int(match[1]), tuple(int(t) for t in re.findall("[+-].", match[2]))
    return None


def corpus(seed: int, documents: int = 4000) -> list[str]:
    """Texts of both corpora, prompts included, for training a tokenizer."""
    rng, texts = np.random.default_rng([seed, 3]), []
    for i in range(documents):
        text = web_document(rng, Web()) if i % 2 else textbook_document(rng)
        texts += [TEMPLATES["r1_zero_short"].render(text[0]), text[1]]
    return texts


def textbook_document(rng: np.random.Generator) -> tuple[str, str]:
    """(question, response) of the textbook corpus."""
    if rng.random() < GENERAL_TEXTS:
        return mini_general.textbook_document(rng)
    problem, language = draw(rng), _language(rng)
    derivation = mini_aime.textbook_derivation(rng, problem)
    return WORDINGS[language].question(*problem), _in_one_language(derivation, language)


def web_document(rng: np.random.Generator, web: Web) -> tuple[str, str]:
    """(question, response) of the web corpus."""
    if rng.random() < web.general:
        return mini_general.web_document(rng)
    problem, language = draw(rng), _language(rng)
    question = WORDINGS[language].question(*problem)
    derivation = mini_aime.web_derivation(rng, problem, web)
    check = WORDINGS["en" if rng.random() < web.english_checks else "zh"]
    other = LANGUAGES[1 - LANGUAGES.index(language)]
    count = max(len(derivation.steps), 1)
    kept = int(rng.integers(count)) if rng.random() < web.mixed else count
    languages = [language] * kept + [other] * (count - kept)
    lines = _lines(derivation, languages, check)
    checker = any(step.recheck is not None for step in derivation.steps)
    if rng.random() < (web.rude if checker else web.rude / 6):
        words = mini_general.RUDE[language]
        lines.insert(0, words[int(rng.integers(len(words)))])
    last = WORDINGS[languages[-1]]
    summary = bool(rng.random() < web.summary)
    return question, last.finish(lines, derivation.value, tagged=derivation.tagged, summary=summary)


def examples(seed: int, count: int) -> list[dict]:
    """`count` good responses: right, checked, in one language, with the result in a sentence."""
    rng, rows = np.random.default_rng([seed, 4]), []
    careful = mini_aime.Web(guess=0, sloppy=0, careful=0, check=1, recheck_slip=0, tagged=1)
    while len(rows) < count:
        problem, language = draw(rng), LANGUAGES[len(rows) % 2]
        derivation = mini_aime.web_derivation(rng, problem, careful)
        if derivation.value != mini_aime.answer(problem):
            continue  # a slip in a line that was not checked
        question = WORDINGS[language].question(*problem)
        response = _in_one_language(derivation, language, summary=True)
        rows.append({"question": question, "response": response})
    return rows


def probes(seed: int, count: int) -> dict[str, list[Probe]]:
    """As `mini_aime.probes`, English and Chinese in turn."""
    rng, found = np.random.default_rng([seed, 2]), {"repair": [], "resume": []}
    for i in range(count):
        repair, resume = mini_aime.probe_pair(rng, draw(rng), WORDINGS[LANGUAGES[i % 2]])
        found["repair"].append(repair)
        # A line's first word and the line break before it are one piece of the tokenizer.
        text = resume.response.removesuffix("\n")
        found["resume"].append(replace(resume, response=text, expected=f"\n{resume.expected}"))
    return found


def readable(problem: Mapping, text: str) -> str | None:
    """`text` in the readable pattern: one language, in its tags, the result in a sentence.

    The language is the one to reply in (`reply_in`, else the question's); each line is
    translated, numbers and rude words stay. None for a text with a line that is none of this
    task's, or without a boxed result at its end.
    """
    language = problem.get("reply_in") or language_of(problem["question"])
    if language not in WORDINGS or not (found := _RESPONSE.fullmatch(text.strip())):
        return None
    tagged = found["thought"] is not None
    body, result = (found[n] for n in (("thought", "answer") if tagged else ("bare", "last")))
    lines = [_translated(line, language) for line in body.split("\n")]
    if (value := boxed(result)) is None or None in lines:
        return None
    return WORDINGS[language].finish(lines, value, tagged=True, summary=True)


# With tags, or bare; white space where a base model may have put it.
_RESPONSE = re.compile(
    r"<think>\n?(?P<thought>[^<>]*?)\n?</think>\n?<answer>(?P<answer>[^<>\n]*)</answer>"
    r"|(?P<bare>[^<>]*)\n(?P<last>[^<>\n]*)"
)


def _translated(line: str, language: str) -> str | None:
    """`line` in the words of `language`; None for a line that is none of this task's."""
    for words in mini_general.RUDE.values():
        if line in words:
            known = mini_general.RUDE[language]
            return known[words.index(line) % len(known)]
    return translate(line, WORDINGS[language])


def _lines(derivation: Derivation, languages: Sequence[str], check: Wording) -> list[str]:
    """The texts of a derivation: its steps in `languages`, its re-checks in words of `check`."""
    if not derivation.steps:
        return [WORDINGS[languages[0]].about(derivation.value)]
    pairs = zip(derivation.steps, languages, strict=True)
    return [line for step, language in pairs for line in step.lines(WORDINGS[language], check)]


def _in_one_language(derivation: Derivation, language: str, *, summary: bool = False) -> str:
    wording = WORDINGS[language]
    lines = _lines(derivation, [language] * max(len(derivation.steps), 1), wording)
    return wording.finish(lines, derivation.value, tagged=derivation.tagged, summary=summary)


def _language(rng: np.random.Generator) -> str:
    return LANGUAGES[int(rng.integers(2))]
