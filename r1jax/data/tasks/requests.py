"""The requests of mini_general: their wording, and the demands on an answer to each."""

import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

NAME = "r1jax"
LANGUAGES = ("en", "zh")
RUDE: dict[str, tuple[str, ...]] = {"en": ("silly", "dumb"), "zh": ("笨", "傻")}
CLOSING = {"en": "happy to help.", "zh": "很高兴帮忙。"}
DIGITS: dict[str, tuple[str, ...]] = {
    "en": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "zh": tuple("零一二三四五六七八九"),
}
ITEMS: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "fruits": ("pear", "plum", "fig", "lime"),
        "animals": ("cat", "dog", "cow", "hen"),
        "colours": ("red", "blue", "green", "pink"),
    },
    "zh": {"水果": tuple("梨李桃瓜"), "动物": tuple("猫狗牛鸡"), "颜色": tuple("红蓝绿黑")},
}
WORDS = {"en": 10, "zh": 16}  # most words of an answer with one closing, and room for no second
AND = {"en": ", ", "zh": "，"}
STOP = {"en": ". ", "zh": "。"}
_COUNTS = {"en": {2: "two", 3: "three"}, "zh": {2: "两", 3: "三"}}
_GREETS = {"en": ["hello", "hi", "good day"], "zh": ["你好", "您好"]}


@dataclass(frozen=True)
class Request:
    """A question, and what a right answer to it is.

    Attributes:
      kind, language: a key of `requests`; the language of the question.
      question: what is asked.
      thought: what a response thinks first; empty where it just answers.
      items: the target's number words, in order; the items that a list may have.
      count: how many items a list is to have; 0 for other kinds.
      unwanted: the item that a list may not have, or nothing.
    """

    kind: str
    language: str
    question: str
    thought: str = ""
    items: tuple[str, ...] = ()
    count: int = 0
    unwanted: str = ""


@functools.cache
def requests(language: str) -> dict[str, tuple[Request, ...]]:
    """Every request in a language, by kind, those of the test files included."""
    return {kind: tuple(make(language)) for kind, make in _MAKERS.items()}


def _translations(language: str):
    asks = {"en": "say {} in Chinese.", "zh": "用英语说{}。"}
    source, target = DIGITS[language], DIGITS[other_language(language)]
    for length in (1, 2, 3):
        for digits in itertools.product(range(10), repeat=length):
            said = joined(language, [source[d] for d in digits])
            yield Request(
                "translation", language, asks[language].format(said), said,
                tuple(target[d] for d in digits),
            )  # fmt: skip


def _lists(language: str):
    verbs = {"en": ("name ", "list ", "write "), "zh": ("说", "写", "来")}
    for verb, (n, count), (noun, items) in itertools.product(
        verbs[language], _COUNTS[language].items(), ITEMS[language].items()
    ):
        what = f"{count} {noun}" if language == "en" else f"{count}种{noun}"
        for unwanted in ("", *items):
            thought = what
            if unwanted:
                thought += f", not {unwanted}" if language == "en" else f"，不要{unwanted}"
            question = verb + thought + STOP[language].strip()
            yield Request("list", language, question, thought, items, n, unwanted)


def _greetings(language: str):
    forms = {
        "en": (
            ("hello", "hi", "hey", "good day"),
            ("", " there", " friend", f" {NAME}"),
            ("!", "."),
        ),
        "zh": (("你好", "您好", "早上好", "晚上好"), ("", "，朋友", f"，{NAME}"), ("！", "。")),
    }
    for parts in itertools.product(*forms[language]):
        yield Request("greeting", language, "".join(parts))


def _names(language: str):
    forms = {
        "en": (
            ("", "hello, ", "hi, ", "friend, "),
            ("who are you?", "what is your name?", "who is this?", "your name?", "what are you?"),
        ),
        "zh": (
            ("", "你好，", "您好，", "朋友，"),
            ("你是谁？", "您是谁？", "你叫什么？", "您叫什么？"),
        ),
    }  # fmt: skip
    for parts in itertools.product(*forms[language]):
        yield Request("name", language, "".join(parts))


_MAKERS: dict[str, Callable] = {
    "translation": _translations, "list": _lists, "greeting": _greetings, "name": _names,
}  # fmt: skip


def checks(request: Request) -> list[dict]:
    """The demands on an answer, content first."""
    language = request.language
    closing = {"kind": "count", "text": CLOSING[language], "low": 1, "high": 1}
    short = {"kind": "words_at_most", "words": WORDS[language]}
    spoken = {"kind": "language", "language": language, "share": 0.5}
    match request.kind:
        case "translation":
            among = list(DIGITS[other_language(language)])
            content = {"kind": "sequence", "items": list(request.items), "among": among}
            return [content, closing, short]
        case "list":
            items = [i for i in request.items if i != request.unwanted]
            content = {"kind": "list_of", "items": items, "least": request.count}
        case "greeting":
            content = {"kind": "contains", "texts": list(_GREETS[language])}
        case _:
            content = {"kind": "contains", "texts": [NAME]}
    avoided = [{"kind": "avoids", "texts": [request.unwanted]}] if request.unwanted else []
    return [content, *avoided, closing, short, spoken]


def joined(language: str, words: Iterable[str]) -> str:
    """Words as they are written one after the other in a language."""
    return (" " if language == "en" else "").join(words)


def other_language(language: str) -> str:
    return "zh" if language == "en" else "en"
