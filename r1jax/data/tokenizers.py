"""Tokenizers: one small protocol, and sentencepiece models trained on a task's corpus.

Reinforcement learning keeps token ids from the sampler to the update; text is only
ever decoded for the rewards, never tokenised again, because decode and encode need
not be inverse on what a model writes.
"""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import sentencepiece

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


class Tokenizer(Protocol):
    """What stages need of a tokenizer. `vocabulary` counts ids 0 … vocabulary-1."""

    pad_id: int
    bos_id: int
    eos_id: int
    vocabulary: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class SentencePieceTokenizer:
    """A sentencepiece model. Tags are single symbols; control ids decode to nothing.

    Raises ValueError for bytes that are not a sentencepiece model.
    """

    def __init__(self, model: bytes, source: str = "memory"):
        if not model:  # sentencepiece takes it for "no model yet"
            raise ValueError(f"{source} is empty, not a sentencepiece model")
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{source} is not a sentencepiece model: {error}") from error
        self.model = model
        self.pad_id = self._processor.pad_id()
        self.bos_id = self._processor.bos_id()
        self.eos_id = self._processor.eos_id()
        self.vocabulary = self._processor.get_piece_size()

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"no tokenizer at {path}; a run writes it there before its first stage"
            )
        return cls(path.read_bytes(), str(path))

    def encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        # A model's vocabulary is padded to a round size: ids beyond the tokenizer's have no text.
        return self._processor.decode([int(i) for i in ids if 0 <= i < self.vocabulary])


def train_sentencepiece(
    corpus: Iterable[str], vocabulary: int, *, merge_words: bool = False
) -> SentencePieceTokenizer:
    """Trains a byte-pair model that gives back any text exactly (but for U+2581, its space mark).

    Digits are split, the tags are symbols of their own, bytes cover what the corpus
    lacks. `merge_words` lets pieces span spaces, which makes the fixed wording of a
    synthetic task a token or two; leave it off for natural language.
    `vocabulary` is an upper limit: a small corpus gives fewer pieces.
    """
    if vocabulary < 320:
        raise ValueError(f"vocabulary={vocabulary} is below 320: 256 bytes and the tags must fit")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        user_defined_symbols=list(TAGS),
        byte_fallback=True,
        split_digits=True,
        split_by_whitespace=not merge_words,
        split_by_unicode_script=not merge_words,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        max_sentence_length=65_536,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        num_threads=1,
        minloglevel=2,
    )
    return SentencePieceTokenizer(model.getvalue())
