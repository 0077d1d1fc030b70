"""Steps of a response: where one ends, in token ids.

A step ends at a token whose text holds the separator. Tokenizers join a newline with what
stands around it (`ck\\n`, `\\nwait,`, `\\n\\n`); such a token is never cut, because the model has
drawn it as one: it belongs to the step that it ends, with all of its text, and ends one step
however many separators it holds. What a model has said is therefore the same sequence of ids
whether it was drawn step by step or at once.
"""

from collections.abc import Collection, Sequence

from r1jax.data.tokenizers import Tokenizer


def boundary_ids(tokenizer: Tokenizer, separator: str = "\n") -> tuple[int, ...]:
    """Ids of all tokens whose text holds `separator`, in order; end tokens are none of them.

    Raises ValueError where no token does.
    """
    if not separator:
        raise ValueError('separator is empty; a step ends at a text, such as "\\n"')
    # Behind a letter: some tokenizers drop the spaces that begin a text.
    letter = tokenizer.encode("a")[-1:]
    alone = tokenizer.decode(letter)
    found = tuple(
        i
        for i in range(tokenizer.vocabulary)
        if i not in tokenizer.stop_ids and separator in tokenizer.decode([*letter, i])[len(alone) :]
    )
    if not found:
        raise ValueError(
            f"no token of the tokenizer holds the separator {separator!r}: take one that some "
            "token does, or train the tokenizer on text that has it"
        )
    return found


def step_ends(tokens: Sequence[int], boundaries: Collection[int]) -> list[int]:
    """Indices of the tokens that end a step, ascending; the last token always ends one.

    `tokens` are those of a response, or of its first steps.
    """
    if not len(tokens):
        return []
    last = len(tokens) - 1
    return [i for i in range(last) if int(tokens[i]) in boundaries] + [last]
