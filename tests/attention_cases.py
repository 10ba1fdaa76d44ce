"""What the tests of attention run: sizes around the edges of tiles, every kind of mask, every layout."""

from typing import NamedTuple

import numpy as np

# Query tiles are two vectors wide (8 to 32 rows), key tiles 96 long: lengths on both sides of those edges.
LENGTHS = [1, 5, 31, 33, 95, 96, 97, 130, 197, 257]
HEAD_DIMS = [1, 3, 8, 40, 59, 64, 80, 111, 128, 256]


# So few queries of two heads that share their keys are attended to by a kernel of their own, and so many keys
# in several parts.
FEW = 2
MANY = 4200


class Sizes(NamedTuple):
    """The extents of one call."""

    query_length: int = 33
    key_length: int = 97
    dim: int = 8
    value_dim: int = 5
    heads: int = 4
    kv_heads: int = 2
    batch: tuple = (2,)

    @property
    def query(self):
        return (*self.batch, self.heads, self.query_length, self.dim)

    @property
    def key(self):
        return (*self.batch, self.kv_heads, self.key_length, self.dim)

    @property
    def value(self):
        return (*self.batch, self.kv_heads, self.key_length, self.value_dim)

    @property
    def output(self):
        return (*self.batch, self.heads, self.query_length, self.value_dim)

    @property
    def scores(self):
        return (*self.batch, self.heads, self.query_length, self.key_length)


# Both sides of a tile, few queries that share their keys, many such keys, and several leading axes.
SIZES = [
    Sizes(),
    Sizes(130, 33, 40, 59, 3, 1),
    Sizes(5, 257, 64, 64, 2, 2, (1, 2)),
    Sizes(1, 257, 64, 64, 8, 2),
    Sizes(3, 97, 17, 40, 6, 1, (3,)),
    Sizes(1, MANY, 17, 11, 4, 2, (2,)),
]


def normal(random, shape, dtype):
    return random.standard_normal(shape).astype(dtype)


def operands(random, sizes, dtype):
    """query, key, value."""
    return tuple(normal(random, shape, dtype) for shape in (sizes.query, sizes.key, sizes.value))


# ----------------------------------------------------------------------------------------------------------
# Arguments: each takes (random, sizes, dtype) and returns the keywords of a call
# ----------------------------------------------------------------------------------------------------------


def _mask(*axes):
    """A random mask over those axes of (b)atch, (h)eads, query i and key j, with size 1 along an axis "1"."""
    return lambda random, sizes, dtype: {"mask": random.random(_broadcast_shape(sizes, axes)) < 0.7}


def _bias(*axes):
    return lambda random, sizes, dtype: {"bias": normal(random, _broadcast_shape(sizes, axes), dtype)}


def _broadcast_shape(sizes, axes):
    extents = {"b": sizes.batch, "h": (sizes.heads,), "i": (sizes.query_length,), "j": (sizes.key_length,)}
    return sum((extents.get(axis, (1,)) for axis in axes), ())


def _mask_with_empty_rows(random, sizes, dtype):
    mask = random.random(sizes.scores) < 0.6
    mask[random.random(sizes.scores[:-1]) < 0.3] = False
    return {"mask": mask}


def _minus_infinity_in_bias(random, sizes, dtype):
    bias = normal(random, sizes.scores, dtype)
    bias[random.random(sizes.scores) < 0.4] = -np.inf
    bias[..., :1, :] = -np.inf
    return {"bias": bias}


def _offset(random, sizes, dtype):
    return {"query_offset": int(random.integers(-3, sizes.key_length + 2))}


def _offsets(random, sizes, dtype):
    return {"query_offset": random.integers(-sizes.query_length, sizes.key_length + 3, sizes.batch)}


def _lengths(name, random, sizes):
    longest = sizes.query_length if name == "query_lengths" else sizes.key_length
    return {name: random.integers(0, longest + 1, sizes.batch)}


def _segments(random, sizes, dtype):
    """Documents packed one after the other, of random lengths, plus one that no key belongs to."""
    ids = {
        "query_segments": np.sort(random.integers(0, 4, (*sizes.batch, sizes.query_length)), axis=-1),
        "key_segments": np.sort(random.integers(0, 3, (*sizes.batch, sizes.key_length)), axis=-1),
    }
    return {name: array.astype(np.int32) for name, array in ids.items()}


def _unsorted_segments(random, sizes, dtype):
    return {
        "query_segments": random.integers(-1, 2, (*sizes.batch, sizes.query_length)),
        "key_segments": random.integers(-1, 2, (*sizes.batch, sizes.key_length)),
    }


def _alibi(random, sizes, dtype):
    slopes = (2.0 ** -np.arange(1, sizes.heads + 1)).astype(dtype)
    return {"alibi_slopes": slopes, **_offset(random, sizes, dtype)}


def _alibi_per_sequence(random, sizes, dtype):
    slopes = random.random((*sizes.batch, sizes.heads)).astype(dtype)
    return {"alibi_slopes": slopes, "causal": "lower_right"}


def _together(*kinds):
    """Several kinds at once; of what two of them give, the later one's counts."""
    return lambda random, sizes, dtype: {
        name: value for kind in kinds for name, value in ARGUMENTS[kind](random, sizes, dtype).items()
    }


