"""nn.Transformer with halves of one's own: custom_encoder and custom_decoder."""

import copy
import pickle

import numpy as np
import pytest
import reference
from blasformer import lora, nn, optim
from blasformer.testing import check_gradients
from layer_cases import normal, same_bits

SIZES = {"d_model": 24, "nhead": 4, "dim_feedforward": 33, "activation": "gelu"}
LENGTHS = {"source_lengths": [11, 3, 7], "target_lengths": [9, 2, 5]}


def halves(dtype=np.float32, dropout=0.1, **arguments):
    """An encoder of two layers and a decoder of three."""
    sizes = {**SIZES, "dropout": dropout, "dtype": dtype, **arguments}
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(**sizes), 2, nn.LayerNorm(24, dtype=dtype), rng=0
    )
    decoder = nn.TransformerDecoder(
        nn.TransformerDecoderLayer(**sizes), 3, nn.LayerNorm(24, dtype=dtype), rng=1
    )
    return encoder, decoder


def composed(dtype=np.float32, **arguments):
    encoder, decoder = halves(dtype, **arguments)
    return nn.Transformer(24, 4, custom_encoder=encoder, custom_decoder=decoder, dtype=dtype)


def inputs(dtype=np.float32):
    return normal((3, 11, 24), dtype), normal((3, 9, 24), dtype, 1)


class Scaling:
    """A half written in Python: y = x * weight, or y = (target + mean of memory) * weight."""

    def __init__(self, features, dtype=np.float64):
        self.weight = np.linspace(0.5, 1.5, features, dtype=dtype)

    def parameters(self):
        return {"weight": self.weight}

    def forward(self, x, memory=None, *, rng=None):
        mixed = x if memory is None else x + memory.mean(1, keepdims=True)
        return mixed * self.weight, (mixed, None if memory is None else memory.shape)

    def backward(self, saved, d_y):
        mixed, memory_shape = saved
        d_x = d_y * self.weight
        grads = {"weight": (d_y * mixed).sum((0, 1))}
        if memory_shape is None:
            return d_x, grads
        d_memory = np.broadcast_to(d_x.sum(1, keepdims=True) / memory_shape[1], memory_shape)
        return (d_x, d_memory), grads


def test_halves_of_ours_make_the_transformer_of_their_weights():
    whole = nn.Transformer(24, 4, 2, 3, 33, activation="gelu", rng=2)
    parts = composed()
    assert isinstance(parts, nn.Transformer)
    assert list(parts.parameters()) == list(whole.parameters())
    parts.load_state_dict(whole.state_dict())
    source, target = inputs()
    masks = {**LENGTHS, "causal": True, "memory_mask": np.random.default_rng(0).random((9, 11)) < 0.7}
    expected = whole(source, target, **masks)
    assert same_bits(parts(source, target, **masks), expected)
    assert same_bits(parts(source, target, **masks, out=target.copy()), expected)

    y, saved = parts.forward(source, target, **masks)
    other, other_saved = whole.forward(source, target, **masks)
    assert same_bits(y, other)
    assert saved.nbytes == other_saved.nbytes
    d_y = normal(y.shape, seed=3)
    d_inputs, grads = parts.backward(saved, d_y)
    other_inputs, other_grads = whole.backward(other_saved, d_y)
    for one, two in zip(d_inputs, other_inputs, strict=True):
        assert same_bits(one, two)
    assert list(grads) == list(other_grads)
    assert all(same_bits(grads[name], other_grads[name]) for name in grads)


def test_the_halves_of_a_call_and_its_weights():
    model = composed()
    source, target = inputs()
    memory = model.encode(source, source_lengths=LENGTHS["source_lengths"])
    y, weights = model(source, target, **LENGTHS, causal=True, return_weights=(-1,))
    assert same_bits(model.decode(target, memory, **LENGTHS, causal=True), y)
    assert weights.encoder[-1].shape == (3, 4, 11, 11)
    assert weights.decoder[-1].multihead_attn.shape == (3, 4, 9, 11)


