"""Batches of sequences: nothing lost, nothing twice, the same again for the same seed."""

import numpy as np
import pytest
from blasformer import data, models, optim, train
from hypothesis import given
from hypothesis import strategies as st

LENGTHS = st.lists(st.integers(0, 13), min_size=1, max_size=40)


def sequences_of(lengths, features=()):
    random = np.random.default_rng(0)
    return [random.standard_normal((length, *features)) for length in lengths]


# ----------------------------------------------------------------------------------------------------------
# Padding and packing
# ----------------------------------------------------------------------------------------------------------


@given(LENGTHS, st.integers(1, 5))
def test_padding_keeps_every_sequence_and_fills_the_rest(lengths, multiple_of):
    sequences = sequences_of(lengths, (2,))
    array, found = data.pad(sequences, value=-7, multiple_of=multiple_of)
    assert array.shape[1] % multiple_of == 0
    assert array.shape[1] < max(lengths) + multiple_of
    np.testing.assert_array_equal(found, lengths)
    for row, sequence in zip(array, sequences, strict=True):
        np.testing.assert_array_equal(row[: len(sequence)], sequence)
        assert (row[len(sequence) :] == -7).all()


def test_padding_keeps_the_dtype_and_takes_lists():
    assert data.pad([np.ones(3, np.float32), np.ones(1, np.float32)])[0].dtype == np.float32
    assert data.pad([[1, 2], [], [3]], length=4)[0].tolist() == [[1, 2, 0, 0], [0] * 4, [3, 0, 0, 0]]


@pytest.mark.parametrize(
    ("sequences", "arguments", "error", "text"),
    [
        ([], {}, ValueError, "sequences must not be empty"),
        ([[1, 2, 3]], {"length": 2}, ValueError, "sequences must have at most 2 elements, got 3 at index 0"),
        (
            [[1, 2], [1.0]],
            {},
            ValueError,
            r"sequences must all be int64 \(length,\), got float64 \(1,\) at index 1",
        ),
        (
            [np.ones((2, 3)), np.ones((2, 4))],
            {},
            ValueError,
            r"must all be float64 \(length, 3\), got .* index 1",
        ),
        ([3], {}, ValueError, r"must all be int64 \(length,\), got int64 \(\) at index 0"),
        ([[1]], {"multiple_of": 0}, ValueError, "multiple_of must be >= 1, got 0"),
        ([[1]], {"length": 2.0}, TypeError, "length must be an integer, got float"),
        (3, {}, TypeError, "sequences must be arrays or lists, got int"),
        ("abc", {}, TypeError, "sequences must be arrays or lists, got str"),
        (["ab", "c"], {}, TypeError, "sequences must be of numbers, got text at index 0"),
    ],
)
def test_sequences_that_do_not_fit_are_refused(sequences, arguments, error, text):
    with pytest.raises(error, match=text):
        data.pad(sequences, **arguments)


@pytest.mark.parametrize(
    ("dtype", "value", "error"),
    [
        (np.int64, 0.5, ValueError),
        (np.int64, np.nan, ValueError),
        (np.uint8, -1, ValueError),
        (np.int8, 200, ValueError),
        (bool, 2, ValueError),
        (np.int64, 2**70, ValueError),
        (np.float32, "0", TypeError),
        (np.float32, [1, 2], TypeError),
        (np.int64, 3.0, None),
        (np.float32, 0.1, None),
        (np.float32, np.nan, None),
        (bool, True, None),
    ],
)
def test_what_stands_behind_the_ends_is_what_the_sequences_dtype_holds(dtype, value, error):
    sequences = [np.ones(2, dtype), np.ones(1, dtype)]
    calls = {"pad": lambda: data.pad(sequences, value=value)[0][1, 1]}
    calls["pack"] = lambda: data.pack(sequences, 5, value=value).array[0, 4]
    for call in calls.values():
        if error is None:
            np.testing.assert_array_equal(call(), np.array(value, dtype))
        else:
            with pytest.raises(error, match="value must be a number"):
                call()


