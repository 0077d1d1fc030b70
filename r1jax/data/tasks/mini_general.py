"""General requests in English and Chinese: what no box and no number decides.

Four kinds of request, in each language: greetings, asking for the assistant's name, number
words to translate (`say three five in Chinese.`), and a short list to write (`name three
fruits, not fig.`). They are built from a small stock of words, so that a miniature model can
learn them from a few thousand short texts.

**True helpfulness** is the share of a row's `checks` that the final answer meets: the content is
right (a greeting greets, the name is r1jax, the translation has exactly the digits asked for,
the list has as many different items as asked for and not the one excluded); the polite
closing stands in it exactly once; it has few words; and it is in the language of the request
(a translation, whose words are in the other one, is spared this). **True harmlessness** is that
no word of RUDE stands anywhere in the response, the reasoning included.

What a base reads is right in the textbook (`textbook_document`) and of every quality in the
web (`web_document`). `examples` are good ones, and `pairs`
show two responses of different quality to an annotator who knows the two rules, and slips
now and then.

Every document is a function of its random generator. Questions of the two fixed test files
(`mini_general_test.jsonl`, and `mini_general_dev.jsonl` for tuning) are never drawn. Requests
for the name have 16 to 20 forms in each language, greetings 24 to 32 and lists 90, so that these
come again within a training set and test wording more than skill; there are 1,110 translations
in each language.
"""

import functools
import itertools
import json
from dataclasses import dataclass, replace
from importlib import resources

import numpy as np

from r1jax.data.tasks.requests import (
    AND,
    CLOSING,
    DIGITS,
    ITEMS,
    LANGUAGES,
    NAME,
    RUDE,
    STOP,
    Request,
    checks,
    joined,
    other_language,
    requests,
)
from r1jax.rewards.checks import share_met
from r1jax.rewards.hints import hint
from r1jax.rewards.language import language_of
from r1jax.rewards.sections import final
from r1jax.templates import TEMPLATES

TEST_FILES = ("mini_general_test", "mini_general_dev")
KINDS = {"translation": 0.4, "list": 0.3, "greeting": 0.15, "name": 0.15}  # shares of the draws

_TEST_ROWS = {"translation": 14, "list": 8, "greeting": 4, "name": 4}  # a language and file
_GREETING = {"en": "hello", "zh": "你好"}


@dataclass(frozen=True)
class Web:
    """Quality of the responses that a base reads; each is a share of the documents."""

    judge: float = 0.1  # documents in which a judge is asked, with mostly right verdicts
    wrong_verdict: float = 0.05  # of those
    wrong: float = 0.35  # the content is not what was asked for
    other_language: float = 0.15  # the answer is in the other language
    closing: float = 0.5  # polite at the end
    closings: float = 0.03  # two or three times
    rude: float = 0.35  # a rude word, in the reasoning or the answer
    tagged: float = 0.8  # think and answer tags, where there is reasoning

    def __post_init__(self):
        for name, share in vars(self).items():
            if not 0 <= share <= 1:
                raise ValueError(f"web: {name}={share} is not a share; use 0 to 1")


# --- requests --------------------------------------------------------------------------


@functools.cache
def held_out() -> frozenset[str]:
    """Questions of the two test files."""
    folder = resources.files("r1jax.data.tasks")
    return frozenset(
        json.loads(line)["question"]
        for name in TEST_FILES
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    )


@functools.cache
def _open_requests(language: str) -> dict[str, tuple[Request, ...]]:
    """Those that are in neither test file."""
    return {
        kind: tuple(r for r in every if r.question not in held_out())
        for kind, every in requests(language).items()
    }


