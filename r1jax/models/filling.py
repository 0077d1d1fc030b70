"""Parameters filled from files a chunk at a time, straight into every device's own piece."""

import functools
from threading import Lock
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from r1jax.models import safetensors

CHUNK_BYTES = 16 * 2**20


class Place(NamedTuple):
    """Where a file's tensor belongs: entry `lead` of a parameter, turned over if a matrix."""

    leaf: str
    lead: tuple[int, ...]
    transposed: bool
    shape: tuple[int, ...]  # as in the file


class Leaf:
    """A parameter being filled: one buffer for each device of this process.

    On a CPU the buffer is memory of the host, which becomes the device's as it is; on others
    it is the device's own, and chunks are inserted in place.
    """

    def __init__(self, abstract, dtype: np.dtype):
        self.shape, self.sharding = abstract.shape, abstract.sharding
        self.buffers, self.devices_of, self._lock = {}, {}, Lock()
        for device, index in self.sharding.addressable_devices_indices_map(self.shape).items():
            spans = tuple(s.indices(n)[:2] for s, n in zip(index, self.shape, strict=True))
            self.devices_of.setdefault(spans, []).append(device)
            shape = tuple(stop - start for start, stop in spans)
            if device.platform == "cpu":
                self.buffers[device] = _aligned(shape, dtype)
            else:
                self.buffers[device] = jnp.zeros(shape, dtype, device=device)

    def fill(self, file: safetensors.File, name: str, place: Place, scale) -> None:
        """Puts one tensor of a file where it belongs, a chunk of rows at a time."""
        shape = file.shapes[name]
        size = file.dtypes[name].itemsize * int(np.prod(shape[1:], dtype=np.int64))
        step, pending = max(1, CHUNK_BYTES // max(1, size)), []
        pieces = list(self._pieces(place))
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            if not any(a < stop and start < b for (a, b), *_ in pieces):
                continue
            chunk = file.read(name, start, stop)
            if scale is not None:
                chunk = _dequantised(chunk, start, *scale)
            jax.block_until_ready(pending)  # one chunk is put while the next is read, not more
            pending = []
            for (a, b), columns, lead, devices in pieces:
                low, high = max(a, start), min(b, stop)
                if low >= high:
                    continue
                part, at = chunk[low - start : high - start], (low - a,)
                if columns is not None:
                    part, at = part[:, slice(*columns)], (low - a, 0)
                if place.transposed:
                    part, at = part.T, at[::-1]
                pending += [self._put(device, part, lead, at) for device in devices]
        jax.block_until_ready(pending)

    def _pieces(self, place: Place):
        """(rows, columns, lead in the buffer, devices) of each region, in the file's order."""
        n = len(place.lead)
        for spans, devices in self.devices_of.items():
            if all(a <= i < b for i, (a, b) in zip(place.lead, spans[:n], strict=True)):
                own = spans[n:][:: -1 if place.transposed else 1]
                lead = tuple(i - a for i, (a, _) in zip(place.lead, spans[:n], strict=True))
                yield own[0], own[1] if len(own) > 1 else None, lead, devices

    def _put(self, device, part: np.ndarray, lead: tuple, at: tuple):
        """Puts a part at the corner `at` of entry `lead`; what it returns is ready when it is."""
        buffer = self.buffers[device]
        if isinstance(buffer, np.ndarray):
            region = tuple(slice(i, i + n) for i, n in zip(at, part.shape, strict=True))
            return _copy(buffer[lead][region], part)
        staged = np.empty(part.shape, part.dtype)
        _copy(staged, part)
        staged = jax.device_put(staged, device)
        with self._lock:  # two layers' tensors may be on their way into the one buffer
            self.buffers[device], done = _insert(self.buffers[device], staged, (*lead, *at))
        return done

    def finish(self) -> jax.Array:
        parts = [jax.device_put(b, d, may_alias=True) for d, b in self.buffers.items()]
        return jax.make_array_from_single_device_arrays(self.shape, self.sharding, parts)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that jax takes over without a copy: it wants 64 bytes."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, part: np.ndarray) -> None:
    """target[...] = part, which may be turned over: in strips that a cache holds."""
    if target.dtype == part.dtype:  # numpy moves its own types faster than bfloat16
        words = np.dtype(f"u{part.itemsize}")
        target, part = target.view(words), part.view(words)
    if part.ndim == 2 and part.flags.f_contiguous and not part.flags.c_contiguous:
        for at in range(0, part.shape[1], 32):
            target[:, at : at + 32] = part[:, at : at + 32]
    else:
        target[...] = part


def _dequantised(rows: np.ndarray, first: int, scale: np.ndarray, block) -> np.ndarray:
    """float32 values of rows of a block-scaled matrix, of which `first` is the first."""
    i = (first + np.arange(rows.shape[0])) // block[0]
    j = np.arange(rows.shape[1]) // block[1]
    return rows.astype(np.float32) * scale[i[:, None], j[None, :]]


@functools.partial(jax.jit, donate_argnums=0)
def _insert(buffer, part, at):
    """The buffer (its memory taken over) with `part` at `at`, and a number to wait for."""
    part = part.astype(buffer.dtype).reshape((1,) * (buffer.ndim - part.ndim) + part.shape)
    return jax.lax.dynamic_update_slice(buffer, part, at), part.reshape(-1)[0]
