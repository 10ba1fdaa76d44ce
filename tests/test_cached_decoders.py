"""Decoders whose targets grow step by step: equal to the whole, at the cost of the new positions alone."""

import copy
import pickle
import threading

import numpy as np
import pytest
from blasformer import nn
from layer_cases import DECODING, lively, normal, same_bits


def close(a, b):
    return np.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("steps", [[1] * 7, [4, 1, 2], [7]])
@pytest.mark.parametrize("name", DECODING)
def test_step_by_step_is_the_whole(name, steps):
    case = DECODING[name]
    layer = lively(case)
    target, memory = (normal(shape, seed=i) for i, shape in enumerate(case.shapes))
    target = target[:, :7]
    whole = layer(target, memory, causal=True, memory_key_lengths=[memory.shape[1], 3])
    cache = layer.new_cache(memory, 7, memory_key_lengths=[memory.shape[1], 3])
    ends = np.cumsum(steps)
    parts = [cache.add(target[:, end - step : end]) for step, end in zip(steps, ends, strict=True)]
    assert close(np.concatenate(parts, axis=1), whole)
    assert np.array_equal(cache.lengths, [7, 7])


def test_step_by_step_in_float64_is_the_whole_to_its_precision():
    layer = lively(DECODING["pre-norm decoder"], np.float64)
    target, memory = normal((2, 5, 24), np.float64), normal((2, 6, 24), np.float64, 1)
    cache = layer.new_cache(memory, 5)
    steps = np.concatenate([cache.add(target[:, i : i + 1]) for i in range(5)], axis=1)
    assert np.abs(steps - layer(target, memory, causal=True)).max() < 1e-13


def test_a_memory_is_read_once_and_a_step_reads_its_positions_alone():
    layer = lively(DECODING["post-norm decoder"])
    target, memory = normal((2, 4, 24)), normal((2, 9, 24), seed=1)
    whole = layer(target, memory, causal=True)
    cache = layer.new_cache(memory, 4)
    memory[...] = np.nan
    for i in range(4):
        assert close(cache.add(target[:, i : i + 1])[:, 0], whole[:, i])
        target[:, i] = np.nan
    keys_and_values = 2 * 2 * 2 * (4 + 9) * 24 * 4  # of both attentions and layers, for two targets
    assert cache.nbytes == keys_and_values


def test_targets_may_grow_by_different_lengths():
    layer = lively(DECODING["rotary decoder layer"])
    target, memory = normal((3, 6, 24)), normal((3, 5, 24), seed=1)
    begun = np.array([4, 1, 2])
    cache = layer.new_cache(memory, 6)
    begin = np.where(np.arange(4)[:, None] < begun[:, None, None], target[:, :4], np.nan).astype(np.float32)
    first = cache.add(begin, lengths=begun)
    whole = layer(target, memory, causal=True)
    for b, length in enumerate(begun):
        assert close(first[b, :length], whole[b, :length])
    assert np.array_equal(cache.lengths, begun)
    following = np.stack([target[b, length : length + 2] for b, length in enumerate(begun)])
    second = cache.add(following)
    for b, length in enumerate(begun):
        assert close(second[b], whole[b, length : length + 2])


@pytest.mark.parametrize(
    "choices",
    [[[0, 0, 1, 1], [1, 0, 3, 2]], [[1, 0]], [[0, 1, 1, 0, 1]], [[1, 1, 1]], [[0, 0, 0, 1], [3, 1]]],
)
def test_chosen_targets_go_on_with_their_memories(choices):
    layer = lively(DECODING["post-norm decoder"])
    memory = normal((2, 5, 24))
    cache = layer.new_cache(memory, 4, memory_key_lengths=[5, 3])
    rows = np.array([0, 1])  # the memory of each target
    written = normal((2, 1, 24), seed=1)
    cache.add(written)
    for number, chosen in enumerate(choices):
        cache.choose(chosen)
        rows, written = rows[chosen], written[chosen]
        following = normal((len(rows), 1, 24), seed=2 + number)
        written = np.concatenate([written, following], axis=1)
        y = cache.add(following)
        lengths = np.array([5, 3])[rows]
        whole = layer(written, memory[rows], causal=True, memory_key_lengths=lengths)
        assert close(y[:, 0], whole[:, -1])


def test_a_cache_keeps_the_weights_it_began_with():
    layer = lively(DECODING["pre-norm decoder"])
    target, memory = normal((1, 3, 24)), normal((1, 5, 24), seed=1)
    whole = layer(target, memory, causal=True)
    cache = layer.new_cache(memory, 3)
    with layer.edit() as parameters:
        for array in parameters.values():
            array[...] = 0
    assert close(cache.add(target), whole)
    assert not close(layer(target, memory, causal=True), whole)


