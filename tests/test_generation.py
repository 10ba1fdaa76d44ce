"""generate: the same tokens as by running the whole model for each, and how a token is chosen."""

import time

import blasformer
import numpy as np
import pytest
from blasformer import _core, models, optim
from layer_cases import shaken

VOCABULARY, LONGEST = 29, 24


def make(dtype=np.float64, seed=2, **changes):
    """A model whose next tokens are hard to guess."""
    sizes = {"d_model": 24, "nhead": 3, "num_layers": 2, "dim_feedforward": 37}
    model = models.LanguageModel(VOCABULARY, LONGEST, **sizes | changes, dtype=dtype, rng=1)
    return shaken(model, 0.5, seed)


def random_ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def chosen(logits, uniform, *, temperature, top_k=None, top_p=1.0):
    """The formula: which token of (vocabulary,) logits a number in [0, 1) chooses."""
    if temperature == 0:
        return int(np.argmax(logits))
    p = np.exp((logits - logits.max()) / temperature)
    order = np.lexsort((np.arange(len(p)), -p))[:top_k]
    total = p[order].sum()
    before = np.cumsum(p[order]) - p[order]
    kept = np.sort(order[(before < top_p * total) | (np.arange(len(order)) == 0)])
    return int(kept[np.searchsorted(np.cumsum(p[kept]), uniform * p[kept].sum(), side="right")])


def by_whole_passes(model, prompt, count, *, rng=None, stops=(), row=0, batch=1, **options):
    """Tokens by the logits of a full forward pass for each."""
    random = None
    if rng is not None:
        random = np.random.default_rng(np.random.default_rng(rng).integers(0, 2**64, dtype=np.uint64))
    text, new = list(prompt[-LONGEST:]), []
    while len(new) < count and not (new and new[-1] in stops):
        if len(text) > LONGEST:
            text = text[-LONGEST // 2 :]
        uniform = 0.0 if random is None else random.random(batch)[row]
        token = chosen(model(np.array(text))[-1], uniform, **options)
        text.append(token)
        new.append(token)
    return new


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0, "rng": 3},
        {"temperature": 0.7, "top_k": 5, "rng": 4},
        {"temperature": 1.5, "top_p": 0.8, "rng": 5},
        {"temperature": 1.2, "top_k": 9, "top_p": 0.9, "rng": 6},
    ],
)
def test_tokens_are_those_of_whole_forward_passes(options, tied, isa):
    model, prompt = make(tied=tied), random_ids(5)
    tokens = model.generate(prompt, 12, **options)
    assert tokens.dtype == np.int64
    assert tokens.tolist() == by_whole_passes(model, prompt, 12, **options)


def test_prompts_of_different_lengths_do_not_influence_each_other():
    model = make()
    prompts = [random_ids(length, seed=length) for length in (1, 7, 3, 12)]
    together = model.generate(prompts, 9)
    assert [tokens.tolist() for tokens in together] == [
        model.generate(prompt, 9).tolist() for prompt in prompts
    ]
    array = np.full((4, 12), -1)
    for row, prompt in zip(array, prompts, strict=True):
        row[: len(prompt)] = prompt
    by_lengths = model.generate(array, 9, lengths=[1, 7, 3, 12])
    assert [tokens.tolist() for tokens in by_lengths] == [tokens.tolist() for tokens in together]


def test_what_a_sequence_draws_depends_on_its_place_alone():
    model = make()
    prompts = [random_ids(length, seed=length) for length in (2, 5, 3)]
    together = model.generate(prompts, 8, temperature=1.0, rng=7)
    for row, prompt in enumerate(prompts):
        alone = by_whole_passes(model, prompt, 8, temperature=1.0, rng=7, row=row, batch=3)
        assert together[row].tolist() == alone


def test_a_sequence_ends_with_its_stop_token_and_the_others_go_on():
    model, prompts = make(), [random_ids(4, seed=seed) for seed in range(5)]
    free = model.generate(prompts, 10, temperature=1.0, rng=1)
    stop = int(free[1][3])
    stopped = model.generate(prompts, 10, temperature=1.0, rng=1, stop_ids=[stop])
    for whole, part in zip(free, stopped, strict=True):
        places = np.flatnonzero(whole == stop)
        end = places[0] + 1 if len(places) else 10
        assert part.tolist() == whole[:end].tolist()
    assert model.generate(prompts[1], 10, stop_ids=range(VOCABULARY)).shape == (1,)


@pytest.mark.parametrize("length", [1, 20, 24, 40])
def test_a_sequence_that_has_grown_too_long_goes_on_with_its_latter_half(length):
    model, prompt = make(), random_ids(length)
    assert model.generate(prompt, 60).tolist() == by_whole_passes(model, prompt, 60, temperature=0)


def test_the_same_rng_gives_the_same_tokens_for_every_number_of_threads():
    model, prompts, results = make(np.float32), [random_ids(3), random_ids(8)], []
    for count in (1, 2, 3):
        with blasformer.num_threads(count):
            results.append(model.generate(prompts, 12, temperature=1.0, rng=5))
    for tokens in results[1:]:
        assert [t.tolist() for t in tokens] == [t.tolist() for t in results[0]]
    generator = np.random.default_rng(5)
    first = model.generate(prompts, 12, temperature=1.0, rng=generator)
    assert [t.tolist() for t in first] == [t.tolist() for t in results[0]]
    second = model.generate(prompts, 12, temperature=1.0, rng=generator)
    assert [t.tolist() for t in second] != [t.tolist() for t in first]