def test_a_half_that_is_not_given_is_as_the_arguments_say():
    encoder, _ = halves()
    model = nn.Transformer(
        24, 4, 5, 2, 33, norm_first=True, norm="rms", bias=False, custom_encoder=encoder, rng=3
    )
    like = nn.Transformer(24, 4, 1, 2, 33, norm_first=True, norm="rms", bias=False, rng=3)
    assert model.encoder is encoder
    shapes = {name: array.shape for name, array in model.parameters().items() if name.startswith("decoder.")}
    assert shapes == {n: array.shape for n, array in like.parameters().items() if n.startswith("decoder.")}
    matrix = model.parameters()["decoder.layers.1.linear1.weight"]
    bound = (6 / (24 + 33)) ** 0.5
    assert 0.95 * bound < np.abs(matrix).max() <= bound
    again = nn.Transformer(
        24, 4, 5, 2, 33, norm_first=True, norm="rms", bias=False, custom_encoder=encoder, rng=3
    )
    assert all(same_bits(array, again.parameters()[name]) for name, array in model.parameters().items())


@pytest.mark.parametrize("custom", ["encoder", "decoder", "both"])
def test_halves_written_in_python_have_their_derivatives(custom):
    given = {f"custom_{half}": Scaling(24) for half in ("encoder", "decoder") if custom in (half, "both")}
    model = nn.Transformer(24, 4, 1, 1, 33, activation="gelu", **given, dtype=np.float64, rng=0)
    source, target = inputs(np.float64)
    errors = check_gradients(model, source, target, elements=8)
    assert max(errors.values()) < 1e-6


def test_dropout_acts_in_both_halves_and_depends_on_the_rng_alone():
    model = composed(dropout=0.4)
    source, target = inputs()
    outputs = [model.forward(source, target, rng=seed)[0] for seed in (1, 1, 2)]
    assert same_bits(outputs[0], outputs[1])
    assert not np.array_equal(outputs[0], outputs[2])
    check_gradients(composed(np.float64, dropout=0.4), *inputs(np.float64), elements=3, rng=5)


def test_a_composed_transformer_trains_and_freezes():
    model = nn.Transformer(24, 4, custom_encoder=halves()[0], custom_decoder=Scaling(24, np.float32))
    model.freeze("encoder.layers.0.*")
    assert model.frozen == {name for name in model.parameters() if name.startswith("encoder.layers.0.")}
    source, target = inputs()
    before = model.state_dict()
    optimizer = optim.AdamW(model, lr=0.01)
    total = None
    for _ in range(2):
        y, saved = model.forward(source, target, rng=0)
        _, total = model.backward(saved, y, accumulate=total)
    optimizer.step(total)
    for name, array in model.parameters().items():
        assert np.array_equal(array, before[name]) == (name in model.frozen), name
    model.unfreeze("encoder.*")
    assert not model.frozen
    with pytest.raises(TypeError, match=r"weight must be of a layer with freeze\(\), got Scaling"):
        model.freeze("decoder.weight")


def test_accumulated_gradients_are_sums():
    model = composed(np.float64)
    source, target = inputs(np.float64)

    def grads(accumulate=None):
        y, saved = model.forward(source, target)
        return model.backward(saved, y, accumulate=accumulate)[1]

    once = {name: array.copy() for name, array in grads().items()}
    twice = grads(grads())
    assert all(np.array_equal(twice[name], 2 * once[name]) for name in once)


def test_an_edit_reaches_both_halves_and_packed_copies_are_forgotten():
    model = composed()
    source, target = inputs()
    y = model(source, target)
    assert model.packed_nbytes == model.encoder.packed_nbytes + model.decoder.packed_nbytes
    with model.edit() as p:
        p["encoder.layers.0.linear1.weight"] *= 2
        p["decoder.norm.bias"] += 1
    assert not np.array_equal(model(source, target), y)
    model.release_packed()
    assert model.packed_nbytes == 0
    assert np.all(model.decoder.parameters()["norm.bias"] == 1)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_are_models_of_their_own(duplicate):
    model = nn.Transformer(24, 4, custom_encoder=halves()[0], custom_decoder=Scaling(24, np.float32))
    other = duplicate(model)
    source, target = inputs()
    assert same_bits(other(source, target), model(source, target))
    with other.edit() as p:
        p["encoder.norm.weight"][...] = 0
    assert np.all(model.parameters()["encoder.norm.weight"] == 1)


