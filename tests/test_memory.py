"""Memory of results: owned by them, used again when they are gone, and never by two at once."""

import threading

import blasformer
import numpy as np
import pytest


def large(seed=0, rows=700):
    return np.random.default_rng(seed).standard_normal((rows, 300)).astype(np.float32)


def test_the_memory_of_a_released_result_serves_the_next():
    x = large()
    place = blasformer.relu(x).ctypes.data
    places = {blasformer.relu(x).ctypes.data for _ in range(5)}
    assert places == {place}


def test_results_that_live_have_memory_of_their_own():
    x = large()
    results = [blasformer.relu(x) for _ in range(5)]
    expected = np.maximum(x, 0)
    for result in results:
        assert result.flags.owndata
        result += 1
    assert all((result == expected + 1).all() for result in results)


@pytest.mark.parametrize("rows", [10, 700, 1500])
def test_a_result_can_be_resized_in_place(rows):
    x = large()
    y = blasformer.relu(x)
    y.resize((rows, 300), refcheck=False)
    common = min(rows, 700)
    np.testing.assert_array_equal(y[:common], np.maximum(x, 0)[:common])
    assert not y[common:].any()


def test_memory_too_large_to_exist_is_a_memory_error_and_the_next_call_works():
    zeros = np.broadcast_to(np.float32(0), (2**24, 2**24))
    with pytest.raises(MemoryError):
        blasformer.relu(zeros)
    np.testing.assert_array_equal(blasformer.relu(large()), np.maximum(large(), 0))


def test_threads_never_share_the_memory_of_their_results():
    wrong = []

    def work(seed):
        for turn in range(60):
            x = large(seed, 600 + 50 * (turn % 4))
            y, z = blasformer.relu(x), blasformer.silu(x)
            if not np.array_equal(y, np.maximum(x, 0)) or not np.array_equal(blasformer.silu(x), z):
                wrong.append((seed, turn))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