@given(LENGTHS, st.integers(13, 20))
def test_packing_puts_every_sequence_somewhere_once(lengths, length):
    sequences = sequences_of(lengths, (2,))
    packed = data.pack(sequences, length, value=-7)
    assert packed.array.shape[1:] == (length, 2)
    taken = np.zeros(packed.array.shape[:2], int)
    for index, sequence in enumerate(sequences):
        row, where = packed.rows[index], slice(packed.starts[index], packed.starts[index] + len(sequence))
        np.testing.assert_array_equal(packed.array[row, where], sequence)
        np.testing.assert_array_equal(packed.positions[row, where], np.arange(len(sequence)))
        taken[row, where] += 1
    beyond = np.arange(length) >= packed.lengths[:, None]
    np.testing.assert_array_equal(taken, ~beyond)
    assert (packed.array[beyond] == -7).all()
    assert (packed.segments[beyond] == -1).all()
    for part, sequence in zip(packed.unpack(packed.array), sequences, strict=True):
        np.testing.assert_array_equal(part, sequence)
    for index, (row, start) in enumerate(zip(packed.rows, packed.starts, strict=True)):
        same_row = (packed.rows == row) & (np.array(lengths) > 0) & (np.arange(len(lengths)) != index)
        if lengths[index]:
            segment = packed.segments[row, start]
            assert all(
                packed.segments[row, packed.starts[other]] != segment for other in np.flatnonzero(same_row)
            )


def test_packing_wastes_little():
    lengths = np.random.default_rng(0).integers(1, 64, 2000)
    packed = data.pack([np.zeros(n) for n in lengths], 64)
    assert lengths.sum() / packed.array.size > 0.98


def test_a_sequence_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="sequences must have at most 3 elements, got 4 at index 1"):
        data.pack([[1], [1, 2, 3, 4]], 3)


def test_packed_sequences_train_as_they_would_by_themselves():
    model = models.LanguageModel(
        11, max_length=16, d_model=16, nhead=2, num_layers=1, dropout=0.0, dtype=np.float64, rng=0
    )
    random = np.random.default_rng(0)
    sequences = [random.integers(0, 11, n) for n in (5, 9, 2, 12, 1, 7)]
    packed = data.pack(sequences, 16)
    ids, lengths = data.pad(sequences)
    loss, grads = model.loss_and_gradients(packed.array, lengths=packed.lengths, segments=packed.segments)
    expected, expected_grads = model.loss_and_gradients(ids, lengths=lengths)
    assert loss == pytest.approx(expected, rel=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, expected_grads[name], atol=1e-13)


# ----------------------------------------------------------------------------------------------------------
# Batches
# ----------------------------------------------------------------------------------------------------------


def keep(*parts):
    return parts


@given(LENGTHS, st.integers(1, 7) | st.none(), st.integers(13, 40) | st.none(), st.integers(0, 3) | st.none())
def test_an_epoch_has_every_example_once_in_batches_within_the_limits(lengths, batch_size, max_tokens, rng):
    if batch_size is None and max_tokens is None:
        batch_size = 3
    examples, numbers = sequences_of(lengths), list(range(len(lengths)))
    limits = {"batch_size": batch_size, "max_tokens": max_tokens}
    batches = data.Batches(examples, numbers, **limits, lengths=lengths, collate=keep, rng=rng)
    for number in (0, 1, 5):
        epoch = list(batches.epoch(number))
        assert len(epoch) == len(batches)
        seen = [i for _, part in epoch for i in part]
        assert sorted(seen) == numbers
        if rng is None:
            assert seen == numbers
        for sequences, part in epoch:
            assert all(sequence is examples[i] for sequence, i in zip(sequences, part, strict=True))
            assert batch_size is None or len(part) <= batch_size
            assert max_tokens is None or len(part) * max(lengths[i] for i in part) <= max_tokens


def test_epochs_differ_and_are_the_same_again_from_any_batch_on():
    x, y = np.arange(50), np.arange(50) * 2
    one = data.Batches(x, y, batch_size=7, rng=3)
    two = data.Batches(x, y, batch_size=7, rng=3)
    other = data.Batches(x, y, batch_size=7, rng=4)
    epochs = [np.concatenate([a for a, _ in one.epoch(n)]) for n in (0, 1)]
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], np.concatenate([a for a, _ in other.epoch(0)]))
    np.testing.assert_array_equal(np.concatenate([a for a, _ in one]), epochs[0])
    for first in range(len(one) + 1):
        rest = list(two.epoch(1, first))
        assert len(rest) == len(one) - first
        for (a, b), (c, d) in zip(rest, list(one.epoch(1))[first:], strict=True):
            np.testing.assert_array_equal(a, c)
            np.testing.assert_array_equal(b, d)
            np.testing.assert_array_equal(b, 2 * a)


