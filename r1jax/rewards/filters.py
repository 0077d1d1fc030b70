"""Rejection filters: which correct responses are not worth learning from.

R1's second fine-tuning keeps of the sampled responses the correct ones, without the chains that
mix languages, run on in long paragraphs or contain code blocks (arXiv:2501.12948, section
2.3.3); repeated ones, and those without a summary after the reasoning, teach nothing either.
"""

from collections.abc import Callable, Iterable, Sequence

from r1jax.rewards import sections
from r1jax.rewards.format import format_reward
from r1jax.rewards.language import consistency, language_of, words

LEAST_CONSISTENCY = 0.95
LONGEST_PARAGRAPH = 2_000  # characters


def mixed_language(question: str, text: str) -> bool:
    """The reasoning is not nearly all in the question's language, if it has any words."""
    return _mixed(language_of(question), text)


def _mixed(language: str, text: str) -> bool:
    if not words(sections.reasoning(text)):
        return False
    return consistency(text, language) < LEAST_CONSISTENCY


def foreign_summary(question: str, text: str) -> bool:
    """What follows the reasoning has words, and less than half are in the question's language."""
    return _foreign(language_of(question), text)


def _foreign(language: str, text: str) -> bool:
    final = sections.final(text) or ""
    return bool(words(final)) and consistency(final, language) < 0.5


def long_paragraph(question: str, text: str) -> bool:
    """Some paragraph (what blank lines part) has more than LONGEST_PARAGRAPH characters."""
    del question
    lines, length = text.splitlines(), 0
    for line in lines:
        length = length + len(line) if line.strip() else 0
        if length > LONGEST_PARAGRAPH:
            return True
    return False


def code_block(question: str, text: str) -> bool:
    """There is a fenced block in the reasoning. (In the answer it may be what was asked for.)"""
    del question
    return "```" in sections.reasoning(text)


def missing_summary(question: str, text: str) -> bool:
    """Nothing to read after the reasoning."""
    del question
    if sections.END_THINK not in text:
        return True
    final = sections.final(text)
    return final is None or not sections.visible(final)


def bare_answer(question: str, text: str) -> bool:
    """The final section has no words: nothing to read beside a formula."""
    del question
    return not words(sections.final(text) or "")


def malformed(question: str, text: str) -> bool:
    """It is not reasoning and answer in their tags (`rewards.format`)."""
    del question
    return not format_reward(text)


FILTERS: dict[str, Callable[[str, str], bool]] = {
    "mixed_language": mixed_language,
    "long_paragraph": long_paragraph,
    "code_block": code_block,
    "missing_summary": missing_summary,
    "bare_answer": bare_answer,
    "foreign_summary": foreign_summary,
    "malformed": malformed,
}
DUPLICATE = "duplicate"
# Not every model is to write answer tags or a summary in words, and what was asked for may be a
# translation: the others are for those who want them.
DEFAULT = ("mixed_language", "long_paragraph", "code_block", "missing_summary", DUPLICATE)


def check_filters(names: Iterable[str]) -> None:
    """Raises ValueError for a name that is no filter."""
    known = (*FILTERS, DUPLICATE)
    for name in names:
        if name not in known:
            raise ValueError(f"filter {name!r} is unknown; known: {', '.join(known)}")


def rejections(
    question: str, texts: Sequence[str], filters: Sequence[str] = DEFAULT, *, reply_in: str = ""
) -> list[str | None]:
    """For each response to one question the first of `filters` that rejects it, or None.

    A duplicate is a text equal to an earlier one, kept or not, but for white space and case.
    `texts` are whole responses, the opening think tag included. They should be in the language
    `reply_in` where it is given, otherwise in the question's.

    Raises ValueError for an unknown filter or language.
    """
    check_filters(filters)
    chosen = {name: reject for name, reject in FILTERS.items() if name in filters}
    for name, of_language in (("mixed_language", _mixed), ("foreign_summary", _foreign)):
        if reply_in and name in chosen:
            chosen[name] = lambda _, text, judge=of_language: judge(reply_in, text)
    seen: set[str] = set()
    out: list[str | None] = []
    for text in texts:
        same = " ".join(text.split()).casefold()
        repeated = same in seen
        seen.add(same)
        rejects = {name: reject(question, text) for name, reject in chosen.items()}
        rejects[DUPLICATE] = repeated
        out.append(next((name for name in filters if rejects[name]), None))
    return out
