"""Prompt templates: what is put around a question before the model sees it.

The question is a user's text and may not act as anything else. `render` therefore breaks
every tag that appears in it by a space after the bracket (`<think>` becomes `< think>`),
visibly, so that neither the tokenizer nor a reward takes it for the model's own. The texts
of a tokenizer's control tokens (`<|im_end|>`) are broken in the same way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from r1jax.rewards.sections import END_THINK, TAGS, THINK

_SLOT = "{prompt}"


@dataclass(frozen=True)
class Template:
    """A prompt with one slot.

    Attributes:
      text: the prompt, with `{prompt}` exactly once where the question goes.
      think_opened: the text ends in `<think>`, so that completions begin inside the
        reasoning. Rewards have to be told (`rewards.Response.think_opened`).

    Raises:
      ValueError: not exactly one slot; think_opened at odds with the text.
    """

    text: str
    think_opened: bool = False

    def __post_init__(self) -> None:
        if (slots := self.text.count(_SLOT)) != 1:
            raise ValueError(f"template {self.text!r} has {_SLOT} {slots} times; write it once")
        if self.think_opened != self.text.rstrip().endswith(THINK):
            raise ValueError(
                f"think_opened={self.think_opened}, but the template ends in {self.text[-20:]!r}; "
                f"think_opened says whether the last thing in the prompt is {THINK}"
            )

    def render(self, question: str, reserved: Sequence[str] = ()) -> str:
        """The prompt for `question`, whose tags and `reserved` texts are broken by `escape`.

        Braces in the question stay as they are. A fence that closes it stays alone on its line.
        """
        question = escape(question, reserved)
        return self.text.replace(_SLOT, question + "\n" * question.endswith("```"))

    def completion(self, response: str) -> str:
        """What of a response from elsewhere follows the prompt, which may have opened `<think>`.

        Then the tag that begins a whole response is taken out and nothing else, white space
        neither, and a response without reasoning closes it at once. One that is a completion
        already (`</think>` with no `<think>` before it) stays as it is, and so does every
        response to a prompt that opens nothing.

        To be applied once: nothing tells that what was never closed is a completion already.
        """
        if not self.think_opened:
            return response
        before, opened, rest = response.partition(THINK)
        if opened and not before.strip():
            return before + rest
        return response if END_THINK in before else END_THINK + response


def escape(text: str, reserved: Sequence[str] = ()) -> str:
    """`text` with each tag and each `reserved` text broken by a space, so that it holds none.

    The space follows the first character. Raises ValueError for a reserved text that this
    does not break (see `breakable`).
    """
    if stuck := [word for word in reserved if not breakable(word)]:
        raise ValueError(f"reserved text {stuck[0]!r} cannot be broken by a space; leave it out")
    words = (*TAGS, *reserved)
    # One break can make another reserved text ("<x>" becomes "< x>"). Every round widens a
    # gap after a visible character, and no text matches a gap wider than its own: it ends.
    while present := [word for word in words if word in text]:
        for word in present:
            text = text.replace(word, f"{word[0]} {word[1:]}")
    return text


def breakable(word: str) -> bool:
    """Whether a space after the first character of `word` leaves no `word` behind."""
    return word[:1] not in ("", " ") and word[1:].strip(" ") != ""


# The content of arXiv:2501.12948, Table 1, in words of our own: who speaks, which tags
# enclose what, where the result goes, and nothing at all on how to think.
_R1_ZERO = (
    "This is a dialogue between a User and an Assistant. The User poses a question and the "
    "Assistant solves it: first it works the matter out for itself, then it tells the User "
    "the answer. Its reasoning stands between <think> and </think>, its answer after that "
    "between <answer> and </answer>, like this: <think> reasoning </think> <answer> answer "
    "</answer>. The final result stands in the answer inside \\boxed{}. "
    "User: {prompt}. Assistant:"
)

TEMPLATES: dict[str, Template] = {
    "r1_zero": Template(_R1_ZERO),
    # For the miniature, whose base model has never read an instruction.
    "r1_zero_short": Template("User: {prompt} Assistant:"),
    "plain": Template("{prompt}"),  # the question alone, for a model to go on from
}
