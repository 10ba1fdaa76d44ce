"""Copies of weights that inference keeps packed: never stale, never seen, counted, and given back."""

import threading

import blasformer
import numpy as np
import pytest
from blasformer import lora, models, nn, optim
from layer_cases import normal, same_bits


def block(dtype):
    return nn.TransformerEncoderLayer(48, 4, 75, activation="gelu", num_kv_heads=2, dtype=dtype, rng=0)


# A layer, and the shapes of what it takes: more rows than are multiplied without packing.
LAYERS = {
    "linear": lambda dtype: (nn.Linear(67, 45, dtype=dtype, rng=0), [(61, 67)]),
    "feed-forward": lambda dtype: (nn.FeedForward(48, 75, dtype=dtype, rng=0), [(3, 50, 48)]),
    "gated": lambda dtype: (nn.GatedFeedForward(48, 75, dtype=dtype, rng=0), [(3, 50, 48)]),
    "self-attention": lambda dtype: (nn.MultiheadAttention(48, 4, dtype=dtype, rng=0), [(3, 50, 48)]),
    # The projections of key and value begin at row 24 of the stacked weight: within a panel.
    "cross-attention": lambda dtype: (
        nn.MultiheadAttention(24, 4, dtype=dtype, rng=0),
        [(3, 50, 24), (3, 61, 24)],
    ),
    "cross-attention at panels": lambda dtype: (
        nn.MultiheadAttention(64, 4, num_kv_heads=2, dtype=dtype, rng=0),
        [(3, 50, 64), (3, 61, 64)],
    ),
    "widths of their own": lambda dtype: (
        nn.MultiheadAttention(24, 4, kdim=17, vdim=19, dtype=dtype, rng=0),
        [(3, 50, 24), (3, 61, 17), (3, 61, 19)],
    ),
    "encoder layer": lambda dtype: (block(dtype), [(3, 50, 48)]),
    "stack": lambda dtype: (nn.TransformerEncoder(block(dtype), 3, rng=1), [(3, 50, 48)]),
    "decoder layer": lambda dtype: (
        nn.TransformerDecoderLayer(48, 4, 75, dtype=dtype, rng=0),
        [(3, 50, 48), (3, 61, 48)],
    ),
}


def inputs_of(shapes, dtype):
    return [normal(shape, dtype, seed) for seed, shape in enumerate(shapes)]


def packs() -> bool:
    """Whether products are made by kernels that pack: where there is no AVX2 OpenBLAS makes them."""
    return blasformer.show_config("dicts")["instruction sets"]["in use"] != "baseline"