ARGUMENTS = {
    "none": lambda random, sizes, dtype: {},
    "mask ij": _mask("i", "j"),
    "mask hij": _mask("h", "i", "j"),
    "mask bhij": _mask("b", "h", "i", "j"),
    "mask b11j": _mask("b", "1", "1", "j"),
    "mask b1i1": _mask("b", "1", "i", "1"),
    "mask 1h1j": _mask("1", "h", "1", "j"),
    "mask j": _mask("j"),
    "mask with empty rows": _mask_with_empty_rows,
    "bias ij": _bias("i", "j"),
    "bias hij": _bias("h", "i", "j"),
    "bias bhij": _bias("b", "h", "i", "j"),
    "bias b11j": _bias("b", "1", "1", "j"),
    "bias 1hi1": _bias("1", "h", "i", "1"),
    "bias j": _bias("j"),
    "bias of -inf": _minus_infinity_in_bias,
    "causal upper left": lambda random, sizes, dtype: {"causal": "upper_left"},
    "causal lower right": lambda random, sizes, dtype: {"causal": "lower_right"},
    "causal at offset": lambda random, sizes, dtype: {"causal": True, **_offset(random, sizes, dtype)},
    "causal at offsets": lambda random, sizes, dtype: {"causal": True, **_offsets(random, sizes, dtype)},
    "window": lambda random, sizes, dtype: {"window": (7, 2), **_offset(random, sizes, dtype)},
    "window at offsets": lambda random, sizes, dtype: {"window": (3, 40), **_offsets(random, sizes, dtype)},
    "window to the left": lambda random, sizes, dtype: {"window": (11, None), "causal": "upper_left"},
    "window to the right": lambda random, sizes, dtype: {"window": (None, 0), "query_offset": 2},
    "window of one": lambda random, sizes, dtype: {"window": (0, 0), "causal": "lower_right"},
    "query lengths": lambda random, sizes, dtype: _lengths("query_lengths", random, sizes),
    "key lengths": lambda random, sizes, dtype: _lengths("key_lengths", random, sizes),
    "segments": _segments,
    "unsorted segments": _unsorted_segments,
    "alibi": _alibi,
    "alibi per sequence": _alibi_per_sequence,
    "sinks": lambda random, sizes, dtype: {"sinks": 2 * normal(random, (sizes.heads,), dtype)},
    "softcap": lambda random, sizes, dtype: {"softcap": 1.5},
    "scale": lambda random, sizes, dtype: {"scale": -0.7},
    "scale zero": lambda random, sizes, dtype: {"scale": 0.0},
    "dropout": lambda random, sizes, dtype: {"dropout_p": 0.3, "rng": 11},
}
ARGUMENTS |= {
    "causal, lengths": _together("causal lower right", "query lengths", "key lengths"),
    "causal, mask": _together("causal upper left", "mask bhij"),
    "window, segments, lengths": _together("window", "segments", "key lengths"),
    "mask, bias, dropout": _together("mask bhij", "bias bhij", "dropout"),
    "sinks, empty rows": _together("sinks", "mask with empty rows"),
    "softcap, bias, alibi": _together("softcap", "bias hij", "alibi"),
    "everything": _together(
        "mask b11j", "bias of -inf", "query lengths", "key lengths", "unsorted segments", "alibi", "sinks",
        "softcap", "scale", "dropout", "window at offsets", "causal at offsets",
    ),
}  # fmt: skip


# ----------------------------------------------------------------------------------------------------------
# Layouts: each takes (..., heads, length, dim) and returns the same values in other memory
# ----------------------------------------------------------------------------------------------------------


def _split_heads(x):
    *leading, heads, length, dim = x.shape
    packed = np.ascontiguousarray(np.swapaxes(x, -2, -3)).reshape(*leading, length, heads * dim)
    return np.swapaxes(packed.reshape(*leading, length, heads, dim), -2, -3)


def _chunk_of_packed(x):
    """The middle third of what one linear layer gives for query, key and value together."""
    *leading, heads, length, dim = x.shape
    packed = np.full((*leading, length, 3 * heads * dim), np.nan, x.dtype)
    chunk = packed[..., heads * dim : 2 * heads * dim].reshape(*leading, length, heads, dim)
    assert x.size == 0 or np.shares_memory(packed, chunk)
    chunk[...] = np.swapaxes(x, -2, -3)
    return np.swapaxes(chunk, -2, -3)


def _reversed(x):
    return np.ascontiguousarray(x[..., ::-1, ::-1])[..., ::-1, ::-1]


def _every_second(axis):
    def spread(x):
        shape = list(x.shape)
        shape[axis] *= 2
        wide = np.full(shape, np.nan, x.dtype)
        chosen = np.moveaxis(np.moveaxis(wide, axis, 0)[::2], 0, axis)
        chosen[...] = x
        return chosen

    return spread


def _transposed(x):
    return np.swapaxes(np.ascontiguousarray(np.swapaxes(x, -1, -2)), -1, -2)


def _misaligned(x):
    return np.frombuffer(b"\0" + x.tobytes(), dtype=x.dtype, offset=1).reshape(x.shape)


def _field_of_records(x):
    """Rows of records of 1 + itemsize bytes: aligned nowhere, with strides that are no whole elements."""
    records = np.zeros(x.shape, np.dtype([("mark", np.uint8), ("number", x.dtype)]))
    records["number"] = x
    return records["number"]


def _read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "contiguous": np.ascontiguousarray,
    "split heads": _split_heads,
    "chunk of packed": _chunk_of_packed,
    "Fortran": np.asfortranarray,
    "transposed": _transposed,
    "reversed": _reversed,
    "every second feature": _every_second(-1),
    "every second row": _every_second(-2),
    "misaligned": _misaligned,
    "field of records": _field_of_records,
    "read-only": _read_only,
}