def test_nothing_may_be_empty_or_all():
    layer = lively(DECODING["post-norm decoder"])
    cache = layer.new_cache(np.zeros((0, 5, 24), np.float32), 3)
    assert cache.add(np.zeros((0, 1, 24), np.float32)).shape == (0, 1, 24)
    cache = layer.new_cache(normal((2, 0, 24)), 3)
    target = normal((2, 3, 24))
    assert close(cache.add(target), layer(target, normal((2, 0, 24)), causal=True))
    cache.choose([])
    assert cache.add(np.zeros((0, 0, 24), np.float32)).shape == (0, 0, 24)


def test_a_transformer_decodes_with_a_cache():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 2, 32), 1, rng=0)
    for model in (
        nn.Transformer(24, 2, 1, 2, 32, rng=0),
        nn.Transformer(24, 2, 1, 2, 32, custom_encoder=encoder, rng=0),
    ):
        source, target = normal((2, 7, 24)), normal((2, 4, 24), seed=1)
        whole = model(source, target, source_lengths=[7, 2], causal=True)
        memory = model.encode(source, source_lengths=[7, 2])
        cache = model.new_cache(memory, 4, source_lengths=[7, 2])
        steps = [cache.add(target[:, i : i + 1]) for i in range(4)]
        assert close(np.concatenate(steps, axis=1), whole)


MEMORY = normal((2, 5, 8))


@pytest.mark.parametrize(
    ("kind", "text", "call"),
    [
        (TypeError, "memory must be a NumPy array of float32", lambda new: new(MEMORY.astype(float), 3)),
        (
            ValueError,
            "memory must have the shape (batch, memory_length, 8), got (5, 8)",
            lambda new: new(MEMORY[0], 3),
        ),
        (ValueError, "capacity must be at least 0, got -1", lambda new: new(MEMORY, -1)),
        (TypeError, "capacity must be an integer, got float", lambda new: new(MEMORY, 1.5)),
        (
            ValueError,
            "memory_key_lengths must have the shape (2,), got (3,)",
            lambda new: new(MEMORY, 3, memory_key_lengths=[1, 2, 3]),
        ),
        (
            ValueError,
            "memory_key_lengths must lie between 0 and 5, got 6",
            lambda new: new(MEMORY, 3, memory_key_lengths=[1, 6]),
        ),
        (
            TypeError,
            "memory_key_lengths must be integers, got float64",
            lambda new: new(MEMORY, 3, memory_key_lengths=[1.5, 2]),
        ),
        (
            ValueError,
            "target must have the shape (2, length, 8), got (2, 8)",
            lambda new: new(MEMORY, 3).add(MEMORY[:, 0]),
        ),
        (
            ValueError,
            "target must have at most the 3 positions that capacity has room for, got 5",
            lambda new: new(MEMORY, 3).add(MEMORY),
        ),
        (
            ValueError,
            "lengths must lie between 0 and 2, got 3",
            lambda new: new(MEMORY, 3).add(MEMORY[:, :2], lengths=[3, 1]),
        ),
        (IndexError, "rows must lie in [0, 2), got 2", lambda new: new(MEMORY, 3).choose([0, 2])),
        (IndexError, "rows must lie in [0, 2), got -1", lambda new: new(MEMORY, 3).choose([-1])),
        (TypeError, "rows must be integers, got float64", lambda new: new(MEMORY, 3).choose([0.5])),
    ],
)
def test_errors_name_the_argument_what_it_must_be_and_what_it_was(kind, text, call):
    layer = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2, rng=0)
    with pytest.raises(kind) as error:
        call(layer.new_cache)
    assert str(error.value).startswith(text)


def test_a_step_that_is_refused_changes_nothing():
    layer = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16), 2, rng=0)
    target = normal((2, 3, 8), seed=1)
    refused, other = layer.new_cache(MEMORY, 3), layer.new_cache(MEMORY, 3)
    with pytest.raises(ValueError, match="at most the 3 positions"):
        refused.add(MEMORY)
    with pytest.raises(IndexError):
        refused.choose([5])
    assert same_bits(refused.add(target), other.add(target))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_cache_is_not_copied(copied):
    cache = nn.TransformerDecoderLayer(8, 2, 16).new_cache(MEMORY, 3)
    with pytest.raises(TypeError, match="choose continues a target in several ways"):
        copied(cache)


def test_a_cache_takes_one_step_at_a_time():
    layer = nn.TransformerDecoder(nn.TransformerDecoderLayer(64, 4, 128), 3, rng=0)
    memory, target = normal((4, 200, 64)), normal((4, 1, 64), seed=1)
    cache, alone = layer.new_cache(memory, 100), layer.new_cache(memory, 100)
    expected = [alone.add(target) for _ in range(100)]
    made, refused, wrong = [], [], []

    def work():
        while cache.lengths[0] < 100:
            try:
                made.append(cache.add(target))
                cache.choose([0, 1, 2, 3])
            except RuntimeError as error:
                refused.append(str(error))
            except ValueError:  # no room any more
                pass
            if len(set(cache.lengths.tolist())) != 1:
                wrong.append(cache.lengths)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 100
    assert {y.tobytes() for y in made} == {y.tobytes() for y in expected}
    assert not wrong
    assert set(refused) <= {"the cache must be used by one thread at a time, got another step"}
