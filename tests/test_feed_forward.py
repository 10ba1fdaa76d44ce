"""A feed-forward network has the bits of its linear layers and its activation, one after the other, whether
it computes them so or, for many rows, by blocks of rows."""

import blasformer
import fresh_python
import numpy as np
import pytest
from blasformer import batch_invariant, nn
from layer_cases import normal, same_bits

# From 128 rows for each thread on there are blocks of rows, and from 512 (float64: 128) hidden columns on
# several blocks of those, which begin with whole panels: 4304 = 9 * 478.2 is not cut evenly.
SIZES = [(5, 40, 130), (130, 601, 64), (259, 64, 1100), (400, 33, 97), (601, 70, 640), (1030, 520, 1024)]
SIZES += [(257, 31, 513), (400, 129, 1543), (383, 65, 4304)]
ACTIVATIONS = {
    "relu": blasformer.relu,
    "gelu": blasformer.gelu,
    "gelu_tanh": lambda x: blasformer.gelu(x, approximate="tanh"),
    "gelu_sigmoid": lambda x: blasformer.gelu(x, approximate="sigmoid"),
    "silu": blasformer.silu,
}


def linear_of(layer, name):
    parameters = layer.state_dict().items()
    state = {key.removeprefix(name + "."): array for key, array in parameters if key.startswith(name + ".")}
    out_features, in_features = state["weight"].shape
    linear = nn.Linear(in_features, out_features, bias="bias" in state, dtype=state["weight"].dtype)
    linear.load_state_dict(state)
    return linear


def assert_is_its_parts(layer, activation, x):
    hidden = ACTIVATIONS[activation](linear_of(layer, "linear1")(x))
    assert_is(linear_of(layer, "linear2")(hidden), layer, x)


def assert_is(expected, layer, x):
    assert same_bits(layer(x), expected)
    given = np.full_like(x, np.nan)
    assert layer(x, out=given) is given
    assert same_bits(given, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "d_model", "dim_feedforward"), SIZES)
def test_any_size_on_any_instructions(rows, d_model, dim_feedforward, dtype, product_isa):
    layer = nn.FeedForward(d_model, dim_feedforward, activation="gelu", dtype=dtype, rng=0)
    assert_is_its_parts(layer, "gelu", normal((rows, d_model), dtype, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "d_model", "dim_feedforward"), SIZES)
def test_gated_networks_too(rows, d_model, dim_feedforward, bias, dtype, product_isa):
    layer = nn.GatedFeedForward(d_model, dim_feedforward, activation="relu", bias=bias, dtype=dtype, rng=0)
    gate, up, down = (linear_of(layer, name) for name in ("gate_proj", "up_proj", "down_proj"))
    x = normal((rows, d_model), dtype, 1)
    assert_is(down(blasformer.relu(gate(x)) * up(x)), layer, x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [False, True])
def test_any_activation_on_any_number_of_threads(activation, bias, threads):
    layer = nn.FeedForward(70, 640, activation=activation, bias=bias, rng=0)
    assert_is_its_parts(layer, activation, normal((3, 200, 70), np.float32, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dim_feedforward", [640, 1543])
@pytest.mark.parametrize("kind", [nn.FeedForward, nn.GatedFeedForward])
def test_a_row_has_the_same_bits_in_a_block_of_rows(kind, dim_feedforward, dtype, product_isa):
    layer = kind(70, dim_feedforward, activation="gelu", dtype=dtype, rng=0)
    x = normal((900, 70), dtype, 1)
    with batch_invariant():
        y = layer(x)
        for rows in (slice(0, 1), slice(5, 38), slice(100, 401), slice(301, 900)):
            assert same_bits(layer(x[rows]), y[rows])


@pytest.mark.parametrize("kind", [nn.FeedForward, nn.GatedFeedForward])
def test_infinities_and_nan_stay_in_their_rows(kind, product_isa):
    layer = kind(70, 640, activation="relu", rng=0)
    x = normal((601, 70), np.float32, 1)
    expected = layer(x)
    x[[3, 300, 600]] = np.array([[np.nan], [np.inf], [-np.inf]], np.float32)
    y = layer(x)
    assert np.isnan(y[3]).all()
    kept = np.ones(601, bool)
    kept[[3, 300, 600]] = False
    assert same_bits(y[kept], expected[kept])


def test_weights_that_change_are_read_anew():
    layer = nn.FeedForward(48, 96, rng=0)
    x = normal((700, 48), np.float32, 1)
    layer(x)
    state = {name: array * np.float32(-0.5) for name, array in layer.state_dict().items()}
    layer.load_state_dict(state)
    assert_is_its_parts(layer, "relu", x)


@pytest.mark.parametrize("dim_feedforward", [1999, 2048, 2152])
@pytest.mark.parametrize("kind", ["FeedForward", "GatedFeedForward"])
def test_the_hidden_layer_of_many_rows_is_not_held_in_memory(kind, dim_feedforward):
    try:
        blasformer.use_isa("avx2")
    except ValueError as reason:
        pytest.skip(str(reason))  # OpenBLAS makes the products
    peak = fresh_python.run(f"""
        import blasformer
        import numpy as np
        from blasformer import nn

        def peak():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))

        layer = nn.{kind}(16, {dim_feedforward}, rng=0)
        x = np.ones((40_000, 16), np.float32)
        layer(x[:1000])
        before = peak()
        layer(x)
        print(peak() - before)
    """)
    assert int(peak) < 40_000 * dim_feedforward * 4 / 10
