"""Weights that are held in bfloat16: the bits of rounded weights, half the memory, and clear refusals."""

import copy
import pickle
import threading

import blasformer
import fresh_python
import ml_dtypes
import numpy as np
import pytest
from blasformer import lora, models, nn, optim
from layer_cases import normal, same_bits
from test_packed_weights import LAYERS, inputs_of, packs

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def rounded(layer):
    """The same layer in float32, with the numbers that bfloat16 has for its weights."""
    held = copy.deepcopy(layer)
    held.hold_weights("bfloat16")
    held.hold_weights("float32")
    return held


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_are_those_of_rounded_weights_bit_for_bit(name, product_isa, precision):
    layer, shapes = LAYERS[name](np.float32)
    inputs = inputs_of(shapes, np.float32)
    with blasformer.precision(precision):
        expected = rounded(layer)(*inputs)
        layer.hold_weights("bfloat16")
        for threads in (1, 3):
            with blasformer.num_threads(threads):
                assert same_bits(layer(*inputs), expected)


@pytest.mark.parametrize("in_features", [1, 15, 33, 129, 517])
@pytest.mark.parametrize("out_features", [1, 31, 97, 192])
def test_any_number_of_rows_gives_the_bits_of_rounded_weights(in_features, out_features, product_isa):
    layer = nn.Linear(in_features, out_features, out_features != 31, rng=0)
    wide = rounded(layer)
    layer.hold_weights("bfloat16")
    for rows in (1, 2, 3, 4, 5, 7, 31, 40, 203, 600):
        x = normal((rows, in_features), np.float32, rows)
        assert same_bits(layer(x), wide(x))
        layer.release_packed()
        assert same_bits(layer(x), wide(x))


@pytest.mark.parametrize("in_features", [67, 517, 1029])
def test_a_row_has_the_same_bits_in_any_batch_where_that_is_asked_for(in_features, product_isa):
    layer = nn.Linear(in_features, 75, rng=0)
    wide = rounded(layer)
    layer.hold_weights("bfloat16")
    x = normal((600, in_features), np.float32, 1)
    with blasformer.batch_invariant():
        y = layer(x)
        assert same_bits(y, wide(x))
        for rows in (1, 2, 5, 24, 203):
            assert same_bits(layer(x[:rows]), y[:rows])


