"""Batches of sequences of different lengths: padding, bucketing, packing; and bytes as tokens.

Real tokenisation is left to the package `tokenizers`. Batches are anything that a loop can go through: none
of this is needed, only convenient.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._arguments import checked_flag, checked_integer, checked_integers, checked_name, refuse_masked
from ._attention import Array
from ._random import Rng, seed_or_none

__all__ = ["Batches", "ByteTokenizer", "Packed", "pack", "pad"]


def _alike(sequences: Sequence[ArrayLike]) -> list[Array]:
    """The sequences as arrays (length, ...) of one dtype that differ in their lengths alone."""
    is_scalar = isinstance(sequences, np.ndarray) and sequences.ndim == 0
    if isinstance(sequences, (str, bytes)) or not isinstance(sequences, Iterable) or is_scalar:
        raise TypeError(f"sequences must be arrays or lists, got {type(sequences).__name__}")
    sequences = list(sequences)
    for sequence in sequences:
        refuse_masked("sequences", sequence)
    arrays = [np.asarray(sequence) for sequence in sequences]
    if not arrays:
        raise ValueError("sequences must not be empty")
    filled = [array for array in arrays if array.size] or arrays
    dtype, features = filled[0].dtype, filled[0].shape[1:]
    for index, array in enumerate(arrays):
        if array.dtype.kind in "US":
            raise TypeError(f"sequences must be of numbers, got text at index {index}")
        if array.ndim == 1 and array.size == 0:  # an empty list has no dtype of its own
            arrays[index] = array = np.empty((0, *features), dtype)
        if array.ndim == 0 or array.dtype != dtype or array.shape[1:] != features:
            wanted = f"(length, {', '.join(map(str, features))})" if features else "(length,)"
            raise ValueError(
                f"sequences must all be {dtype} {wanted}, got {array.dtype} {array.shape} at index {index}"
            )
    return arrays


def _filler(value: float, dtype: np.dtype[Any]) -> float:
    """What stands behind the ends, which the sequences' dtype must be able to hold."""
    if not isinstance(value, (bool, int, float, np.bool_, np.integer, np.floating)):
        raise TypeError(f"value must be a number, got {type(value).__name__}")
    if dtype.kind in "biu":
        least, most = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if not least <= value <= most or value != int(value):
            raise ValueError(
                f"value must be a number that {dtype} can hold, as the sequences are, got {value}"
            )
    return value