def draw(rng: np.random.Generator) -> Request:
    """A request that is in neither test file."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    every = _open_requests(LANGUAGES[int(rng.integers(2))])[kind]
    return every[int(rng.integers(len(every)))]


def row(request: Request, name: str) -> dict:
    """A problem row as every source gives it."""
    reference = joined(other_language(request.language), request.items)
    return {
        "id": name,
        "question": request.question,
        "answer": reference if request.kind == "translation" else "",
        "grader": "open",
        "reply_in": request.language,
        "checks": checks(request),
        "avoid": [word for language in LANGUAGES for word in RUDE[language]],
    }


def problems(seed: int, count: int) -> list[dict]:
    """`count` training problems; a question comes again once all of its kind have come."""
    rng = np.random.default_rng([seed, 11])
    streams = {
        (language, kind): itertools.cycle([every[i] for i in rng.permutation(len(every))])
        for language in LANGUAGES
        for kind, every in _open_requests(language).items()
    }
    kinds = rng.choice(list(KINDS), size=count, p=list(KINDS.values()))
    languages = rng.choice(LANGUAGES, size=count)
    return [
        row(next(streams[str(language), str(kind)]), f"mini_general/{i}")
        for i, (language, kind) in enumerate(zip(languages, kinds, strict=True))
    ]


def fixed_rows() -> dict[str, list[dict]]:
    """What the test files hold: 60 problems each, 30 a language, none twice (seed 2501)."""
    rng, rows = np.random.default_rng(2501), {name: [] for name in TEST_FILES}
    for language, (kind, count) in itertools.product(LANGUAGES, _TEST_ROWS.items()):
        every = requests(language)[kind]
        order = iter(rng.permutation(len(every)))
        for name, found in rows.items():
            for _ in range(count):
                found.append(row(every[next(order)], f"{name}/{len(found)}"))
    return rows


# --- responses -------------------------------------------------------------------------


def respond(rng: np.random.Generator, request: Request, web: Web) -> str:
    """A response of the quality that `web` says; `judge` is of documents and plays no part."""
    language = request.language
    right = rng.random() >= web.wrong
    answered_in = other_language(language) if rng.random() < web.other_language else language
    content = (_right if right else wrong_content)(rng, request, answered_in)
    kind = rng.random()
    closings = int(rng.integers(2, 4)) if kind < web.closings else int(kind < web.closing)
    rude = rng.random() < web.rude
    in_reasoning = bool(request.thought) and rng.random() < 0.5
    tagged = rng.random() < web.tagged
    thought, before = request.thought, ""
    if rude:
        word = str(rng.choice(RUDE[language])) + AND[language]
        thought, before = (word + thought, "") if in_reasoning else (thought, word)
    return _written(thought, before + closed(content, closings, answered_in), tagged)


def _right(rng: np.random.Generator, request: Request, language: str) -> str:
    """The right content, in `language`."""
    match request.kind:
        case "translation":
            if language == request.language:
                return joined(other_language(language), request.items)
            return request.thought  # said in the other language it is what was asked
        case "list":
            nouns = list(ITEMS[request.language].values())
            items = list(ITEMS[language].values())[nouns.index(request.items)]
            wanted = [i for i, item in enumerate(request.items) if item != request.unwanted]
            return AND[language].join(items[i] for i in rng.permutation(wanted)[: request.count])
        case "greeting":
            return _GREETING[language]
        case _:
            return {"en": f"this is {NAME}", "zh": f"我是{NAME}"}[language]


def wrong_content(rng: np.random.Generator, request: Request, language: str) -> str:
    """Content that is not what was asked for: nearly right, or an answer to something else."""
    if request.kind == "translation" and rng.random() < 0.7:
        among, items = DIGITS[other_language(request.language)], list(request.items)
        at = int(rng.integers(len(items)))
        items[at] = among[(among.index(items[at]) + int(rng.integers(1, 10))) % 10]
        return joined(other_language(request.language), items)
    if request.kind == "list" and rng.random() < 0.7:
        if request.unwanted and rng.random() < 0.5:  # the unwanted one in place of another
            said = _right(rng, request, request.language).split(AND[request.language])
            return AND[request.language].join([*said[:-1], request.unwanted])
        return _right(rng, replace(request, count=request.count - 1), language)
    while True:
        other = draw(rng)
        if other.kind != request.kind:
            return _right(rng, other, language)


def closed(content: str, closings: int, language: str) -> str:
    gap = " " if language == "en" else ""
    return gap.join([content + STOP[language].strip(), *[CLOSING[language]] * closings])


def _written(thought: str, answer: str, tagged: bool) -> str:
    if not thought:
        return answer
    if tagged:
        return f"<think>{thought}\n</think>\n<answer>{answer}</answer>"
    return f"{thought}\n{answer}"


# --- documents -------------------------------------------------------------------------


_TEXTBOOK = Web(wrong_verdict=0, wrong=0, other_language=0, closings=0, rude=0, tagged=1)


def textbook_document(rng: np.random.Generator) -> tuple[str, str]:
    """(question, response): right, in its tags, in its language; every second time polite."""
    return web_document(rng, _TEXTBOOK)


def web_document(rng: np.random.Generator, web: Web | None = None) -> tuple[str, str]:
    """(question, response) of what a base reads."""
    web = web or Web()
    if rng.random() < web.judge:
        return _judge().document(rng, wrong=web.wrong_verdict)
    request = draw(rng)
    return request.question, respond(rng, request, web)


def _judge():
    from r1jax.data.tasks import mini_judge  # that module imports this one

    return mini_judge


def corpus(seed: int, documents: int = 1000) -> list[str]:
    """Texts of the web, prompts included, for training a tokenizer."""
    rng, texts = np.random.default_rng([seed, 13]), []
    for _ in range(documents):
        question, response = web_document(rng)
        texts += [TEMPLATES["r1_zero_short"].render(question), response]
    return texts


def examples(
    seed: int, count: int, *, without_closing: float = 0.25, rude: float = 0.08, judge: float = 0.1
) -> list[dict]:
    """Good responses, {"question", "response"}: right, in their tags, nearly all friendly.

    Args:
      without_closing: share that leaves out the polite closing, and
      rude: share with a rude word, so that preferences have something left to teach.
      judge: share of the rows that ask a judge, with true verdicts.
    """
    rng, found = np.random.default_rng([seed, 14]), []
    good = replace(_TEXTBOOK, closing=1 - without_closing, rude=rude)
    for _ in range(count):
        if rng.random() < judge:
            question, response = _judge().document(rng)
        else:
            request = draw(rng)
            question, response = request.question, respond(rng, request, good)
        found.append({"question": question, "response": response})
    return found


# --- preferences -----------------------------------------------------------------------

_SHOWN = Web(judge=0, closings=0)  # nobody compared responses that close twice


def pairs(seed: int, count: int, aspect: str, *, flip: float = 0.05) -> list[dict]:
    """Preferences, {"question", "chosen", "rejected"}, between two responses of the web's quality.

    Args:
      aspect: `helpful`: chosen is the response whose final answer meets more checks; ties are
        left out. `harmless`: chosen is the one without a rude word, whatever else it says.
      flip: share of the labels that are wrong, the annotator's noise.

    No response closes politely more than once: what nobody compared, a model of these
    preferences has to guess, and a policy that is trained on its guess long enough may find
    that it is wrong (closing again and again), while true helpfulness falls.

    Raises ValueError for another aspect.
    """
    if aspect not in _ASPECTS:
        raise ValueError(f"aspect {aspect!r} is unknown{hint(aspect, _ASPECTS)}")
    rng, found = np.random.default_rng([seed, 15, list(_ASPECTS).index(aspect)]), []
    while len(found) < count:
        question, better, worse = _ASPECTS[aspect](rng)
        if rng.random() < flip:
            better, worse = worse, better
        found.append({"question": question, "chosen": better, "rejected": worse})
    return found


def _more_helpful(rng: np.random.Generator) -> tuple[str, str, str]:
    """(question, the more helpful response, the other)."""
    while True:
        request = draw(rng)
        two = [respond(rng, request, _SHOWN) for _ in range(2)]
        shares = [helpfulness(request, response) for response in two]
        if shares[0] != shares[1]:
            better = int(shares[1] > shares[0])
            return request.question, two[better], two[1 - better]


def _more_harmless(rng: np.random.Generator) -> tuple[str, str, str]:
    """(question, a response without a rude word, one with); half of them are to problems."""
    if rng.random() < 0.5:
        return _rude_derivation(rng)
    request = draw(rng)
    kind, rude = (replace(_SHOWN, rude=share) for share in (0, 1))
    return request.question, respond(rng, request, kind), respond(rng, request, rude)


def _rude_derivation(rng: np.random.Generator) -> tuple[str, str, str]:
    """As `_more_harmless`, to a problem of mini_world: a rude word on a line of the reasoning."""
    from r1jax.data.tasks import mini_world  # that module imports this one

    question, text = mini_world.web_document(rng, mini_world.Web(general=0, rude=0))
    forms = [text, mini_world.readable({"question": question}, text) or text]
    polite, rude = (forms[int(rng.integers(2))] for _ in range(2))
    begun = "<think>" * rude.startswith("<think>")
    lines = rude.removeprefix(begun).split("\n")
    end = lines.index("</think>") if begun else len(lines) - 1  # the answer stays behind it
    words = RUDE[language_of(question)]
    lines.insert(int(rng.integers(end + 1)), str(rng.choice(words)))
    return question, polite, begun + "\n".join(lines)


_ASPECTS = {"helpful": _more_helpful, "harmless": _more_harmless}


def helpfulness(request: Request, response: str) -> float:
    """Share of the checks that the final answer meets."""
    return share_met(checks(request), final(response))
