"""Divergences between two distributions over tokens: a student's and a constant teacher's.

With P the teacher's and Q the student's softmax(logits / temperature), in nats a token:

    forward   KL(P‖Q) = Σ_v P_v log(P_v / Q_v)
    reverse   KL(Q‖P) = Σ_v Q_v log(Q_v / P_v)
    jsd       β KL(P‖M) + (1 − β) KL(Q‖M),   M = β P + (1 − β) Q,   0 < β < 1

The forward one covers all that the teacher might say, the reverse one keeps to what it likes to
say. The generalised Jensen-Shannon divergence goes from one to the other: over β it becomes the
forward divergence for β → 0, over 1 − β the reverse one for β → 1 (GKD, arXiv:2306.13649, section
2). Nothing is multiplied by the temperature's square, as Hinton's distillation does
(arXiv:1503.02531).

Gradients are written out: in the student's scaled logits z_v they are

    forward   Q_v − P_v                         (cross-entropy's, against P)
    reverse   Q_v (r_v − Σ_w Q_w r_w),           r = log Q − log P
    jsd       (1 − β) Q_v (r_v − Σ_w Q_w r_w),   r = log Q − log M
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax import head
from r1jax.logprobs import LOGITS_AT_ONCE
from r1jax.shapes import check_axes
from r1jax.types import Array

DIVERGENCES = ("forward", "reverse", "jsd")


class _Kind(NamedTuple):
    name: str
    beta: float


def token_divergence(
    logits_BTV: Array,
    teacher_BTV: Array,
    *,
    divergence: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
) -> Array:
    """The divergence at each position between the softmax of two arrays of logits.

    Log-probabilities will do: they are logits. Computed in float32 (float64 for float64 logits).
    The teacher is a constant, and no gradient goes to the temperature. Where the incoming
    gradient is 0 (masked positions), so is that of the logits, even if either is NaN.

    Args:
        divergence: a name in DIVERGENCES; formulas in the module.
        beta: β of "jsd"; the others do not read it.

    Returns:
        divergence_BT, not negative but for rounding. Tokens with probability 0 on the side that
        is averaged over add 0; a token that only the other side rules out makes it infinite
        (never "jsd").

    Raises:
        ValueError: shapes disagree, or a setting is out of range.
    """
    check_axes(logits_BTV=logits_BTV, teacher_BTV=teacher_BTV)
    kind = _checked(divergence, beta, temperature)
    return _plain(kind, jnp.asarray(logits_BTV), jnp.asarray(teacher_BTV), temperature)


def head_divergence(
    hidden_BTD: Array,
    table_DV: Array,
    teacher_hidden_BTd: Array,
    teacher_table_dV: Array,
    *,
    divergence: str = "forward",
    beta: float = 0.5,
    temperature: float = 1.0,
    chunk: int | None = None,
    layout: head.Layout = None,
) -> Array:
    """`token_divergence` of the logits `hidden @ table` of both, which never exist as a whole.

    Logits are made for `chunk` positions of every row at a time, forward and once more
    backward; nothing is kept for the gradient but the arguments. The models may differ in
    width and type; each table is used in the type of its activations, and products add up in
    float32. Where the incoming gradient is 0, nothing of either model reaches any gradient.

    Args:
        divergence, beta, temperature: as of `token_divergence`.
        chunk: positions, any number from 1; by default as many as hold `LOGITS_AT_ONCE` logits
            of both models a device. Results depend on it only in rounding.
        layout: as of `logprobs.head_logprobs`.

    Returns:
        divergence_BT.

    Raises:
        ValueError: shapes disagree (vocabularies too), or a setting is out of range.
    """
    check_axes(
        hidden_BTD=hidden_BTD, table_DV=table_DV, teacher_hidden_BTd=teacher_hidden_BTd,
        teacher_table_dV=teacher_table_dV,
    )  # fmt: skip
    kind = _checked(divergence, beta, temperature)
    if chunk is None:
        rows, vocabulary = np.shape(hidden_BTD)[0], np.shape(table_DV)[1]
        chunk = head.positions_at_once(rows, vocabulary, LOGITS_AT_ONCE // 2)
    if chunk < 1:
        raise ValueError(f"chunk={chunk} has to be positive")
    arrays = map(jnp.asarray, (hidden_BTD, table_DV, teacher_hidden_BTd, teacher_table_dV))
    return _chunked(kind, chunk, head.on_mesh(layout), *arrays, temperature)


def check_divergence(divergence: str, beta: float) -> None:
    """Raises ValueError for a name or a β that no divergence has."""
    if divergence not in DIVERGENCES:
        raise ValueError(f"divergence={divergence!r} is unknown; known: {', '.join(DIVERGENCES)}")
    if divergence == "jsd" and not 0 < beta < 1:
        raise ValueError(
            f"beta={beta} has to lie between 0 and 1; at the ends are divergence='forward' and "
            "'reverse'"
        )


def _checked(divergence, beta, temperature) -> _Kind:
    check_divergence(divergence, beta)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ValueError(f"temperature={temperature} has to be positive")
    return _Kind(divergence, float(beta))


def _log_softmax(logits, temperature):
    return jax.nn.log_softmax(logits.astype(head.wide(logits.dtype)) / temperature, axis=-1)


def _mean(logp, x):
    """Σ_v p_v x_v, where p_v = 0 adds 0. NaN shows."""
    p = jnp.exp(logp)
    return jnp.sum(jnp.where(p == 0, 0, p * x), axis=-1)


def _mixed(beta, teacher, student):
    return jnp.logaddexp(math.log(beta) + teacher, math.log1p(-beta) + student)


def _value(kind: _Kind, logits, teacher, temperature):
    student, teacher = _log_softmax(logits, temperature), _log_softmax(teacher, temperature)
    if kind.name == "forward":
        return _mean(teacher, teacher - student)
    if kind.name == "reverse":
        return _mean(student, student - teacher)
    mixed = _mixed(kind.beta, teacher, student)
    return kind.beta * _mean(teacher, teacher - mixed) + (1 - kind.beta) * _mean(
        student, student - mixed
    )


def _gradient(kind: _Kind, logits, teacher, temperature, grad):
    """Of the student's logits."""
    student, teacher = _log_softmax(logits, temperature), _log_softmax(teacher, temperature)
    q = jnp.exp(student)
    if kind.name == "forward":
        slope = q - jnp.exp(teacher)
    else:
        jsd = kind.name == "jsd"
        lead = student - (_mixed(kind.beta, teacher, student) if jsd else teacher)
        slope = jnp.where(q == 0, 0, q * (lead - _mean(student, lead)[..., None]))
        slope = (1 - kind.beta) * slope if jsd else slope
    scale = (grad / temperature)[..., None]
    return jnp.where(scale == 0, 0, scale * slope).astype(logits.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _plain(kind, logits_BTV, teacher_BTV, temperature):
    return _value(kind, logits_BTV, teacher_BTV, temperature)


def _plain_forward(kind, logits_BTV, teacher_BTV, temperature):
    kept = (logits_BTV, teacher_BTV, temperature)
    return _value(kind, *kept), kept


def _plain_backward(kind, kept, grad_BT):
    return _gradient(kind, *kept, grad_BT), None, None


_plain.defvjp(_plain_forward, _plain_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(kind, chunk, layout, hidden_BTD, table_DV, teacher_BTd, teacher_dV, temperature):
    teacher = head.laid_out_table(teacher_dV, teacher_BTd.dtype, layout)

    def some(logits_BcV, teacher_Bcd):
        return _value(kind, logits_BcV, head.chunk_logits(teacher_Bcd, teacher), temperature)

    return head.map_logits(some, chunk, layout, hidden_BTD, table_DV, teacher_BTd)


def _chunked_forward(kind, chunk, layout, *arguments):
    return _chunked(kind, chunk, layout, *arguments), arguments


def _chunked_backward(kind, chunk, layout, kept, grad_BT):
    hidden_BTD, table_DV, teacher_BTd, teacher_dV, temperature = kept
    teacher = head.laid_out_table(teacher_dV, teacher_BTd.dtype, layout)

    def of_logits(logits_BcV, grad_Bc, teacher_Bcd):
        teacher_BcV = head.chunk_logits(teacher_Bcd, teacher)
        return _gradient(kind, logits_BcV, teacher_BcV, temperature, grad_Bc)

    grad_BTD, grad_DV = head.gradients(
        of_logits, chunk, layout, hidden_BTD, table_DV, grad_BT, teacher_BTd
    )
    return grad_BTD, grad_DV, None, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