def pad(
    sequences: Sequence[ArrayLike], *, value: float = 0, length: int | None = None, multiple_of: int = 1
) -> tuple[Array, Array]:
    """Sequences of different lengths as one array, and their lengths.

    sequences: arrays or lists (length, ...) that differ in their lengths alone
    value: what stands behind the end of a sequence
    length: of the array; by default that of the longest sequence, rounded up to a multiple of `multiple_of`

    Returns (array (n, length, ...), lengths (n,)). Raises ValueError for sequences that do not fit.

    >>> array, lengths = pad([[1, 2, 3], [4], [5, 6]])
    >>> array, lengths
    (array([[1, 2, 3],
           [4, 0, 0],
           [5, 6, 0]]), array([3, 1, 2]))
    """
    arrays = _alike(sequences)
    lengths = np.array([len(array) for array in arrays])
    longest = int(lengths.max())
    step = checked_integer("multiple_of", multiple_of, least=1)
    size = -(-longest // step) * step if length is None else checked_integer("length", length, least=1)
    if longest > size:
        raise ValueError(
            f"sequences must have at most {size} elements, got {longest} at index {int(lengths.argmax())}"
        )
    dtype = arrays[0].dtype
    result = np.full((len(arrays), size, *arrays[0].shape[1:]), _filler(value, dtype), dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result, lengths


class Packed(NamedTuple):
    """Several sequences in each row, which do not see each other if attention is given the segments.

    array: (rows, length, ...), the sequences one behind the other, then padding
    lengths: (rows,), where the padding begins
    segments: (rows, length), the number of the sequence in its row, from 0; -1 in the padding
    positions: (rows, length), from 0 in each sequence; 0 in the padding
    rows, starts, sizes: (sequences,), where each sequence was put
    """

    array: Array
    lengths: Array
    segments: Array
    positions: Array
    rows: Array
    starts: Array
    sizes: Array

    def unpack(self, array: Array) -> list[Array]:
        """The parts of an array (rows, length, ...) that belong to each sequence, in its old order: views.

        >>> packed = pack([[1, 2], [3, 4, 5], [6]], length=4)
        >>> [part.tolist() for part in packed.unpack(packed.array)]
        [[1, 2], [3, 4, 5], [6]]
        """
        places = zip(self.rows, self.starts, self.sizes, strict=True)
        return [array[row, start : start + size] for row, start, size in places]


def pack(sequences: Sequence[ArrayLike], length: int, *, value: float = 0) -> Packed:
    """Put several sequences into each row of that length, with little padding (best fit, longest first).

    sequences: arrays or lists (at most `length`, ...) that differ in their lengths alone
    value: what stands in the padding

    The result trains as the sequences by themselves would:
    `model.loss_and_gradients(packed.array, lengths=packed.lengths, segments=packed.segments)`, or for layers
    `query_segments=packed.segments`. Raises ValueError for sequences that do not fit.

    >>> packed = pack([[1, 2], [3, 4, 5], [6]], length=4)
    >>> packed.array, packed.segments.tolist(), packed.lengths
    (array([[3, 4, 5, 6],
           [1, 2, 0, 0]]), [[0, 0, 0, 1], [0, 0, -1, -1]], array([4, 2]))
    """
    arrays = _alike(sequences)
    dtype = arrays[0].dtype
    length = checked_integer("length", length, least=1)
    sizes = np.array([len(array) for array in arrays])
    if sizes.max() > length:
        raise ValueError(
            f"sequences must have at most {length} elements, got {sizes.max()} at index {int(sizes.argmax())}"
        )
    rows, starts = np.empty_like(sizes), np.empty_like(sizes)
    lengths: list[int] = []
    counts: list[int] = []  # sequences in each row
    room: list[tuple[int, int]] = []  # (what is left, row), sorted
    numbers = np.empty_like(sizes)
    for index in np.argsort(-sizes, kind="stable"):
        size = int(sizes[index])
        place = bisect_left(room, (size, 0))
        if place == len(room):
            room.append((length, len(lengths)))
            lengths.append(0)
            counts.append(0)
        left, row = room.pop(place)
        rows[index], starts[index], numbers[index] = row, lengths[row], counts[row]
        lengths[row] += size
        counts[row] += 1
        insort(room, (left - size, row))
    array = np.full((len(lengths), length, *arrays[0].shape[1:]), _filler(value, dtype), dtype)
    segments = np.full((len(lengths), length), -1)
    positions = np.zeros((len(lengths), length), np.int64)
    for sequence, row, start, number in zip(arrays, rows, starts, numbers, strict=True):
        where = slice(start, start + len(sequence))
        array[row, where], segments[row, where], positions[row, where] = (
            sequence,
            number,
            range(len(sequence)),
        )
    return Packed(array, np.array(lengths), segments, positions, rows, starts, sizes)


class Batches:
    """Batches of examples, in a new order in every epoch, sequences of similar length together.

    Parameters
    ----------
    columns : what an example consists of: arrays or sequences with one entry for each example
    batch_size : examples in a batch; the last one may have fewer
    max_tokens : examples in a batch times the length of the longest, at most; alone or with batch_size
    lengths : (examples,) the length of each; by default that of its longest sequence, if a column holds
        sequences of different lengths
    collate : function that makes a batch of a part of each column; by default it is a tuple of arrays, one
        for each column. Sequences of different lengths need one: see `pad` and `pack`.
    rng : Generator or int that the order is drawn from; without it, it is that of the examples

    The order of epoch n depends on rng and n alone: training that was stopped in an epoch goes on in the same
    one. Examples are sorted by length, those of equal length at random, and cut into batches, which then come
    at random: every epoch has the same number of batches.

    Raises
    ------
    ValueError for columns of different sizes, and for an example longer than max_tokens.

    Examples
    --------
    >>> def collate(ids, labels):
    ...     ids, lengths = pad(ids)
    ...     return {"ids": ids, "lengths": lengths, "targets": np.array(labels)}
    >>> sentences, labels = [[1, 2, 3], [4], [5, 6], [7]], [0, 1, 1, 0]
    >>> batches = Batches(sentences, labels, batch_size=2, collate=collate, rng=0)
    >>> len(batches), sorted(batch["ids"].shape for batch in batches.epoch(0))
    (2, [(2, 1), (2, 3)])
    """

    def __init__(
        self,
        *columns: Any,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        lengths: ArrayLike | None = None,
        collate: Callable[..., Any] | None = None,
        rng: Rng | None = None,
    ) -> None:
        if not columns:
            raise ValueError("columns must be given, got none")
        if batch_size is None and max_tokens is None:
            raise ValueError("batch_size or max_tokens must be given, got neither")
        for index, column in enumerate(columns):
            refuse_masked("columns", column)
            is_sequence = hasattr(column, "__len__") and hasattr(column, "__getitem__")
            if not is_sequence or (isinstance(column, np.ndarray) and column.ndim == 0):
                raise TypeError(
                    f"columns must be arrays or sequences, got {type(column).__name__} at {index}"
                )
        sizes = [len(column) for column in columns]
        if len(set(sizes)) != 1 or sizes[0] == 0:
            raise ValueError(f"columns must have one number of examples, at least 1, got {sizes}")
        if collate is not None and not callable(collate):
            raise TypeError(f"collate must be a function, got {type(collate).__name__}")
        self._columns, self._collate = columns, collate
        self._seed = seed_or_none(rng)
        given = _lengths_of(columns) if lengths is None else checked_integers("lengths", lengths)
        if given is not None and given.shape != (sizes[0],):
            raise ValueError(f"lengths must be {sizes[0]} integers, got {given.dtype} {given.shape}")
        if lengths is None and given is not None and collate is None:
            raise ValueError("collate must be given for sequences of different lengths, got None")
        if given is None and max_tokens is not None:
            given = np.array([max(map(_length, example)) for example in zip(*columns, strict=True)])
        self._lengths = given
        # With rng the lengths come sorted, in every epoch alike, so that the cuts are always the same.
        self._cuts = self._find_cuts(
            None if batch_size is None else checked_integer("batch_size", batch_size, least=1),
            None if max_tokens is None else checked_integer("max_tokens", max_tokens, least=1),
        )

    def _find_cuts(self, batch_size: int | None, max_tokens: int | None) -> list[int]:
        """Where batches begin in the order of an epoch, and the end."""
        count = len(self._columns[0])
        if max_tokens is None:
            return [*range(0, count, batch_size or count), count]
        assert self._lengths is not None
        if self._lengths.max() > max_tokens:
            index = int(self._lengths.argmax())
            raise ValueError(
                f"max_tokens must be at least the length of every example, got {max_tokens}, and "
                f"{self._lengths[index]} at index {index}"
            )
        cuts, longest = [0], 0
        for i, length in enumerate(self._lengths if self._seed is None else np.sort(self._lengths)):
            longest = max(longest, int(length))
            size = i - cuts[-1]
            if (size + 1) * longest > max_tokens or size == batch_size:
                cuts.append(i)
                longest = int(length)
        return [*cuts, count]

    def __len__(self) -> int:
        return len(self._cuts) - 1

    def __repr__(self) -> str:
        order = "in their order" if self._seed is None else "in a new order in every epoch"
        return f"Batches({len(self)} of {len(self._columns[0])} examples, {order})"

    def __iter__(self) -> Iterator[Any]:
        """The batches of epoch 0."""
        return self.epoch(0)

    def epoch(self, number: int, first: int = 0) -> Iterator[Any]:
        """The batches of an epoch, from the one with the index `first` on."""
        order, turns = np.arange(len(self._columns[0])), np.arange(len(self))
        if self._seed is not None:
            random = np.random.default_rng([self._seed, number])
            random.shuffle(order)
            if self._lengths is not None:
                order = order[np.argsort(self._lengths[order], kind="stable")]
                random.shuffle(turns)
        for turn in turns[first:]:
            chosen = order[self._cuts[turn] : self._cuts[turn + 1]]
            parts = [_taken(column, chosen) for column in self._columns]
            yield tuple(map(np.asarray, parts)) if self._collate is None else self._collate(*parts)


def _length(entry: Any) -> int:
    return len(entry) if hasattr(entry, "__len__") and not isinstance(entry, str) and np.ndim(entry) else 1


def _lengths_of(columns: Sequence[Any]) -> Array | None:
    """The length of the longest sequence of each example, if those of a column have different lengths."""
    found = []
    for column in columns:
        if not isinstance(column, np.ndarray) or column.dtype == object:
            lengths = [_length(entry) for entry in column]
            if len(set(lengths)) > 1:
                found.append(lengths)
    return np.max(found, axis=0) if found else None


def _taken(column: Any, chosen: Array) -> Any:
    return column[chosen] if isinstance(column, np.ndarray) else [column[i] for i in chosen]


class ByteTokenizer:
    """Texts as the bytes of their UTF-8 encoding: 256 ids, and three more that stand for themselves.

    Any text can be encoded, and nothing needs to be trained: for experiments. Sequences are longer than those
    of a real tokenizer.

    Examples
    --------
    >>> tokenizer = ByteTokenizer()
    >>> ids = tokenizer.encode("Käse", eos=True)
    >>> ids, tokenizer.decode(ids)
    (array([ 75, 195, 164, 115, 101, 258]), 'Käse')
    """

    pad_id, bos_id, eos_id = 256, 257, 258
    vocab_size = 259

    def __repr__(self) -> str:
        return f"ByteTokenizer(vocab_size={self.vocab_size})"

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> Array:
        """(length,) int64: the bytes, between bos_id and eos_id if these are asked for."""
        content = np.frombuffer(checked_name("text", text).encode(), np.uint8)
        first = [self.bos_id] if checked_flag("bos", bos) else []
        last = [self.eos_id] if checked_flag("eos", eos) else []
        return np.concatenate([first, content, last]).astype(np.int64)

    def decode(self, ids: ArrayLike) -> str:
        """The text of (length,) ids, without pad_id, bos_id and eos_id; what is no UTF-8 becomes U+FFFD.

        Raises IndexError for ids outside [0, vocab_size), TypeError for what are no integers.
        """
        array = checked_integers("ids", ids)
        if array.ndim != 1:
            raise ValueError(f"ids must have the shape (length,), got {array.shape}")
        outside = (array < 0) | (array >= self.vocab_size)
        if outside.any():
            index = int(outside.argmax())
            raise IndexError(
                f"ids must lie between 0 and {self.vocab_size - 1}, got {array[index]} at index {index}"
            )
        return array[array < 256].astype(np.uint8).tobytes().decode(errors="replace")
