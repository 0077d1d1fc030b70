"""Scores of whole responses by a score model (`models.scoring`): rewards, and what to re-rank by.

What a score model is trained on and what it scores later are laid out here, once: the
templated question, the part of the response that its scope says, the end token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from r1jax import checkpoints, models
from r1jax.data.packing import Document, pack
from r1jax.data.tokenizers import Tokenizer, open_tokenizer
from r1jax.models import scoring
from r1jax.models.decoder import Decoder
from r1jax.rewards import Response, whole_text
from r1jax.rewards.sections import END_THINK, final, reasoning
from r1jax.run import Run
from r1jax.sharding import batch_axis_size, rows
from r1jax.templates import Template

RESPONSE_SCOPES = ("final", "whole", "steps")
SHORTEST = 64  # tokens of the narrowest program
BATCH_TOKENS = 2**13  # of a program, where its rows are no longer than that


def scored_document(run: Run, question: str, text: str, scope: str) -> Document:
    """The tokens whose last one, the end token, has the score of a whole response `text`.

    With the scope final they are the question and `sections.final(text)`, empty where there
    is none; else the question and all of the text. A prompt that ends in `<think>` is gone on
    with, not opened twice, and closed at once where no reasoning follows (`Run.document`).
    """
    if scope == "final":
        text = final(text) or ""
    # Half a character has no tokens; a text with one still has a score.
    return run.document(question, text.encode("utf-8", "replace").decode())


class Scorer:
    """Scores after every token of documents, in few compiled programs.

    A document's program depends on its own length alone (rows of 64, 128, 256, … tokens), so
    that its scores depend on what else is scored in nothing but rounding.
    """

    def __init__(self, run: Run, model: Decoder, *, batch_tokens: int = BATCH_TOKENS):
        self.run, self.batch_tokens = run, batch_tokens
        self._scores = jax.jit(
            lambda params, batch: scoring.scores(
                model, params, batch.tokens_BT,
                positions_BT=batch.positions_BT, segments_BT=batch.segments_BT,
            )
        )  # fmt: skip

    def __call__(self, params, documents: Sequence[Document]) -> list[np.ndarray]:
        """Scores [T], float32, of each document."""
        widths = [_width(len(d.tokens)) for d in documents]
        found: list[np.ndarray] = [np.empty(0, np.float32)] * len(documents)
        pending = []
        with jax.set_mesh(self.run.mesh):
            for width in sorted(set(widths)):
                members = [i for i, w in enumerate(widths) if w == width]
                count = self._rows(width)
                for at in range(0, len(members), count):
                    some = members[at : at + count]
                    batch = pack(documents, [[i] for i in some] + [[]] * (count - len(some)), width)
                    batch = jax.device_put(batch, rows(self.run.mesh))
                    pending.append((some, self._scores(params, batch)))
        for some, score_BT in pending:
            for i, score_T in zip(some, np.asarray(score_BT), strict=False):
                found[i] = score_T[: len(documents[i].tokens)]
        return found

    def ends(self, params, documents: Sequence[Document]) -> np.ndarray:
        """Scores [len(documents)], float32, after the last tokens."""
        return np.array([s[-1] for s in self(params, documents)], np.float32)

    def _rows(self, width: int) -> int:
        """Rows of the program for `width` tokens a row: a multiple of the mesh's pieces."""
        pieces = batch_axis_size(self.run.mesh)
        return max(1, self.batch_tokens // (width * pieces)) * pieces


class ResponseScorer:
    """Rewards of whole responses: `scorer(problems, responses)` -> float32 [len(responses)].

    By `scope`: final, the score of the question with the final section alone; whole, that of
    the whole response; steps, the mean over the steps of the reasoning of the probability
    σ(score) that each is right, 0 for a response without a step.

    Steps are the lines of the reasoning that are not blank and end in a newline; each is
    scored after the token that holds its newline (`step_ends`).
    Raises ValueError for a scope that scores no whole responses, and where the tokenizer does
    not keep newlines.
    """

    def __init__(
        self, run: Run, model: Decoder, params, scope: str, *, batch_tokens: int = BATCH_TOKENS
    ):
        if scope not in RESPONSE_SCOPES:
            raise ValueError(
                f"scope={scope!r} scores no whole responses; known: {', '.join(RESPONSE_SCOPES)}"
            )
        self.run, self.params, self.scope = run, params, scope
        self._scorer = Scorer(run, model, batch_tokens=batch_tokens)
        if scope == "steps":
            self._newlines = Newlines(run.tokenizer)

    def __call__(
        self, problems: Sequence[Mapping[str, Any]], responses: Sequence[Response]
    ) -> np.ndarray:
        texts = [whole_text(response) for response in responses]
        documents = [
            scored_document(self.run, problem["question"], text, self.scope)
            for problem, text in zip(problems, texts, strict=True)
        ]
        if self.scope != "steps":
            return self._scorer.ends(self.params, documents)
        scores = self._scorer(self.params, documents)
        return np.array(list(map(self._mean_step, texts, documents, scores)), np.float32)

    def _mean_step(self, text: str, document: Document, score_T: np.ndarray) -> float:
        ids = document.tokens[document.prompt : -1]
        ends = step_ends(text, self._newlines(ids))
        step_scores = score_T[document.prompt + np.array(ends, int)].astype(np.float64)
        return float(np.mean(0.5 * (1 + np.tanh(step_scores / 2)))) if ends else 0.0


class Newlines:
    """Where a text's newlines are in its tokens: newlines(ids) -> the token of each newline.

    Counted token by token. That is exact, whether pieces are characters, words, bytes or span
    lines: a newline is one byte of UTF-8 and part of no other character, so that no token can
    hold a part of one, or make one together with its neighbour.
    Raises ValueError for a tokenizer that does not give newlines back.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._decode, self._count = tokenizer.decode, {}
        probe = "a\nb\n\nc\n"
        ids = tokenizer.encode(probe)
        if len(self(ids)) != 4 or tokenizer.decode(ids).count("\n") != 4:
            raise ValueError(
                "the tokenizer does not keep newlines, which end steps; take one that does"
            )

    def __call__(self, ids: Sequence[int]) -> list[int]:
        return [at for at, i in enumerate(ids) for _ in range(self._of(int(i)))]

    def _of(self, token: int) -> int:
        if token not in self._count:
            self._count[token] = self._decode([token]).count("\n")
        return self._count[token]


def step_ends(text: str, newline_tokens: Sequence[int]) -> list[int]:
    """The tokens, ascending, that end the steps of a response's reasoning.

    Args:
      text: the whole response.
      newline_tokens: which token holds the text's first newline, its second, … (`Newlines`).
        One token can hold several, and end several lines: these are one step.
    """
    body = reasoning(text)
    end = text.rfind(END_THINK)
    start = (end if end >= 0 else len(text)) - len(body)
    first = text.count("\n", 0, start)
    lines = body.split("\n")[:-1]
    numbers = [first + i for i, line in enumerate(lines) if line.strip()]
    return sorted({newline_tokens[n] for n in numbers if n < len(newline_tokens)})


def load_scorer(path: str | Path, run: Run, *, dtype: str = "float32") -> ResponseScorer:
    """The scorer in a checkpoint's, a stage's or a run's folder, on the mesh of `run`.

    With the tokenizer and the template that it was trained with, which need not be those of `run`.
    Raises CheckpointError naming the folder where it holds no score model.
    """
    scope = scoring.read_scope(path)
    folder = checkpoints.find(path)
    model, params = scoring.load(folder, mesh=run.mesh, dtype=dtype)
    own = replace(
        run,
        model=model,
        tokenizer=open_tokenizer(models.tokenizer_folder(folder)),
        template=Template(**checkpoints.load_meta(folder)["template"]),
    )
    return ResponseScorer(own, model, params, scope)


def _width(length: int) -> int:
    """The least of 64, 128, 256, … that holds `length` tokens."""
    return max(SHORTEST, 1 << (length - 1).bit_length())
