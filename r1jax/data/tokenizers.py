"""Tokenizers: one small protocol, sentencepiece models, and how text is shown as it comes.

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
JSON_FILE, MODEL_FILE = "tokenizer.json", "tokenizer.model"

_CONTEXT = 16  # ids that StreamDecoder keeps before the next one


class Tokenizer(Protocol):
    """What stages need of a tokenizer.

    Attributes:
      pad_id: fills sequences up; never in a text.
      bos_id: the id that begins every prompt; None for a model that knows none (Qwen).
      eos_id: the id that ends a document in training.
      stop_ids: the ids at which generation ends, `eos_id` first.
      vocabulary: ids 0 … vocabulary-1 are known; the embedding may have more rows.
      bos_token, eos_token: the texts by which chat templates call them.
      specials: texts that `encode` turns into control tokens. In a user's question they
        have to be broken (`templates.escape`).
      chat_template: jinja source, None where there is none.
      byte_run_ids: ids of single bytes whose text is certain only once an id that is not
        among them has followed, because a run of them is decoded all or nothing.
    """

    pad_id: int
    bos_id: int | None
    eos_id: int
    stop_ids: tuple[int, ...]
    vocabulary: int
    bos_token: str | None
    eos_token: str
    specials: tuple[str, ...]
    chat_template: str | None
    byte_run_ids: frozenset[int]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; none is added. Raises ValueError on a lone surrogate."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`. Control ids and ids beyond the vocabulary are passed over."""
        ...

    def files(self) -> dict[str, bytes]:
        """File name -> content: what `open_tokenizer` needs in a folder to open it again."""
        ...


class SentencePieceTokenizer:
    """A sentencepiece model. Tags are single symbols; control ids decode to nothing.

    No text becomes a control id, so that no text is special.
    Raises ValueError for bytes that are not a sentencepiece model, or one without an end.
    """

    specials: tuple[str, ...] = ()
    chat_template = None
    byte_run_ids: frozenset[int] = frozenset()  # it decodes bytes character by character

    def __init__(self, model: bytes, source: str = "memory"):
        if not model:  # sentencepiece takes it for "no model yet"
            raise ValueError(f"{source} is empty, not a sentencepiece model")
        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{source} is not a sentencepiece model: {error}") from error
        if processor.eos_id() < 0:
            raise ValueError(
                f"{source} has no end token, so that no response could end; "
                "train it with eos_id set"
            )
        self.model = model
        self._processor = processor
        self.vocabulary = processor.get_piece_size()
        self.eos_id = processor.eos_id()
        self.stop_ids = (self.eos_id,)
        self.bos_id = processor.bos_id() if processor.bos_id() >= 0 else None
        self.pad_id = processor.pad_id() if processor.pad_id() >= 0 else self.eos_id
        self.eos_token = processor.id_to_piece(self.eos_id)
        self.bos_token = None if self.bos_id is None else processor.id_to_piece(self.bos_id)
        self._silent = {
            i for i in range(self.vocabulary) if processor.is_control(i) or processor.is_unknown(i)
        }

    @classmethod
    def load(cls, path: str | Path) -> "SentencePieceTokenizer":
        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"no tokenizer at {path}; a run writes it there before its first stage"
            )
        return cls(path.read_bytes(), str(path))

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return self._processor.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        # A model's vocabulary is padded to a round size: ids beyond the tokenizer's have no text.
        known = (int(i) for i in ids if 0 <= i < self.vocabulary)
        return self._processor.decode([i for i in known if i not in self._silent])

    def files(self) -> dict[str, bytes]:
        return {MODEL_FILE: self.model}


def check_text(text: str) -> None:
    """Raises ValueError for a lone surrogate: such a text has no UTF-8, hence no tokens."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has a lone surrogate, {text[error.start]!r}, at character {error.start}; "
            'replace it: text.encode("utf-8", "replace").decode()'
        ) from error


def open_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a folder, or of a file: `*.model` by sentencepiece, `*.json` by tokenizers.

    A folder's tokenizer.json goes before its tokenizer.model, as it does in transformers.
    Raises ValueError naming what is absent or malformed.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in (JSON_FILE, MODEL_FILE) if (path / name).is_file()]
        if not found:
            raise ValueError(f"no tokenizer in {path}: expected {JSON_FILE} or {MODEL_FILE}")
        path = found[0]
    if not path.is_file():
        raise ValueError(
            f"no tokenizer at {path}: expected a folder with {JSON_FILE} or {MODEL_FILE}, "
            "or one of these files"
        )
    match path.suffix:
        case ".model":
            return SentencePieceTokenizer.load(path)
        case ".json":
            # Not above: that module imports this one, and its library only some have.
            from r1jax.data.huggingface_tokenizer import HuggingFaceTokenizer

            return HuggingFaceTokenizer(path)
    raise ValueError(f"{path} is no tokenizer by its name: expected *.json or *.model")


class StreamDecoder:
    """The text of ids that come bit by bit, in parts that are safe to show.

    All that `push` and `finish` return, put together, is `decode` of all the ids. No part
    ends within a character: the bytes of an unfinished one decode to U+FFFD, at most three,
    so that up to three at the end wait for the next id. An id may be decoded many times,
    but only together with a bounded number of its neighbours.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the latest ids that have text
        self._shown = 0  # characters of the window's text that were returned
        # Some tokenizers drop the spaces that begin a text. What is not the beginning is
        # therefore decoded behind a letter.
        self._letter = tokenizer.encode("a")[-1:]
        self._alone = tokenizer.decode(self._letter)

    def push(self, ids: Sequence[int]) -> str:
        """The text that has become certain by `ids`."""
        decode = self._tokenizer.decode
        self._window += [int(i) for i in ids if decode([*self._letter, i]) != self._alone]
        if not self._window or self._window[-1] in self._tokenizer.byte_run_ids:
            return ""
        text = decode(self._window)
        certain = len(text)
        while certain > max(self._shown, len(text) - 3) and text[certain - 1] == "\ufffd":
            certain -= 1
        new = text[self._shown : certain]
        self._shown = certain
        if len(self._window) > 2 * _CONTEXT:
            # Each id has a byte or more, so that what waits is well within.
            begun = self._letter if text else []
            self._window = [*begun, *self._window[-_CONTEXT:]]
            self._shown = len(decode(self._window)) - (len(text) - certain)
        return new

    def finish(self) -> str:
        """The text that was held back. What is pushed afterwards begins a new text."""
        rest = self._tokenizer.decode(self._window)[self._shown :]
        self._window, self._shown = [], 0
        return rest


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
