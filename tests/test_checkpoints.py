"""Checkpoint files: what was written is what is read; a broken file raises one error and does no more."""

import json
import os
import re
import struct
from pathlib import Path

import blasformer
import fresh_python
import ml_dtypes
import numpy as np
import pytest
from blasformer.io import Checkpoint, load_tensors, save_tensors
from checkpoint_files import entry, file_bytes, save, save_sharded
from hypothesis import given, settings
from hypothesis import strategies as st

FLOATING = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def some_tensors(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "embedding.weight": rng.standard_normal((7, 3)).astype(dtype),
        "scalar": np.array(1.5, dtype),
        "empty": np.zeros((0, 5), dtype),
        "bias": np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 6e-8], dtype),
    }


def assert_reading_still_works(folder: Path) -> None:
    save(folder / "good.safetensors", {"x": np.arange(3, dtype=np.float32)})
    np.testing.assert_array_equal(load_tensors(folder / "good.safetensors")["x"], [0, 1, 2])


# ------------------------------------------------------------------------------------------------------------
# What is read
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATING)
def test_tensors_are_read_bit_for_bit(tmp_path, dtype):
    tensors = some_tensors(dtype)
    save(tmp_path / "model.safetensors", tensors)
    loaded = load_tensors(tmp_path)
    assert loaded.keys() == tensors.keys()
    for name, array in tensors.items():
        assert loaded[name].dtype == dtype
        assert loaded[name].shape == array.shape
        assert loaded[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("target", [np.float32, np.float64])
@pytest.mark.parametrize("dtype", FLOATING)
def test_conversion_keeps_every_value_the_target_can_hold(tmp_path, dtype, target):
    tensors = some_tensors(dtype)
    save(tmp_path / "model.safetensors", tensors)
    for name, array in load_tensors(tmp_path, dtype=target).items():
        assert array.dtype == target
        np.testing.assert_array_equal(array, tensors[name].astype(target))


def test_every_bfloat16_and_float16_is_widened_exactly(tmp_path):
    bits = np.arange(2**16, dtype=np.uint16)
    tensors = {"bfloat16": bits.view(ml_dtypes.bfloat16), "float16": bits.view(np.float16)}
    save(tmp_path / "model.safetensors", tensors)
    loaded = load_tensors(tmp_path, dtype=np.float32)
    np.testing.assert_array_equal(loaded["bfloat16"], (bits.astype(np.uint32) << 16).view(np.float32))
    for name, original in tensors.items():
        finite = np.isfinite(loaded[name])
        assert loaded[name][finite].astype(original.dtype).tobytes() == original[finite].tobytes()


def test_integer_tensors_are_never_converted(tmp_path):
    save(tmp_path / "model.safetensors", {"position_ids": np.arange(5)})
    assert load_tensors(tmp_path, dtype=np.float32)["position_ids"].dtype == np.int64


def test_what_was_read_outlives_the_file(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, {"x": np.arange(3000, dtype=np.float32)})
    with Checkpoint(path) as checkpoint:
        x = checkpoint.read("x")
    path.write_bytes(b"")
    np.testing.assert_array_equal(x, np.arange(3000))


def test_a_file_cut_off_while_it_is_open_is_an_error_and_not_a_crash(tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, {"x": np.arange(300_000, dtype=np.float32)})
    with Checkpoint(path) as checkpoint:
        os.truncate(path, 5000)
        with pytest.raises(ValueError, match="tensor 'x' cannot be read"):
            checkpoint.read("x")
    assert_reading_still_works(tmp_path)


def test_shards_are_read_as_one_checkpoint(tmp_path):
    tensors = some_tensors(np.float32)
    names = list(tensors)
    save_sharded(
        tmp_path, {name: tensors[name] for name in names[:1]}, {name: tensors[name] for name in names[1:]}
    )
    for path in (tmp_path, tmp_path / "model.safetensors.index.json"):
        loaded = load_tensors(path)
        assert loaded.keys() == tensors.keys()
        assert all(loaded[name].tobytes() == tensors[name].tobytes() for name in names)


def test_shapes_and_dtypes_are_known_before_anything_is_read(tmp_path):
    save(tmp_path / "model.safetensors", {"a": np.zeros((2, 3), np.float16), "b": np.zeros(4, np.int64)})
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.shapes == {"a": (2, 3), "b": (4,)}
        assert checkpoint.dtypes == {"a": "float16", "b": "int64"}


def test_shards_of_a_hugging_face_cache_are_links_to_its_blobs(tmp_path):
    snapshot, blobs = tmp_path / "snapshots" / "0123abcd", tmp_path / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_sharded(snapshot, {"a": np.ones(3, np.float32)}, {"b": np.ones(2, np.float32)})
    for number, shard in enumerate(sorted(snapshot.glob("model-*"))):
        shard.rename(blobs / f"{number}")
        shard.symlink_to(Path("..", "..", "blobs", f"{number}"))
    assert load_tensors(snapshot).keys() == {"a", "b"}


def test_a_layer_loads_what_was_read(tmp_path):
    tensors = {"weight": np.full((2, 3), 0.5, np.float16), "bias": np.arange(2, dtype=np.float16)}
    save(tmp_path / "model.safetensors", tensors)
    layer = blasformer.nn.Linear(3, 2)
    layer.load_state_dict(load_tensors(tmp_path, dtype=np.float32))
    np.testing.assert_array_equal(layer(np.ones((1, 3), np.float32)), [[1.5, 2.5]])


def test_reading_needs_no_torch(tmp_path):
    save(tmp_path / "model.safetensors", some_tensors(ml_dtypes.bfloat16))
    program = f"""
import sys
sys.modules["torch"] = None
from blasformer.io import load_tensors
print(len(load_tensors({str(tmp_path)!r}, dtype="float32")))"""
    assert fresh_python.run(program) == "4"


# ------------------------------------------------------------------------------------------------------------
# Wrong requests
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.int32, "nonsense", ml_dtypes.bfloat16])
def test_the_target_dtype_is_float32_or_float64(tmp_path, dtype):
    save(tmp_path / "model.safetensors", some_tensors(np.float32))
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got "):
        load_tensors(tmp_path, dtype=dtype)


