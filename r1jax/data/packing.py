"""Packing: several short documents in one row, kept apart by segment ids."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Document(NamedTuple):
    """Token ids, and how many of them at the front are prompt (read, not trained on)."""

    tokens: Sequence[int]
    prompt: int


class Packed(NamedTuple):
    """Rows for next-token training. Position t of `mask_BT` says whether token t is trained on."""

    tokens_BT: np.ndarray  # int32
    segments_BT: np.ndarray  # int32: 1, 2, … by document, 0 on padding
    positions_BT: np.ndarray  # int32: 0, 1, … within each document
    mask_BT: np.ndarray  # float32


def plan(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Puts each document into the first row with room for it; rows of document indices.

    Raises ValueError for a document longer than a row, with its index and length.
    """
    rows, room = [], np.zeros(len(lengths), np.int64)
    for i, length in enumerate(lengths):
        if length > row_tokens:
            raise ValueError(
                f"document {i} has {length} tokens, more than the {row_tokens} of a row; "
                "raise row_tokens or shorten it"
            )
        fits = np.flatnonzero(room[: len(rows)] >= length)
        r = int(fits[0]) if len(fits) else len(rows)
        if r == len(rows):
            rows.append([])
            room[r] = row_tokens
        rows[r].append(i)
        room[r] -= length
    return rows


def pack(documents: Sequence[Document], rows: list[list[int]], row_tokens: int) -> Packed:
    """Lays out the given rows of document indices (see `plan`)."""
    shape = (len(rows), row_tokens)
    out = Packed(*(np.zeros(shape, d) for d in (np.int32, np.int32, np.int32, np.float32)))
    for r, members in enumerate(rows):
        at = 0
        for segment, i in enumerate(members, start=1):
            document = documents[i]
            end = at + len(document.tokens)
            out.tokens_BT[r, at:end] = document.tokens
            out.segments_BT[r, at:end] = segment
            out.positions_BT[r, at:end] = np.arange(end - at)
            # Nothing of its own predicts a document's first token.
            out.mask_BT[r, at + max(document.prompt, 1) : end] = 1
            at = end
    return out
