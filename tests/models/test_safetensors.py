"""Our reader and writer of safetensors against the library, and files that are broken."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from r1jax.models.safetensors import DTYPES, File, FormatError, write

SHAPES = [(), (0,), (1,), (7,), (3, 5), (0, 4), (4, 0), (2, 3, 4)]


def tensors() -> dict[str, np.ndarray]:
    """Every type in every shape, of random bytes: all bit patterns, NaNs included."""
    rng = np.random.default_rng(0)
    found = {}
    for name, dtype in DTYPES.items():
        for shape in SHAPES:
            count = int(np.prod(shape)) * dtype.itemsize
            data = rng.integers(0, 2 if name == "BOOL" else 256, count, np.uint8)
            found[f"{name} {shape}"] = data.view(dtype).reshape(shape)
    return found


def same_bits(a, b):
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert a.tobytes() == b.tobytes()


def about(arrays):
    return {name: (x.shape, x.dtype) for name, x in arrays.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def test_reading_what_the_library_wrote(path):
    wanted = tensors()
    path.write_bytes(safetensors.numpy.save(wanted, {"format": "pt"}))
    with File(path) as file:
        assert file.shapes == {name: x.shape for name, x in wanted.items()}
        assert file.dtypes == {name: x.dtype for name, x in wanted.items()}
        for name, x in wanted.items():
            same_bits(file.read(name), x)


def test_the_library_reads_what_we_wrote(path):
    wanted = tensors()
    write(path, about(wanted), iter(wanted.values()))
    read = dict(safetensors.deserialize(path.read_bytes()))
    assert read.keys() == wanted.keys()
    for name, x in wanted.items():
        kind = name.split()[0]
        # The library's names of types, not ours: a name that both sides share can be wrong.
        assert (read[name]["dtype"], tuple(read[name]["shape"])) == (kind, x.shape)
        assert bytes(read[name]["data"]) == x.tobytes()
    with safetensors.safe_open(path, "numpy") as file:
        assert file.metadata() == {"format": "pt"}  # without it transformers refuses the file
        same_bits(file.get_tensor("F32 (3, 5)"), wanted["F32 (3, 5)"])


def test_the_library_names_types_as_we_do():
    for name, dtype in DTYPES.items():
        data = safetensors.numpy.save({"x": np.zeros(2, dtype)})
        assert safetensors.deserialize(data)[0][1]["dtype"] == name


def test_tensors_begin_at_a_multiple_of_eight(path):
    for length in range(8):
        write(path, {"x" * (length + 1): ((1,), np.dtype("float32"))}, [np.zeros(1, np.float32)])
        assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


@pytest.mark.parametrize("shape", [(9,), (9, 3), (9, 2, 2), (9, 0)])
def test_rows_of_a_tensor(path, shape):
    x = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    before = np.full(5, -1, np.int16)  # rows of x begin at its own offset
    path.write_bytes(safetensors.numpy.save({"before": before, "x": x, "y": before}))
    with File(path) as file:
        for start, stop in [(0, 1), (8, 9), (3, 7), (0, 9), (4, 4), (2, None)]:
            same_bits(file.read("x", start, stop), x[start:stop])


def test_arrays_that_are_not_contiguous_are_written_in_order(path):
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    write(path, {"x": ((4, 3), x.dtype), "y": ((3, 2), x.dtype)}, [x.T, x[:, ::2]])
    read = safetensors.numpy.load_file(path)
    same_bits(read["x"], x.T.copy())
    same_bits(read["y"], x[:, ::2].copy())


def test_no_tensors(path):
    write(path, {}, [])
    assert safetensors.numpy.load_file(path) == {}
    with File(path) as file:
        assert file.shapes == {}


def test_one_array_at_a_time_is_written(path):
    def arrays():
        for i in range(3):
            yield np.full(1000, i, np.float64)
            sizes.append(path.stat().st_size)

    sizes = []
    write(path, {str(i): ((1000,), np.dtype("float64")) for i in range(3)}, arrays())
    assert 8000 <= sizes[0] < 16_000 <= sizes[1] < 24_000


# --- broken files ----------------------------------------------------------------------


def file_of(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


GOOD = {"a.weight": entry(), "b.weight": entry("BF16", (4,), (24, 32))}
NOT_ONE = "no safetensors file"
BROKEN = {
    "empty": (b"", NOT_ONE),
    "length_cut": (b"\x10\x00\x00", NOT_ONE),
    "header_cut": (file_of(GOOD)[:40], r"no safetensors file, or truncated: 40 bytes"),
    "header_cut_at_its_end": (file_of(GOOD)[:-1], "or truncated"),
    "header_longer_than_the_file": (file_of(GOOD, length=2**40), "or truncated"),
    "a_page_of_text": (b"<!DOCTYPE html><html>Not found</html>", NOT_ONE),
    "header_of_noise": (file_of(b"\xff\xfe\x00\x81" * 4), NOT_ONE),
    "header_no_json": (file_of(b"{'a': 1}"), NOT_ONE),
    "header_a_list": (file_of([1, 2]), NOT_ONE),
    "header_a_number": (file_of(b"7"), NOT_ONE),
    "data_cut": (file_of(GOOD, bytes(31)), "is truncated: .* bytes, but its header promises"),
    "data_missing": (file_of(GOOD), "is truncated"),
    "dtype_unknown": (
        file_of({"a.weight": entry("F33")}, bytes(24)),
        "a.weight has dtype F33; known: F64, .*BF16",
    ),
    "size_too_small": (
        file_of({"a.weight": entry(offsets=(0, 20))}, bytes(24)),
        r"a.weight F32 \(2, 3\) takes 24 bytes, not 20",
    ),
    "size_too_large": (
        file_of({"a.weight": entry(offsets=(0, 28))}, bytes(28)),
        r"a.weight F32 \(2, 3\) takes 24 bytes, not 28",
    ),
    "offsets_backwards": (file_of({"a.weight": entry(offsets=(24, 0))}, bytes(24)), "a.weight"),
    "offsets_before_the_data": (
        file_of({"a.weight": entry(offsets=(-24, 0))}, bytes(24)),
        "a.weight",
    ),
    "offsets_no_pair": (file_of({"a.weight": entry(offsets=(0,))}, bytes(24)), "a.weight"),
    "offsets_no_numbers": (file_of({"a.weight": entry(offsets="ab")}, bytes(24)), "a.weight"),
    "shape_missing": (
        file_of({"a.weight": {"dtype": "F32", "data_offsets": [0, 24]}}, bytes(24)),
        "a.weight",
    ),
    "shape_no_list": (
        file_of({"a.weight": entry() | {"shape": 6}}, bytes(24)),
        "entry of a.weight is broken",
    ),
    "shape_no_numbers": (file_of({"a.weight": entry(shape="ab")}, bytes(24)), "a.weight"),
    "shape_negative": (file_of({"a.weight": entry(shape=(-2, -3))}, bytes(24)), "a.weight"),
    "entry_no_dict": (file_of({"a.weight": None}), "entry of a.weight is broken"),
}


@pytest.mark.parametrize(("data", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_file(path, data, message):
    path.write_bytes(data)
    with pytest.raises(Exception):  # noqa: B017 - the library raises many kinds
        safetensors.deserialize(data)
    with pytest.raises(FormatError, match=message) as caught:
        File(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", ["header_cut", "data_cut", "dtype_unknown"])
def test_a_broken_file_is_closed(path, name, monkeypatch):
    opened = []

    def record(*args, **kwargs):
        opened.append(open(*args, **kwargs))  # noqa: SIM115 - to see whether others close it
        return opened[-1]

    path.write_bytes(BROKEN[name][0])
    monkeypatch.setattr("r1jax.models.safetensors.open", record, raising=False)
    with pytest.raises(FormatError):
        File(path)
    assert [file.closed for file in opened] == [True]


def test_a_file_is_closed_after_an_error_in_its_block(path):
    path.write_bytes(file_of(GOOD, bytes(32)))
    with pytest.raises(KeyError), File(path) as file:
        file.read("no such tensor")
    with pytest.raises(ValueError, match="closed file"):
        file.read("a.weight")


def test_a_file_that_is_cut_after_it_was_opened(path):
    half = 2**20  # more than Python reads ahead
    header = {
        "a.weight": entry("U8", (half,), (0, half)),
        "b": entry("U8", (half,), (half, 2 * half)),
    }
    path.write_bytes(file_of(header, bytes(2 * half)))
    with File(path) as file:
        path.write_bytes(path.read_bytes()[:-4])
        same_bits(file.read("a.weight"), np.zeros(half, np.uint8))
        with pytest.raises(FormatError, match="ends within b") as caught:
            file.read("b")
    assert str(path) in str(caught.value)


# --- what the writer refuses -----------------------------------------------------------

ONE = {"x": ((2, 3), np.dtype("float32"))}


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 2), np.float32), np.zeros(6, np.float32), np.zeros((2, 3), np.float64)],
    ids=["transposed", "flat", "float64"],
)
def test_an_array_that_is_not_what_was_said_is_refused(path, array):
    with pytest.raises(ValueError, match="x is .*, not"):
        write(path, ONE, [array])


@pytest.mark.parametrize("count", [0, 2])
def test_a_wrong_number_of_arrays_is_refused(path, count):
    with pytest.raises(ValueError, match="shorter|longer"):
        write(path, ONE, [np.zeros((2, 3), np.float32)] * count)


def test_types_are_those_of_jax():
    for name, dtype in {"BF16": jnp.bfloat16, "F8_E4M3": jnp.float8_e4m3fn}.items():
        assert DTYPES[name] == jnp.zeros((), dtype).dtype