def test_a_value_beyond_the_target_dtype_is_an_error(tmp_path):
    save(tmp_path / "model.safetensors", {"huge": np.array([1e300])})
    with pytest.raises(
        ValueError, match=r"tensor 'huge' holds values beyond the range of float32; read it as float64"
    ):
        load_tensors(tmp_path, dtype=np.float32)
    assert load_tensors(tmp_path, dtype=np.float64)["huge"] == 1e300


def test_an_unknown_name_is_a_key_error(tmp_path):
    save(tmp_path / "model.safetensors", some_tensors(np.float32))
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(KeyError, match="has no tensor 'nothing'"):
        checkpoint.read("nothing")


def test_a_path_without_a_checkpoint_is_a_file_not_found_error(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds neither model.safetensors nor model.safetensors.index.json"
    ):
        Checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        Checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_unopened(tmp_path, name):
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch exploited'\ntR.")
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=rf"{name} is a pickled checkpoint, which can run any code"):
            Checkpoint(path)


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="must be a regular file"):
        Checkpoint(tmp_path)


# ------------------------------------------------------------------------------------------------------------
# Hostile safetensors files
# ------------------------------------------------------------------------------------------------------------

HOSTILE = {
    "no bytes at all": (b"", "header too small"),
    "a truncated header length": (b"\x10\0\0", "header too small"),
    "a header length beyond the file": (file_bytes({}, length=10**6), "invalid header length"),
    "a header length of 2 ** 63": (file_bytes({}, length=2**63), "header too large"),
    "a truncated header": (file_bytes({"a": entry()}, b"")[:-9], "invalid header length"),
    "a header that is no JSON": (file_bytes(b"hello"), "invalid JSON in header"),
    "a header that is a list": (file_bytes([]), "invalid JSON in header"),
    "a header nested ten thousand deep": (file_bytes(b'{"a":' * 10_000), "invalid JSON in header"),
    "a header that is no UTF-8": (file_bytes(b'{"\xff\xfe": 1}'), "invalid UTF-8 in header"),
    "overlapping tensors": (
        file_bytes({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12),
        "invalid offset",
    ),
    "a hole between tensors": (
        file_bytes({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20),
        "invalid offset",
    ),
    "data that begins late": (file_bytes({"a": entry(offsets=(4, 12))}, b"\0" * 12), "invalid offset"),
    "data that ends before it begins": (file_bytes({"a": entry(offsets=(8, 0))}), "invalid offset"),
    "an unknown dtype": (file_bytes({"a": entry("F31")}), "unknown variant `F31`"),
    "a negative shape": (file_bytes({"a": entry(shape=(-2,))}), "invalid value: integer `-2`"),
    "a fractional shape": (file_bytes({"a": entry(shape=(2.5,))}), "floating point `2.5`"),
    "a shape whose product overflows": (file_bytes({"a": entry(shape=(2**62, 4, 4))}), "overflow"),
    "a shape whose product wraps to zero": (
        file_bytes({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}, b""),
        "overflow",
    ),
    "a size that does not fit the shape": (
        file_bytes({"a": entry(shape=(3,))}),
        "invalid shape, data type, or offset",
    ),
    "truncated data": (file_bytes({"a": entry()}, b"\0" * 7), "file not fully covered"),
    "trailing data": (file_bytes({"a": entry()}, b"\0" * 9), "file not fully covered"),
    "an entry without fields": (file_bytes({"a": {}}), "missing field"),
    "metadata that are no text": (file_bytes({"__metadata__": {"a": 1}}, b""), "invalid JSON in header"),
    "half a surrogate for a name": (file_bytes(b'{"\\ud800":1}'), "invalid JSON in header"),
    "forty dimensions": (
        file_bytes({"a": entry(shape=(1,) * 40 + (2,))}),
        "must have at most 8 dimensions, got 41",
    ),
    "an endless name": (file_bytes({"a" * 10_000: entry()}), "at most 512 printable characters, got 10000"),
    "a name with a line break": (
        file_bytes({"a\nb": entry()}),
        r"at most 512 printable characters, got 3: 'a\\nb'",
    ),
    "a dtype of 8 bits": (
        file_bytes({"a": entry("F8_E4M3", (8,))}),
        "tensor 'a' is stored as F8_E4M3, which is not read",
    ),
    "complex numbers": (
        file_bytes({"a": entry("C64", (1,))}),
        "tensor 'a' is stored as C64, which is not read",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_raises_one_clear_error(tmp_path, case):
    content, text = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=text) as raised:
        load_tensors(tmp_path)
    assert str(path) in str(raised.value)
    assert_reading_still_works(tmp_path)


def test_a_zero_sized_tensor_of_absurd_extents_is_an_error(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes({"a": entry(shape=(0, 2**62, 8), offsets=(0, 0))}, b""))
    with pytest.raises(ValueError, match="tensor 'a' cannot be read"):
        load_tensors(path)
    assert_reading_still_works(tmp_path)


def test_too_many_tensors_are_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes({f"{i}": entry("U8", (0,), (0, 0)) for i in range(100_001)}, b""))
    with pytest.raises(ValueError, match="must hold at most 100000 tensors, got 100001"):
        Checkpoint(path)


def test_a_file_larger_than_memory_is_a_memory_error(tmp_path):
    large = 2**30
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_bytes({"a": entry(shape=(large // 4,), offsets=(0, large))}, b""))
    os.truncate(path, path.stat().st_size + large)  # sparse: it takes no space
    save(tmp_path / "small.safetensors", {"x": np.ones(3, np.float32)})
    program = f"""
import resource
from blasformer.io import load_tensors
load_tensors({str(tmp_path / "small.safetensors")!r})
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + {large // 2}, resource.getrlimit(resource.RLIMIT_AS)[1]))
try:
    load_tensors({str(path)!r})
except MemoryError:
    print(load_tensors({str(tmp_path / "small.safetensors")!r})["x"])"""
    assert fresh_python.run(program) == "[1. 1. 1.]"


MUTATED = file_bytes(
    {
        "__metadata__": {"format": "pt"},
        "a": entry(),
        "b": entry("BF16", (3, 1), (8, 14)),
        "c": entry("I64", (), (14, 22)),
    },
    bytes(range(22)),
)


@settings(max_examples=5 * settings.default.max_examples)
@given(
    cut=st.integers(0, len(MUTATED)) | st.none(),
    changes=st.lists(st.tuples(st.integers(0, len(MUTATED) - 1), st.integers(0, 255)), max_size=4),
    digits=st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(["0", "9", "-1", "1e9", "4294967296", "[]", "\ud800"]))
    ),
    tail=st.binary(max_size=9),
)
def test_a_mutated_file_is_read_or_refused(tmp_path, cut, changes, digits, tail):
    content = bytearray(MUTATED)
    for position, value in changes:
        content[position] = value
    header = re.split(r"(\d+)", content[8:-22].decode("latin-1"))
    for number, replacement in digits:
        header[number % len(header)] = replacement
    encoded = "".join(header).encode("latin-1", "backslashreplace") if digits else bytes(content[8:-22])
    length = struct.pack("<Q", len(encoded)) if digits else bytes(content[:8])
    path = tmp_path / "mutated.safetensors"
    path.write_bytes((length + encoded + bytes(content[-22:]))[:cut] + tail)
    try:
        outcome = load_tensors(path, dtype=np.float32)
    except ValueError as error:
        outcome = str(error)
    if isinstance(outcome, dict):
        assert sum(array.size for array in outcome.values()) <= path.stat().st_size
    else:
        assert str(path) in outcome


# ------------------------------------------------------------------------------------------------------------
# Hostile index files
# ------------------------------------------------------------------------------------------------------------


def write_index(folder: Path, index) -> None:
    text = index if isinstance(index, bytes) else json.dumps(index).encode()
    (folder / "model.safetensors.index.json").write_bytes(text)


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (b"", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "must hold a JSON object, got list"),
        ({}, "must hold a JSON object 'weight_map'"),
        ({"weight_map": {}}, "must hold a JSON object 'weight_map'"),
        ({"weight_map": ["a"]}, "must hold a JSON object 'weight_map'"),
        ({"weight_map": {"a": 1}}, "the file of tensor 'a' must be a string, got 1"),
        ({"weight_map": {"a" * 600: "x"}}, "at most 512 printable characters, got 600"),
        ({"weight_map": {"a": "/etc/passwd"}}, "'/etc/passwd' must be the name of a file in the same folder"),
        ({"weight_map": {"a": "../good.safetensors"}}, "must be the name of a file in the same folder"),
        ({"weight_map": {"a": "x/../../good.safetensors"}}, "must be the name of a file in the same folder"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "is a pickled checkpoint"),
        ({"weight_map": {"a": "a\0b"}}, "cannot be opened"),
        ({"weight_map": {"a": "\ud800"}}, "cannot be opened"),
        ({"weight_map": {"a": "a" * 5000}}, "cannot be opened"),
        ({"weight_map": {"a": ""}}, "must be a regular file"),
        ({"weight_map": {"a": "loop.safetensors"}}, "cannot be opened"),
        ({"weight_map": {"a": "link.safetensors"}}, "is a link that leaves the folder"),
        ({"weight_map": {"a": "linked/good.safetensors"}}, "is a link that leaves the folder"),
        (
            {"weight_map": {"a": "good.safetensors"}},
            "holds b, which model.safetensors.index.json does not say",
        ),
        (
            {"weight_map": dict.fromkeys("abcd", "good.safetensors")},
            "lacks c, d, which model.safetensors.index.json says",
        ),
        (
            {"weight_map": {"a": "good.safetensors", "b": "good.safetensors", "c": "bad.safetensors"}},
            "header too small",
        ),
    ],
)
def test_a_hostile_index_raises_one_clear_error(tmp_path, index, text):
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    for place in (outside, folder):
        place.mkdir()
        save(place / "good.safetensors", {"a": np.ones(3, np.float32), "b": np.ones(2, np.float32)})
    (folder / "bad.safetensors").write_bytes(b"")
    (folder / "link.safetensors").symlink_to(outside / "good.safetensors")
    (folder / "linked").symlink_to(outside)
    (folder / "loop.safetensors").symlink_to(folder / "loop.safetensors")
    write_index(folder, index)
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        Checkpoint(folder)
    assert str(folder) in str(raised.value)
    assert_reading_still_works(tmp_path)


def test_a_missing_shard_is_a_file_not_found_error(tmp_path):
    write_index(tmp_path, {"weight_map": {"a": "gone.safetensors"}})
    with pytest.raises(
        FileNotFoundError, match=r"gone.safetensors does not exist, but model.safetensors.index.json"
    ):
        Checkpoint(tmp_path)


def test_an_index_beyond_all_measure_is_refused_unread(tmp_path):
    write_index(tmp_path, b"{}")
    os.truncate(tmp_path / "model.safetensors.index.json", 2**25 + 1)
    with pytest.raises(ValueError, match="must have at most 33554432 bytes, got 33554433"):
        Checkpoint(tmp_path)


def test_opening_a_bad_checkpoint_leaves_no_file_open(tmp_path):
    save(tmp_path / "a.safetensors", {"a": np.ones(3, np.float32)})
    write_index(tmp_path, {"weight_map": {"a": "a.safetensors", "b": "gone.safetensors"}})
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            Checkpoint(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"arrays": np.ones(3)}, "arrays must map names to arrays, got ndarray"),
        ({"arrays": {3: np.ones(3)}}, "arrays must have names that are strings, got 3"),
        ({"arrays": {"a": [1.0]}}, r"arrays\['a'\] must be a NumPy array of float64, .* got list"),
        ({"arrays": {"a": np.ones(3, complex)}}, r"arrays\['a'\] must be .* got complex128"),
        ({"arrays": {}, "metadata": "text"}, "metadata must map names to texts, got str"),
    ],
)
def test_what_cannot_be_saved_is_a_type_error_and_writes_nothing(tmp_path, arguments, text):
    with pytest.raises(TypeError, match=text):
        save_tensors(tmp_path / "model.safetensors", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["__metadata__", "a\nb", "\ud800", "x" * 513])
def test_a_name_that_could_not_be_read_again_is_not_written(tmp_path, name):
    with pytest.raises(ValueError, match="name"):
        save_tensors(tmp_path / "model.safetensors", {"weight": np.ones(3), name: np.ones(3)})
    assert list(tmp_path.iterdir()) == []