def test_repr_shows_both_halves():
    text = repr(nn.Transformer(24, 4, custom_encoder=nn.Linear(3, 24), custom_decoder=halves()[1]))
    assert text.startswith("Transformer(\n  custom_encoder=Linear(in_features=3")
    assert "\n  custom_decoder=TransformerDecoder(" in text


def test_errors_name_the_argument_what_it_must_be_and_what_it_was():
    with pytest.raises(
        TypeError, match=r"custom_decoder must have parameters\(\), as nn.Module says, got int"
    ):
        nn.Transformer(24, 4, custom_decoder=3)
    model = composed()
    source, target = inputs()
    with pytest.raises(TypeError, match="saved must be what forward returned, got list"):
        model.backward([], target)
    with pytest.raises(TypeError, match="custom_encoder and custom_decoder must be given to Transformer"):
        type("Mine", (nn.Transformer,), {})(24, 4, custom_encoder=halves()[0])
    with pytest.raises(TypeError, match=r"model must be a layer or model of blasformer, got Comp"):
        lora.add(model, "*", rank=2)
    assert lora.add(model.encoder, "*linear1", rank=2) == ["layers.0.linear1", "layers.1.linear1"]
    arrays = model.state_dict()
    del arrays["encoder.norm.weight"]
    with pytest.raises(ValueError, match=r"missing: encoder\.norm\.weight"):
        model.load_state_dict(arrays)
    y, saved = model.forward(source, target)
    model.backward(saved, y)
    with pytest.raises(RuntimeError, match="saved was used already"):
        model.backward(saved, y)


# ----------------------------------------------------------------------------------------------------------
# PyTorch, where it is installed
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # which PyTorch turns off by itself
def test_a_transformer_of_pytorch_with_custom_halves_computes_the_same_and_has_the_same_gradients():
    torch = pytest.importorskip("torch", reason="PyTorch is an optional cross-check")
    sizes = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "dtype": torch.float64}
    theirs = torch.nn.Transformer(
        24,
        4,
        num_decoder_layers=2,
        dim_feedforward=33,
        custom_encoder=torch.nn.TransformerEncoder(
            torch.nn.TransformerEncoderLayer(24, 3, 17, norm_first=True, **sizes), 2
        ),
        **sizes,
    )
    ours = nn.Transformer(
        24,
        4,
        num_decoder_layers=2,
        dim_feedforward=33,
        activation="gelu",
        custom_encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(24, 3, 17, activation="gelu", norm_first=True, dtype=float), 2
        ),
        dtype=float,
    )
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert list(arrays) == list(ours.parameters())
    ours.load_state_dict(arrays)
    source, target = inputs(np.float64)
    tensors = [torch.from_numpy(x).requires_grad_() for x in (source, target)]
    lengths = np.array([11, 3, 7])
    padding = torch.from_numpy(np.arange(11) >= lengths[:, None])
    expected = theirs(
        *tensors,
        tgt_mask=torch.triu(torch.ones(9, 9, dtype=torch.bool), 1),
        src_key_padding_mask=padding,
        memory_key_padding_mask=padding,
    )
    y, saved = ours.forward(source, target, causal=True, source_lengths=lengths)
    assert reference.error(y, expected.detach().numpy()) < 1e-13
    d_y = normal(y.shape, np.float64, 2)
    expected.backward(torch.from_numpy(d_y))
    d_inputs, grads = ours.backward(saved, d_y)
    for ours_d, tensor in zip(d_inputs, tensors, strict=True):
        assert reference.error(ours_d, tensor.grad.numpy()) < 1e-12
    for name, parameter in theirs.named_parameters():
        assert reference.error(grads[name], parameter.grad.numpy()) < 1e-12, name
