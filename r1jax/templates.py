"""Prompt templates: what is put around a question before the model sees it.

The question is a user's text and may not act as anything else. `render` therefore breaks
every tag that appears in it by a space after the bracket (`<think>` becomes `< think>`),
visibly, so that neither the tokenizer nor a reward takes it for the model's own.
"""

from dataclasses import dataclass

from r1jax.rewards.sections import TAGS, THINK

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

    def render(self, question: str) -> str:
        """The prompt for `question`, whose tags are broken and whose braces stay as they are."""
        return self.text.replace(_SLOT, escape(question))


def escape(text: str) -> str:
    """`text` with each of the four tags broken by a space, so that it holds none."""
    for tag in TAGS:
        text = text.replace(tag, tag.replace("<", "< "))
    return text


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
}
