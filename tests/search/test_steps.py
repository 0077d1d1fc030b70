"""Where steps end, with a real tokenizer that joins newlines with words."""

import itertools

import pytest

from r1jax.data.tokenizers import train_sentencepiece
from r1jax.search.steps import boundary_ids, step_ends

TEXT = "<think>014+9=023\nwait, check\n04+9=13,023\n023-1=022\n</think>\n<answer>022</answer>"


@pytest.fixture(scope="module")
def tokenizer():
    # Words are merged over spaces and newlines, as in the miniature.
    return train_sentencepiece([TEXT] * 200, 400, merge_words=True)


def steps_of(tokenizer, ids, boundaries):
    starts = [0, *(end + 1 for end in step_ends(ids, boundaries))]
    return [ids[a:b] for a, b in itertools.pairwise(starts)]


def test_a_step_ends_with_the_token_that_holds_the_newline(tokenizer):
    boundaries = boundary_ids(tokenizer)
    pieces = [tokenizer.decode([*tokenizer.encode("a"), i])[1:] for i in boundaries]
    assert all("\n" in piece for piece in pieces)
    # The tokenizer is one that the rule is needed for: newlines inside of pieces, two in one.
    assert any(not piece.endswith("\n") for piece in pieces)
    ids = tokenizer.encode(TEXT)
    steps = steps_of(tokenizer, ids, boundaries)
    assert [i for step in steps for i in step] == ids  # nothing is cut, nothing is lost
    for step in steps[:-1]:
        inside = [i for i in step if i in boundaries]
        assert inside == [step[-1]]
    assert not set(steps[-1][:-1]) & set(boundaries)


def test_a_token_with_two_newlines_ends_one_step():
    class Doubled:
        vocabulary, stop_ids = 4, (3,)
        pieces = ("a", "\n", "\n\nb", "\n")

        def encode(self, text):
            return [0] * len(text)

        def decode(self, ids):
            return "".join(self.pieces[i] for i in ids)

    boundaries = boundary_ids(Doubled())
    assert boundaries == (1, 2)  # 3 ends the response, whatever its text
    assert step_ends([0, 2, 0, 1, 0], boundaries) == [1, 3, 4]


def test_the_last_token_always_ends_a_step():
    assert step_ends([5, 7, 5], {7}) == [1, 2]
    assert step_ends([5, 7], {7}) == [1]  # once
    assert step_ends([], {7}) == []


def test_another_separator(tokenizer):
    ids = tokenizer.encode(TEXT)
    boundaries = boundary_ids(tokenizer, "=")
    ends = step_ends(ids, boundaries)
    assert all("=" in tokenizer.decode([*tokenizer.encode("a"), ids[i]]) for i in ends[:-1])


def test_separators_that_no_token_holds(tokenizer):
    with pytest.raises(ValueError, match="no token of the tokenizer holds the separator '§'"):
        boundary_ids(tokenizer, "§")
    with pytest.raises(ValueError, match="separator is empty"):
        boundary_ids(tokenizer, "")
