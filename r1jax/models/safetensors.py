"""The safetensors file format, read by rows and written as a stream.

A file is the length of its header (8 bytes, little-endian), the header (JSON: name to
dtype, shape and offsets), and the tensors' bytes, row-major, without gaps. The
`safetensors` library maps files into memory and saves from whole dicts; here neither a
mapping nor a second copy of any tensor may count against a host's memory, so plain
reads and writes of chunks it is. The tests hold it to the library.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

DTYPES = {
    "F64": np.dtype("float64"), "F32": np.dtype("float32"), "F16": np.dtype("float16"),
    "BF16": np.dtype(jnp.bfloat16), "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2), "I64": np.dtype("int64"), "I32": np.dtype("int32"),
    "I16": np.dtype("int16"), "I8": np.dtype("int8"), "U8": np.dtype("uint8"),
    "BOOL": np.dtype("bool"),
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class FormatError(ValueError):
    """A file is not what the format asks for; the message names it and what is wrong."""


class File:
    """An open file: `shapes` and `dtypes` by tensor name, and rows of tensors on demand.

    Raises FormatError for a header that cannot be read and for a truncated file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._file = open(self.path, "rb")  # noqa: SIM115 - closed by __exit__
        try:
            header, self._start = self._header()
            self._offsets = {}
            self.shapes: dict[str, tuple[int, ...]] = {}
            self.dtypes: dict[str, np.dtype] = {}
            for name, entry in header.items():
                if name != "__metadata__":
                    self._add(name, entry)
            end = self._start + max((e for _, e in self._offsets.values()), default=0)
            size = self.path.stat().st_size
            if size < end:
                raise FormatError(
                    f"{self.path} is truncated: {size} bytes, but its header promises {end}; "
                    "copy or download it again"
                )
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()

    def _header(self) -> tuple[dict, int]:
        size, start = self.path.stat().st_size, self._file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length + 8 > size:
            raise FormatError(f"{self.path} is no safetensors file, or truncated: {size} bytes")
        try:
            header = json.loads(self._file.read(length))
        except ValueError as error:
            raise FormatError(f"{self.path} is no safetensors file: {error}") from error
        if not isinstance(header, dict):
            raise FormatError(f"{self.path} is no safetensors file: its header is {header!r:.40}")
        return header, length + 8

    def _add(self, name: str, entry: Mapping) -> None:
        try:
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
                raise ValueError("a shape or an offset is no number")
        except (TypeError, KeyError, ValueError) as error:
            raise FormatError(f"{self.path}: the header's entry of {name} is broken") from error
        if dtype not in DTYPES:
            raise FormatError(f"{self.path}: {name} has dtype {dtype}; known: {', '.join(DTYPES)}")
        wanted = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
        if end - begin != wanted:
            raise FormatError(
                f"{self.path}: {name} {dtype} {shape} takes {wanted} bytes, not {end - begin}"
            )
        self.shapes[name], self.dtypes[name] = shape, DTYPES[dtype]
        self._offsets[name] = begin, end

    def read(self, name: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows `start` to `stop` (default: all) of a tensor, as stored; safe from threads."""
        shape, dtype = self.shapes[name], self.dtypes[name]
        rows = shape[0] if shape else 1
        stop = rows if stop is None else stop
        out = np.empty((stop - start, *shape[1:]) if shape else (), dtype)
        row = out.nbytes // max(1, stop - start)
        at, rest = (
            self._start + self._offsets[name][0] + start * row,
            out.reshape(-1).view(np.uint8),
        )
        while len(rest):  # one call reads at most 2 GiB
            count = os.preadv(self._file.fileno(), [rest], at)
            if not count:
                raise FormatError(f"{self.path} ends within {name}")
            at, rest = at + count, rest[count:]
        return out


def write(
    path: str | Path,
    about: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    arrays: Iterable[np.ndarray],
) -> None:
    """Writes tensors named and shaped by `about`, taking their values one by one from `arrays`.

    Raises ValueError where an array is not of the shape or type that was said.
    """
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (shape, dtype) in about.items():
        if dtype not in NAMES:
            raise ValueError(f"{name} is {dtype}, which the format has no name for")
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        header[name] = {
            "dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [at, at + size],
        }  # fmt: skip
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for (name, said), array in zip(about.items(), arrays, strict=True):
            if (array.shape, array.dtype) != said:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {said}")
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