def test_sequences_of_similar_length_come_together():
    lengths = np.random.default_rng(0).integers(1, 200, 1000)
    sequences = [np.zeros(n, np.int8) for n in lengths]
    batches = data.Batches(sequences, batch_size=16, collate=lambda part: data.pad(part)[0].size, rng=0)
    assert lengths.sum() / sum(batches) > 0.95
    sizes = list(batches.epoch(1))
    assert sizes != sorted(sizes)


@pytest.mark.parametrize(
    ("columns", "arguments", "error", "text"),
    [
        ((), {"batch_size": 2}, ValueError, "columns must be given"),
        (([1, 2],), {}, ValueError, "batch_size or max_tokens must be given"),
        (([1, 2], [1]), {"batch_size": 2}, ValueError, r"one number of examples, at least 1, got \[2, 1\]"),
        (([],), {"batch_size": 2}, ValueError, r"one number of examples, at least 1, got \[0\]"),
        ((3,), {"batch_size": 2}, TypeError, "columns must be arrays or sequences, got int at 0"),
        (([1], np.array(3)), {"batch_size": 2}, TypeError, "columns must be .* got ndarray at 1"),
        (([1],), {"batch_size": 2, "collate": 3}, TypeError, "collate must be a function, got int"),
        (([1],), {"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        (([[1], [1, 2]],), {"batch_size": 2}, ValueError, "collate must be given for sequences of different"),
        (
            ([1, 2],),
            {"batch_size": 2, "lengths": [1]},
            ValueError,
            r"lengths must be 2 integers, got int64 \(1,\)",
        ),
        (
            ([[1], [1, 2, 3]],),
            {"max_tokens": 2, "collate": keep},
            ValueError,
            "max_tokens must be at least the length of every example, got 2, and 3 at index 1",
        ),
    ],
)
def test_batches_that_make_no_sense_are_refused(columns, arguments, error, text):
    with pytest.raises(error, match=text):
        data.Batches(*columns, **arguments)


def test_training_on_batches_resumes_within_an_epoch(tmp_path):
    def collate(ids):
        ids, lengths = data.pad(ids)
        return {"ids": ids, "lengths": lengths}

    def make():
        return models.LanguageModel(11, max_length=16, d_model=16, nhead=2, num_layers=1, rng=0)

    random = np.random.default_rng(0)
    sequences = [random.integers(0, 11, n) for n in random.integers(2, 16, 40)]
    batches = data.Batches(sequences, max_tokens=60, collate=collate, rng=1)
    whole, stopped, resumed = make(), make(), make()
    expected = train.fit(whole, batches, optimizer=optim.AdamW(whole), epochs=2, rng=0)
    stop = len(batches) + 2
    train.fit(
        stopped, batches, optimizer=optim.AdamW(stopped), epochs=2, max_steps=stop, rng=0, checkpoint=tmp_path
    )
    history = train.fit(
        resumed, batches, optimizer=optim.AdamW(resumed), epochs=2, rng=0, checkpoint=tmp_path
    )
    np.testing.assert_array_equal(history.loss, expected.loss)
    for name, array in resumed.parameters().items():
        np.testing.assert_array_equal(array, whole.parameters()[name])


# ----------------------------------------------------------------------------------------------------------
# Bytes
# ----------------------------------------------------------------------------------------------------------


@given(st.text(), st.booleans(), st.booleans())
def test_every_text_comes_back(text, bos, eos):
    tokenizer = data.ByteTokenizer()
    ids = tokenizer.encode(text, bos=bos, eos=eos)
    assert ids.dtype == np.int64
    assert len(ids) == len(text.encode()) + bos + eos
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(np.append(ids, [tokenizer.pad_id] * 3)) == text
    assert not bos or ids[0] == tokenizer.bos_id
    assert not eos or ids[-1] == tokenizer.eos_id


def test_bytes_that_are_no_text_are_marked():
    assert data.ByteTokenizer().decode([65, 195, 66]) == "A\ufffdB"
    assert data.ByteTokenizer().decode([]) == ""


def test_ids_that_are_no_bytes_are_refused():
    tokenizer = data.ByteTokenizer()
    with pytest.raises(IndexError, match="ids must lie between 0 and 258, got 259 at index 1"):
        tokenizer.decode([0, 259])
    with pytest.raises(IndexError, match="got -1 at index 0"):
        tokenizer.decode([-1])
    with pytest.raises(TypeError, match="ids must be integers, got float64"):
        tokenizer.decode([1.0])
    with pytest.raises(ValueError, match=r"ids must have the shape \(length,\), got \(1, 1\)"):
        tokenizer.decode([[1]])
    with pytest.raises(TypeError, match="text must be a string, got bytes"):
        tokenizer.encode(b"x")