def test_nothing_to_generate_is_legal():
    model = make()
    assert model.generate(random_ids(3), 0).shape == (0,)
    assert model.generate(np.zeros((0, 4), int), 5) == []


def test_a_model_recites_what_it_has_learnt():
    model = models.LanguageModel(VOCABULARY, LONGEST, 32, 4, 2, dropout=0.0, rng=0)
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5]])
    optimizer = optim.AdamW(model, lr=1e-2)
    for _ in range(60):
        _, grads = model.loss_and_gradients(ids)
        optimizer.step(grads)
    first, second = model.generate(ids[:, :2], 10)
    assert first.tolist() == ids[0, 2:].tolist()
    assert second.tolist() == ids[1, 2:].tolist()


def test_changing_weights_does_not_disturb_what_is_being_generated():
    model, prompt = make(), random_ids(4)
    expected = model.generate(prompt, 6).tolist()
    cache = model._held.new_cache(1, LONGEST)
    logits = cache.add(prompt[None], [4])
    tokens = []
    for _ in range(6):
        tokens.append(int(logits.argmax()))
        with model.edit() as parameters:
            parameters["wte.weight"] *= -1
        logits = cache.add([[tokens[-1]]], [1])
    assert tokens == expected


def test_a_token_costs_one_position():
    model = models.LanguageModel(50, 512, d_model=64, nhead=4, num_layers=2, rng=0)
    prompt = np.zeros(256, np.int64)

    def seconds(function):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    one_by_one = seconds(lambda: model.generate(prompt, 101)) - seconds(lambda: model.generate(prompt, 1))
    assert one_by_one < 25 * seconds(lambda: model(prompt))


# ----------------------------------------------------------------------------------------------------------
# How a token is chosen
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"temperature": 0.3},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_k": 7},
        {"temperature": 1.0, "top_k": 1000},
        {"temperature": 2.0, "top_p": 0.5},
        {"temperature": 2.0, "top_p": 1e-9},
        {"temperature": 2.0, "top_p": 0.99, "top_k": 20},
    ],
)
def test_a_token_is_chosen_as_the_formula_says(options, dtype):
    random = np.random.default_rng(0)
    logits = random.standard_normal((200, 41)).astype(dtype)
    logits[::3] = logits[::3].round(1)  # ties
    logits[::7, 5] = -np.inf
    uniform = random.random(200)
    arguments = {"top_k": None, "top_p": 1.0} | options
    ids = _core.sample_tokens(logits, uniform=uniform, **arguments)
    expected = [chosen(row.astype(np.float64), u, **options) for row, u in zip(logits, uniform, strict=True)]
    np.testing.assert_array_equal(ids, expected)


def test_tokens_are_drawn_as_often_as_they_are_probable():
    logits = np.log(np.array([[0.1, 0.2, 0.3, 0.4]]))
    uniform = (np.arange(1000) + 0.5) / 1000
    ids = _core.sample_tokens(np.repeat(logits, 1000, axis=0), 1.0, None, 1.0, uniform)
    np.testing.assert_array_equal(np.bincount(ids), [100, 200, 300, 400])


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"prompt_ids": [[]]}, ValueError, "prompt_ids must have at least one token each"),
        ({"prompt_ids": "abc"}, TypeError, "prompt_ids must be integers, got str"),
        ({"prompt_ids": [1.5]}, TypeError, "prompt_ids must be sequences of integers, got float64"),
        ({"prompt_ids": [[1], [29]]}, IndexError, r"prompt_ids must lie in \[0, 29\), got 29"),
        ({"prompt_ids": np.zeros((1, 1, 1), int)}, ValueError, "prompt_ids must have the shape"),
        ({"lengths": [4]}, ValueError, "lengths must lie between 0 and the 3 ids of prompt_ids, got 4"),
        ({"lengths": [1, 1]}, ValueError, r"lengths must have the shape \(1,\) to fit prompt_ids"),
        ({"lengths": [1.0]}, TypeError, "lengths must be integers, got float64"),
        ({"max_new_tokens": -1}, ValueError, "max_new_tokens must be at least 0, got -1"),
        ({"max_new_tokens": 2.0}, TypeError, "max_new_tokens must be an integer, got float"),
        ({"temperature": -1}, ValueError, "temperature must be at least 0 and finite, got -1"),
        ({"temperature": 1}, ValueError, "rng must be given where temperature > 0"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_p": 0}, ValueError, "top_p must be more than 0 and at most 1, got 0"),
        ({"top_p": 1.5}, ValueError, "top_p must be more than 0 and at most 1, got 1.5"),
        ({"rng": 1.0}, TypeError, "rng must be a numpy.random.Generator or an int, got float"),
        ({"stop_ids": 29}, IndexError, r"stop_ids must lie in \[0, 29\), got 29"),
        ({"stop_ids": [1.0]}, TypeError, "stop_ids must be an integer, got float"),
        ({"stop_ids": 1.0}, TypeError, "stop_ids must be an integer or several, got float"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, error, text):
    with pytest.raises(error, match=text):
        make().generate(**{"prompt_ids": [1, 2, 3], "max_new_tokens": 4} | arguments)


def test_weights_that_have_diverged_are_an_error():
    model = make()
    with model.edit() as parameters:
        parameters["ln_f.bias"][0] = np.nan
    with pytest.raises(ValueError, match="logits must be numbers with a finite maximum"):
        model.generate([1, 2, 3], 4)
