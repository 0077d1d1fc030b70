"""Rotary positions (arXiv:2104.09864) and the ways to stretch them to longer contexts.

Which dimensions form a pair is the families' difference: Llama and Qwen rotate
(i, i + h/2), DeepSeek (2i, 2i + 1).
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from r1jax.types import Array

KINDS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies are stretched; only the fields of its `kind` are read.

    linear: all frequencies / factor (arXiv:2306.15595).
    llama3: wavelengths above original_context / low_freq_factor are stretched by `factor`,
      those below original_context / high_freq_factor kept, those between blended
      (arXiv:2407.21783, as published with the weights).
    yarn: as llama3, by the number of turns within original_context, from beta_fast (kept)
      to beta_slow (stretched), a ramp over dimensions (arXiv:2309.00071). Attention
      grows sharper: cos and sin are multiplied by `attention_factor`, and where
      `mscale_all_dim` is not 0 the softmax scale by (0.1 · mscale_all_dim · ln factor + 1)²
      (DeepSeek). attention_factor 0 means: follow from the other fields.
    """

    kind: str
    factor: float
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0
    attention_factor: float = 0.0
    truncate: bool = True

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"rope kind={self.kind!r} is not one of {', '.join(KINDS)}")
        if not self.factor >= 1:
            raise ValueError(f"rope factor={self.factor} must be at least 1")
        if self.kind != "linear" and self.original_context < 1:
            raise ValueError(f"rope kind={self.kind!r} needs original_context, in tokens")
        if self.kind == "llama3" and not self.high_freq_factor > self.low_freq_factor > 0:
            raise ValueError(
                f"rope high_freq_factor={self.high_freq_factor} must exceed "
                f"low_freq_factor={self.low_freq_factor}, and both must be positive"
            )

    @property
    def rotation_scale(self) -> float:
        """What cos and sin are multiplied by."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return _sharpness(self.factor, self.mscale) / _sharpness(
                self.factor, self.mscale_all_dim
            )
        return _sharpness(self.factor, 1.0)

    @property
    def softmax_scale(self) -> float:
        """What DeepSeek's attention scores are multiplied by, beyond 1/√h."""
        if self.kind != "yarn" or not self.mscale_all_dim:
            return 1.0
        return _sharpness(self.factor, self.mscale_all_dim) ** 2


def _sharpness(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1


def frequencies(dim: int, theta: float, scaling: RopeScaling | None) -> np.ndarray:
    """Radians a position of each of the dim/2 pairs, float64."""
    plain = theta ** (-np.arange(0, dim, 2) / dim)
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    kept = (_kept_llama3 if scaling.kind == "llama3" else _kept_yarn)(plain, theta, scaling)
    return plain * kept + plain / scaling.factor * (1 - kept)


def _kept_llama3(plain: np.ndarray, theta: float, s: RopeScaling) -> np.ndarray:
    """Share of each frequency that stays as it is."""
    turns = s.original_context * plain / (2 * math.pi)
    return np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)


def _kept_yarn(plain: np.ndarray, theta: float, s: RopeScaling) -> np.ndarray:
    dim = 2 * len(plain)

    def dimension(turns):  # the pair that makes so many turns within the original context
        return dim * math.log(s.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = (np.arange(len(plain)) - low) / (high - low if high > low else 0.001)
    return 1 - np.clip(ramp, 0, 1)


def rope_angles(
    positions_BT: Array, dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Array, Array]:
    """cos and sin, [B, 1, T, dim/2], float32, for `dim` rotated dimensions."""
    turn = jnp.asarray(frequencies(dim, theta, scaling), jnp.float32)
    angle = positions_BT[:, None, :, None].astype(jnp.float32) * turn.reshape(1, 1, 1, -1)
    scale = 1.0 if scaling is None else scaling.rotation_scale
    return jnp.cos(angle) * scale, jnp.sin(angle) * scale


def rotate(x_BKTh: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (i, i + h/2), as Llama and Qwen do."""
    a, b = jnp.split(x_BKTh, 2, axis=-1)
    cos, sin = cos.astype(x_BKTh.dtype), sin.astype(x_BKTh.dtype)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def rotate_neighbours(x_BKTh: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (2i, 2i + 1), as DeepSeek does."""
    pairs = x_BKTh.reshape(*x_BKTh.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    cos, sin = cos.astype(x_BKTh.dtype), sin.astype(x_BKTh.dtype)
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x_BKTh.shape)