@pytest.fixture(params=["highest", "medium", "ieee"])
def precision(request):
    """Each makes products of its own kernels, where there are several."""
    with blasformer.precision(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_packed_copies_change_no_bit_and_are_counted(name, dtype, isa):
    layer, shapes = LAYERS[name](dtype)
    inputs = inputs_of(shapes, dtype)
    y, _ = layer.forward(*inputs)
    assert layer.packed_nbytes == 0, "training packs nothing to keep"
    assert same_bits(layer(*inputs), y)
    assert (layer.packed_nbytes > 0) == packs()
    assert same_bits(layer(*inputs), y)
    assert same_bits(layer.forward(*inputs)[0], y)
    weights = sum(array.nbytes for array in layer.parameters().values() if array.ndim == 2)
    assert layer.packed_nbytes <= 2 * weights + 4096, "each weight once, padded to whole panels"
    layer.release_packed()
    assert layer.packed_nbytes == 0
    assert same_bits(layer(*inputs), y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("features", [(385, 97), (61, 150), (1029, 803)])
def test_any_number_of_rows_reads_a_packed_copy_with_the_same_bits(features, dtype, isa):
    """From 128 rows on, where the weight is small, in two parts of the rows."""
    layer = nn.Linear(*features, dtype=dtype, rng=0)
    for rows in (127, 128, 129, 200, 255, 256, 257, 513):
        x = normal((rows, features[0]), dtype, rows)
        expected = layer.forward(x)[0]
        for threads in (1, 2, 3, 24):
            with blasformer.num_threads(threads):
                assert same_bits(layer(x), expected)


@pytest.mark.parametrize("name", LAYERS)
def test_copies_in_parts_change_no_bit_and_are_counted(name, product_isa, precision):
    layer, shapes = LAYERS[name](np.float32)
    inputs = inputs_of(shapes, np.float32)
    y, _ = layer.forward(*inputs)
    assert layer.packed_nbytes == 0
    for threads in (1, 3):
        with blasformer.num_threads(threads):
            assert same_bits(layer(*inputs), y)
    tiles = sum(
        -(-a.shape[0] // 32) * -(-a.shape[1] // 32) for a in layer.parameters().values() if a.ndim == 2
    )
    assert layer.packed_nbytes <= tiles * (3 * 2 * 32 * 32 + 512), "three parts, padded to whole tiles"
    layer.release_packed()
    assert layer.packed_nbytes == 0


@pytest.mark.parametrize("in_features", [129, 517])
def test_copies_in_parts_serve_any_number_of_rows(in_features, product_isa, precision):
    layer = nn.Linear(in_features, 97, rng=0)
    weight, bias = (a.astype(np.float64) for a in layer.parameters().values())
    for rows in (203, 1, 40, 23, 5, 203, 33):
        x = normal((rows, in_features), np.float32, rows)
        y = layer(x)
        if rows >= 24:  # fewer may be multiplied otherwise where nothing is packed
            assert same_bits(y, layer.forward(x)[0])
        expected = x.astype(np.float64) @ weight.T + bias
        bound = 3e-2 if precision == "medium" else 1e-5
        assert np.abs(y - expected).max() <= bound * np.abs(expected).max()


def test_few_rows_and_many_read_copies_of_their_own_on_tiles():
    layer = nn.Linear(129, 97, rng=0)
    few, many = normal((5, 129), np.float32, 0), normal((61, 129), np.float32, 1)
    with blasformer.use_isa("amx_reference"):
        y_many = layer(many)
        of_many = layer.packed_nbytes
        y_few = layer(few)
        of_both = layer.packed_nbytes
        assert of_both > of_many > 0 if packs() else of_both == of_many
        assert same_bits(layer(many), y_many)
        assert same_bits(layer(few), y_few)
        assert layer.packed_nbytes == of_both
        layer.release_packed()
        assert layer.packed_nbytes == 0


def test_values_that_parts_cannot_represent_are_right_in_kept_copies(product_isa, precision):
    layer = nn.Linear(67, 45, rng=0)
    with layer.edit() as p:
        p["weight"][3, 5], p["weight"][4, 6], p["weight"][40, 2] = np.inf, 3e38, 1e-39
    x = normal((61, 67), np.float32, 1)
    y = layer.forward(x)[0]
    assert not np.isfinite(y[:, 3]).any()
    assert np.isfinite(np.delete(y, [3, 4], axis=1)).all()
    for _ in range(2):
        assert same_bits(layer(x), y)


def set_all(layer, other):
    layer.load_state_dict(other.parameters())


def edit_all(layer, other):
    with layer.edit() as p:
        for name, array in other.parameters().items():
            p[name][...] = array


def step_to(layer, other):
    # Plain gradient descent by the difference lands on the other's weights, but for rounding.
    grads = {n: a - other.parameters()[n] for n, a in layer.parameters().items()}
    optim.SGD(layer, lr=1.0).step(grads)


@pytest.mark.parametrize("change", [set_all, edit_all, step_to])
@pytest.mark.parametrize("name", LAYERS)
def test_packed_copies_are_never_stale(name, change):
    layer, shapes = LAYERS[name](np.float32)
    other, _ = LAYERS[name](np.float32)
    random = np.random.default_rng(5)
    other.load_state_dict(
        {n: random.standard_normal(a.shape, np.float32) for n, a in other.parameters().items()}
    )
    inputs = inputs_of(shapes, np.float32)
    before = layer(*inputs)
    change(layer, other)
    assert layer.packed_nbytes == 0
    after = layer(*inputs)
    assert not same_bits(after, before)
    fresh, _ = LAYERS[name](np.float32)
    set_all(fresh, layer)
    assert same_bits(after, fresh(*inputs))


def test_adapters_that_are_merged_or_added_leave_no_stale_copy():
    layer, shapes = LAYERS["encoder layer"](np.float32)
    (x,) = inputs_of(shapes, np.float32)
    plain = layer(x)
    lora.add(layer, ["self_attn.*", "linear1"], rank=2, rng=0)
    assert same_bits(layer(x), plain), "a fresh adapter adds nothing"
    random = np.random.default_rng(1)
    with layer.edit() as p:
        for name, array in p.items():
            if "lora_B" in name:
                array[...] = random.standard_normal(array.shape)
    apart = layer(x)
    assert not np.allclose(apart, plain, atol=1e-3)
    lora.merge(layer)
    merged = layer(x)
    np.testing.assert_allclose(merged, apart, atol=2e-4)
    lora.unmerge(layer)
    np.testing.assert_allclose(layer(x), apart, atol=2e-4)


def test_another_instruction_set_packs_anew():
    layer, shapes = LAYERS["encoder layer"](np.float32)
    (x,) = inputs_of(shapes, np.float32)
    expected = {}
    for _ in range(2):
        for isa in blasformer.show_config("dicts")["instruction sets"]["detected"]:
            with blasformer.use_isa(isa):
                y = layer(x)
            assert same_bits(expected.setdefault(isa, y), y)


def test_another_precision_packs_anew(product_isa):
    layer, shapes = LAYERS["encoder layer"](np.float32)
    (x,) = inputs_of(shapes, np.float32)
    for _ in range(2):
        for name in ("highest", "high", "medium", "ieee"):
            with blasformer.precision(name):
                assert same_bits(layer(x), layer.forward(x)[0])
                assert (layer.packed_nbytes > 0) == packs()


def test_threads_that_infer_while_weights_change_see_old_or_new_weights_whole():
    first, shapes = LAYERS["stack"](np.float32)
    second, _ = LAYERS["stack"](np.float32)
    random = np.random.default_rng(3)
    second.load_state_dict(
        {n: a + random.standard_normal(a.shape, np.float32) / 9 for n, a in second.parameters().items()}
    )
    (x,) = inputs_of(shapes, np.float32)
    allowed = [first(x), second(x)]
    weights = [first.state_dict(), second.state_dict()]
    wrong, stop = [], threading.Event()

    def infer():
        while not stop.is_set():
            y = first(x)
            if not any(same_bits(y, a) for a in allowed):
                wrong.append(y)

    threads = [threading.Thread(target=infer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        first.load_state_dict(weights[turn % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert same_bits(first(x), allowed[1])


def test_models_count_and_release_their_copies():
    model = models.LanguageModel(vocab_size=50, max_length=64, d_model=32, num_layers=2, nhead=2, rng=0)
    ids = np.random.default_rng(0).integers(0, 50, (4, 40))
    first = model(ids)
    assert (model.packed_nbytes > 0) == packs()
    assert same_bits(model(ids), first)
    model.release_packed()
    assert model.packed_nbytes == 0