@pytest.mark.parametrize("name", LAYERS)
def test_packed_copies_take_half_the_memory_of_float32_and_are_given_back(name, isa):
    layer, shapes = LAYERS[name](np.float32)
    inputs = inputs_of(shapes, np.float32)
    with blasformer.precision("ieee"):
        expected = rounded(layer)(*inputs)
        layer(*inputs)
        of_float32 = layer.packed_nbytes
        layer.hold_weights("bfloat16")
        assert layer.packed_nbytes == 0
        for _ in range(2):
            assert same_bits(layer(*inputs), expected)
            assert 2 * layer.packed_nbytes == of_float32
        layer.release_packed()
        assert layer.packed_nbytes == 0
        assert same_bits(layer(*inputs), expected)
        layer.hold_weights("float32")
        assert layer.packed_nbytes == 0
        assert same_bits(layer(*inputs), expected)
        assert layer.packed_nbytes == of_float32


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("in_features", [64, 129, 1029])
def test_copies_on_tiles_have_one_part(in_features, precision):
    layer = nn.Linear(in_features, 97, rng=0)
    layer.hold_weights("bfloat16")
    wide = rounded(layer)
    x = normal((600, in_features), np.float32, 1)
    with blasformer.use_isa("amx_reference"), blasformer.precision(precision):
        assert same_bits(layer(x), wide(x))
        panels, blocks = 4, -(-in_features // 512)
        assert layer.packed_nbytes <= panels * (2 * 32 * (in_features + 32 * blocks) + 512 * blocks)
        assert layer.packed_nbytes == wide.packed_nbytes, "the numbers decide, not how they are held"
        assert same_bits(layer(x[:30]), wide(x[:30]))
        layer.release_packed()
        assert layer.packed_nbytes == 0


def test_products_of_very_many_rows_keep_no_copy_but_use_one(isa):
    layer = nn.Linear(67, 45, rng=0)
    layer.hold_weights("bfloat16")
    x = normal((700, 67), np.float32, 1)
    with blasformer.precision("ieee"):
        y = layer(x)
        assert layer.packed_nbytes == 0
        layer(x[:40])
        assert (layer.packed_nbytes > 0) == packs()
        assert same_bits(layer(x), y)


def test_another_instruction_set_packs_anew():
    layer, shapes = LAYERS["encoder layer"](np.float32)
    (x,) = inputs_of(shapes, np.float32)
    wide = rounded(layer)
    layer.hold_weights("bfloat16")
    for _ in range(2):
        for name in blasformer.show_config("dicts")["instruction sets"]["detected"]:
            with blasformer.use_isa(name):
                assert same_bits(layer(x), wide(x))


def test_rounding_is_to_nearest_with_ties_to_even():
    layer = nn.Linear(67, 45, rng=0)
    weight = layer.state_dict()["weight"]
    layer.hold_weights("bfloat16")
    assert same_bits(layer.parameters()["weight"].view(np.uint16), weight.astype(BFLOAT16).view(np.uint16))
    assert layer.parameters()["bias"].dtype == np.float32
    layer.hold_weights("float32")
    assert same_bits(layer.parameters()["weight"], weight.astype(BFLOAT16).astype(np.float32))


def test_infinities_and_nans_stay_what_they_are(product_isa):
    layer = nn.Linear(67, 45, rng=0)
    with layer.edit() as p:
        p["weight"][3, 5], p["weight"][4, 6], p["weight"][9, 1] = np.inf, np.nan, 1e-39
    layer.hold_weights("bfloat16")
    wide = rounded(layer)
    for rows in (1, 40, 600):
        x = np.abs(normal((rows, 67), np.float32, 1))
        y = layer(x)
        assert same_bits(y, wide(x))
        assert (y[:, 3] == np.inf).all()
        assert np.isnan(y[:, 4]).all()
        assert np.isfinite(np.delete(y, [3, 4], axis=1)).all()


@pytest.mark.parametrize("name", LAYERS)
def test_exactly_the_weights_of_linear_layers_take_half_the_memory(name):
    layer, _ = LAYERS[name](np.float32)
    before = layer.parameters()
    assert layer.weights_dtype == np.float32
    layer.hold_weights(ml_dtypes.bfloat16)
    layer.hold_weights("bfloat16")  # once more changes nothing
    assert layer.weights_dtype == BFLOAT16
    assert layer.dtype == np.float32
    after = layer.parameters()
    assert list(after) == list(before)
    for parameter, array in after.items():
        assert array.shape == before[parameter].shape
        assert not array.flags.writeable
        assert (array.dtype == BFLOAT16) == (array.ndim == 2)
    layer.hold_weights("float32")
    assert layer.weights_dtype == np.float32
    assert {array.dtype for array in layer.parameters().values()} == {np.dtype(np.float32)}


def test_weights_change_as_arrays_of_bfloat16(isa):
    layer, shapes = LAYERS["encoder layer"](np.float32)
    inputs = inputs_of(shapes, np.float32)
    layer.hold_weights("bfloat16")
    before = layer(*inputs)
    view = layer.parameters()["linear1.weight"]
    with layer.edit() as p:
        p["linear1.weight"] *= BFLOAT16.type(2)
        p["norm1.bias"] += np.float32(1)
    assert layer.packed_nbytes == 0, "no copy is stale"
    assert not same_bits(layer(*inputs), before)
    assert same_bits(view.view(np.uint16), layer.parameters()["linear1.weight"].view(np.uint16)), "live"
    other, _ = LAYERS["encoder layer"](np.float32)
    other.hold_weights("bfloat16")
    other.load_state_dict(layer.state_dict())
    assert same_bits(other(*inputs), layer(*inputs))
    wide = rounded(layer)
    wide.release_packed()
    assert same_bits(wide(*inputs), layer(*inputs))
    with pytest.raises(TypeError, match=r"linear1\.weight must be a NumPy array of bfloat16, got float32"):
        layer.load_state_dict(wide.state_dict())


def test_layers_are_copied_and_pickled_as_they_hold_their_weights():
    layer, shapes = LAYERS["stack"](np.float32)
    inputs = inputs_of(shapes, np.float32)
    layer.hold_weights("bfloat16")
    y = layer(*inputs)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.weights_dtype == BFLOAT16
        assert other.packed_nbytes == 0
        assert same_bits(other(*inputs), y)
        assert other.packed_nbytes == layer.packed_nbytes


@pytest.mark.parametrize("name", LAYERS)
def test_training_is_refused_until_weights_are_float32(name):
    layer, shapes = LAYERS[name](np.float32)
    inputs = inputs_of(shapes, np.float32)
    y, saved = layer.forward(*inputs)
    optimizer = optim.SGD(layer, lr=0.1)
    grads = {parameter: np.ones_like(array) for parameter, array in layer.parameters().items()}
    layer.hold_weights("bfloat16")
    before = layer.state_dict()
    refused = 'held in bfloat16 are for inference: hold_weights\\("float32"\\) comes before training'
    with pytest.raises(RuntimeError, match=refused):
        layer.forward(*inputs)
    with pytest.raises(RuntimeError, match="changed since the forward pass"):
        layer.backward(saved, np.ones_like(y))
    with pytest.raises((RuntimeError, TypeError, ValueError), match="bfloat16"):
        optimizer.step(grads)
    with pytest.raises((RuntimeError, TypeError), match="bfloat16"):
        optim.SGD(layer, lr=0.1)
    assert all(np.array_equal(a, before[n]) for n, a in layer.parameters().items())
    layer.hold_weights("float32")
    y, saved = layer.forward(*inputs)
    layer.backward(saved, np.ones_like(y))


def test_what_cannot_be_held_is_refused():
    with pytest.raises(
        TypeError, match="only layers of float32 hold weights in bfloat16, this one is of float64"
    ):
        nn.Linear(3, 4, dtype=np.float64, rng=0).hold_weights("bfloat16")
    with pytest.raises(
        TypeError, match="dtype must be bfloat16 or float32, in which the layer computes, got int8"
    ):
        nn.Linear(3, 4, rng=0).hold_weights("int8")
    layer = nn.TransformerEncoderLayer(16, 2, 24, rng=0)
    layer.hold_weights("bfloat16")
    with pytest.raises(ValueError, match="encoder_layer must hold its weights in float32 to be stacked"):
        nn.TransformerEncoder(layer, 2)


def test_adapters_work_beside_such_weights_but_are_not_merged():
    layer, shapes = LAYERS["encoder layer"](np.float32)
    (x,) = inputs_of(shapes, np.float32)
    lora.add(layer, ["self_attn.*", "linear1"], rank=2, rng=0)
    random = np.random.default_rng(1)
    with layer.edit() as p:
        for name, array in p.items():
            if "lora_B" in name:
                array[...] = random.standard_normal(array.shape)
    expected = rounded(layer)(x)
    layer.hold_weights("bfloat16")
    assert same_bits(layer(x), expected)
    with pytest.raises(RuntimeError, match="before adapters are merged"):
        lora.merge(layer)
    assert same_bits(layer(x), expected)
    lora.remove(layer)
    assert same_bits(layer(x), rounded(layer)(x))


def test_threads_that_infer_while_such_weights_change_see_old_or_new_ones_whole():
    first, shapes = LAYERS["stack"](np.float32)
    second, _ = LAYERS["stack"](np.float32)
    random = np.random.default_rng(3)
    second.load_state_dict(
        {n: a + random.standard_normal(a.shape, np.float32) / 9 for n, a in second.parameters().items()}
    )
    (x,) = inputs_of(shapes, np.float32)
    for layer in (first, second):
        layer.hold_weights("bfloat16")
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
    for turn in range(40):
        first.load_state_dict(weights[turn % 2])
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert same_bits(first(x), allowed[1])


LANGUAGE_MODELS = {
    "GPT-2": lambda: models.LanguageModel(50, 64, 32, 2, 2, rng=0),
    "GPT-2, not tied": lambda: models.LanguageModel(50, 64, 32, 2, 2, tied=False, rng=0),
    "Llama": lambda: models.Llama(50, 64, 32, 4, 2, num_kv_heads=2, tied=False, rng=0),
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_language_models_write_the_text_of_rounded_weights(name, tmp_path):
    model = LANGUAGE_MODELS[name]()
    wide = rounded(model)
    model.hold_weights("bfloat16")
    in_bfloat16 = {n for n, array in model.parameters().items() if array.dtype == BFLOAT16}
    embeddings = {"wte.weight", "wpe.weight", "embed_tokens.weight"}
    assert in_bfloat16 == {n for n, array in model.parameters().items() if array.ndim == 2} - embeddings
    ids = np.random.default_rng(0).integers(0, 50, (3, 40))
    assert same_bits(model(ids), wide(ids))
    assert model.loss(ids[:, :-1], ids[:, 1:]) == wide.loss(ids[:, :-1], ids[:, 1:])
    assert np.array_equal(model.generate(ids[:, :5], 9), wide.generate(ids[:, :5], 9))
    for refused in (model.forward, lambda x: model.loss_and_gradients(x, x)):
        with pytest.raises(RuntimeError, match="for inference"):
            refused(ids)
    model.save(tmp_path)
    held = type(model).from_pretrained(tmp_path, weights_dtype="bfloat16")
    assert held.weights_dtype == BFLOAT16
    assert same_bits(held(ids), model(ids))
    widened = type(model).from_pretrained(tmp_path)
    assert widened.weights_dtype == np.float32
    assert same_bits(widened(ids), wide(ids))


def test_sequence_models_hold_their_output_so_too():
    model = models.Seq2Seq(10, 12, bos_id=10, eos_id=11, d_model=16, nhead=2, tied=False, rng=0)
    wide = rounded(model)
    model.hold_weights("bfloat16")
    assert model.parameters()["output.weight"].dtype == BFLOAT16
    source, target = np.array([[1, 2, 3]]), np.array([[10, 4, 5, 6]])
    np.testing.assert_allclose(model(source, target), wide(source, target), atol=1e-5)


def test_bert_gives_the_vectors_of_rounded_weights(tmp_path):
    config = models.BertConfig(
        vocab_size=23,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=32,
    )
    model = models.BertModel(config, rng=0)
    wide = rounded(model)
    model.hold_weights("bfloat16")
    ids, lengths = np.random.default_rng(0).integers(0, 23, (5, 21)), np.array([11, 3, 0, 21, 1])
    expected, out = wide(ids, lengths=lengths), model(ids, lengths=lengths)
    assert same_bits(out.last_hidden_state, expected.last_hidden_state)
    np.testing.assert_allclose(out.pooler_output, expected.pooler_output, atol=1e-6)
    for name, array in model.parameters().items():
        assert same_bits(array.astype(np.float32), wide.parameters()[name])
    with model.edit() as p:
        p["encoder.layer.1.attention.self.key.weight"] *= BFLOAT16.type(2)
    assert not same_bits(model(ids, lengths=lengths).last_hidden_state, expected.last_hidden_state)
    model.save(tmp_path)
    held = models.BertModel.from_pretrained(tmp_path, weights_dtype="bfloat16")
    assert held.weights_dtype == BFLOAT16
    assert same_bits(
        held(ids, lengths=lengths).last_hidden_state, model(ids, lengths=lengths).last_hidden_state
    )


def test_a_process_that_infers_with_weights_held_so_is_smaller():
    program = """
import numpy as np, resource
from blasformer import nn
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
x = np.ones((1, 3, 512), np.float32)
small = nn.Linear(512, 4, rng=0)
small.hold_weights("bfloat16")  # with what that imports
small(x)
before = resident()
model = nn.TransformerEncoder(nn.TransformerEncoderLayer(512, 8, 2048, rng=0), 6, rng=0)
model(x)
wide = resident() - before
model.hold_weights("bfloat16")
model(x)
print((resident() - before) / wide)"""
    assert 0.45 < float(fresh_python.run(program)) < 0.6
