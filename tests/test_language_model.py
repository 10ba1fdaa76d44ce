"""models.LanguageModel: GPT-2's formula, its loss and gradients, training, and the folders it lies in."""

import json
import pickle
import sys

import blasformer
import checkpoint_files
import ml_dtypes
import numpy as np
import pytest
import reference
from blasformer import lora, models, nn, optim
from derivatives import Accuracy, assert_is_derivative
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import same_bits, shaken

VOCABULARY, LONGEST = 29, 40


def make(dtype=np.float64, **changes):
    """A model of which no weight is zero or one, and whose attention is far from uniform."""
    sizes = {"d_model": 24, "nhead": 3, "num_layers": 2, "dim_feedforward": 37, "dropout": 0.0} | changes
    model = models.LanguageModel(VOCABULARY, LONGEST, **sizes, dtype=dtype, rng=1)
    return shaken(model)


def random_ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def formula(model, ids, parameters=None, dtype=np.float64, **masks):
    parameters = model.state_dict() if parameters is None else parameters
    arguments = model._arguments
    return reference.language_model(
        parameters,
        ids,
        num_heads=arguments["nhead"],
        activation=arguments["activation"],
        dtype=dtype,
        **masks,
    )


SEGMENTS = np.array([[0] * 5 + [1] * 9 + [2] * 3, [4] * 11 + [1] * 1 + [4] * 5, [3] * 17])
MASKS = {
    "no mask": {},
    "lengths": {"lengths": np.array([17, 3, 11])},
    "segments": {"segments": SEGMENTS},
    "segments and lengths": {"segments": SEGMENTS, "lengths": np.array([15, 12, 1])},
}
VARIANTS = {
    "GPT-2": {},
    "untied": {"tied": False},
    "relu, one block, recomputed": {"activation": "relu", "num_layers": 1, "recompute": True},
}


# ----------------------------------------------------------------------------------------------------------
# Results
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_as_accurate_as_numpy(variant, masks, isa):
    model, ids = make(np.float32, **VARIANTS[variant]), random_ids(3, 17)
    logits = model(ids, **MASKS[masks])
    lengths = MASKS[masks].get("lengths", np.full(3, 17))
    is_token = np.arange(17) < lengths[:, None]

    def of_tokens(parameters, dtype):
        return formula(model, ids, parameters, dtype, **MASKS[masks])[is_token]

    reference.assert_as_accurate_as_numpy(logits[is_token], of_tokens, model.state_dict())


def test_attention_weights_are_those_of_the_formula():
    model, ids = make(), random_ids(2, 9)
    logits, weights = model(ids, return_weights={-1: blasformer.WeightSelection(heads=[1])})
    assert same_bits(logits, model(ids))
    assert weights[-1].shape == (2, 1, 9, 9)
    np.testing.assert_allclose(weights[-1].sum(-1), 1)
    assert not np.triu(weights[-1], 1).any()
    assert model(ids[0], return_weights=True)[1][0].shape == (3, 9, 9)


def test_one_sequence_needs_no_axis_for_the_batch():
    model, ids = make(), random_ids(13)
    assert same_bits(model(ids), model(ids[None])[0])
    logits, saved = model.forward(ids)
    _, grads = model.backward(saved, np.ones_like(logits))
    assert grads["wte.weight"].shape == (VOCABULARY, 24)
    assert model.loss(ids, lengths=7) == model.loss(ids[None], lengths=[7])


def test_what_lies_beyond_a_length_is_not_looked_at():
    model, ids = make(), random_ids(2, 9)
    wild = ids.copy()
    wild[0, 4:], wild[1, 7:] = -7, 10**12
    lengths = [4, 7]
    assert same_bits(model(ids, lengths=lengths)[0, :4], model(wild, lengths=lengths)[0, :4])
    assert model.loss(ids, lengths=lengths) == model.loss(wild, lengths=lengths)


def test_segments_are_sequences_of_their_own():
    model, ids = make(), random_ids(3, 17)
    logits = model(ids, segments=SEGMENTS)
    np.testing.assert_allclose(logits[0, 5:14], model(ids[0, 5:14]), atol=1e-12)
    np.testing.assert_allclose(logits[0, 14:], model(ids[0, 14:]), atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0), (0,)])
def test_empty_batches_are_legal(shape):
    model, ids = make(), np.zeros(shape, int)
    assert model(ids).shape == (*shape, VOCABULARY)
    loss, grads = model.loss_and_gradients(ids)
    assert loss == 0
    assert not any(gradient.any() for gradient in grads.values())


# ----------------------------------------------------------------------------------------------------------
# Loss and gradients
# ----------------------------------------------------------------------------------------------------------


def loss_formula(model, ids, parameters, *, targets, label_smoothing=0.0, dtype=np.float64, **masks):
    logits = formula(model, ids, parameters, dtype, **masks)
    return reference.cross_entropy(logits, targets, label_smoothing=label_smoothing, dtype=dtype)[0]


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_derivatives_of_the_loss(variant, masks):
    model, ids, targets = make(**VARIANTS[variant]), random_ids(3, 17), random_ids(3, 17, seed=1)
    arguments = MASKS[masks]
    counted = np.where(np.arange(17) < arguments.get("lengths", np.full(3, 17))[:, None], targets, -100)
    counted[0, 2] = targets[0, 2] = -100
    loss, grads = model.loss_and_gradients(ids, targets, label_smoothing=0.1, **arguments)

    def function(parameters):
        return loss_formula(model, ids, parameters, targets=counted, label_smoothing=0.1, **arguments)

    assert loss == pytest.approx(function(model.state_dict()), rel=1e-12)
    assert model.loss(ids, targets, label_smoothing=0.1, **arguments) == pytest.approx(loss, rel=1e-12)
    assert_is_derivative(function, model.state_dict(), grads)


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_loss_are_as_accurate_as_numpys(variant, masks, isa):
    model = make(np.float32, **VARIANTS[variant])
    ids, targets = random_ids(3, 17), random_ids(3, 17, seed=1)
    lengths = MASKS[masks].get("lengths", np.full(3, 17))
    counted = np.where(np.arange(17) < lengths[:, None], targets, -100)

    def function(parameters, dtype):
        return loss_formula(model, ids, parameters, targets=counted, dtype=dtype, **MASKS[masks])

    accuracy = Accuracy(function, model.state_dict(), 1, np.float32)
    accuracy.check(model.loss_and_gradients(ids, targets, **MASKS[masks])[1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_and_backward_give_the_gradients_of_the_loss(variant):
    model, ids, targets = make(**VARIANTS[variant]), random_ids(2, 9), random_ids(2, 9, seed=1)
    logits, saved = model.forward(ids, rng=3)
    loss, d_logits = blasformer.cross_entropy(logits, targets)
    _, grads = model.backward(saved, d_logits)
    own_loss, own_grads = model.loss_and_gradients(ids, targets, rng=3)
    assert own_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(own_grads[name], gradient, atol=1e-12)


@pytest.mark.parametrize("masks", MASKS)
def test_the_target_of_a_token_is_the_next_one(masks):
    model, ids = make(), random_ids(3, 17)
    arguments = dict(MASKS[masks])
    targets = np.where(np.arange(1, 17) < arguments.get("lengths", np.full(3, 17))[:, None], ids[:, 1:], -100)
    if "segments" in arguments:
        segments = arguments["segments"]
        targets[segments[:, 1:] != segments[:, :-1]] = -100
        arguments["segments"] = segments[:, :-1]
    if "lengths" in arguments:
        arguments["lengths"] = np.maximum(arguments["lengths"] - 1, 0)
    loss, grads = model.loss_and_gradients(ids, **MASKS[masks])
    expected, expected_grads = model.loss_and_gradients(ids[:, :-1], targets, **arguments)
    assert loss == expected
    assert all(same_bits(grads[name], gradient) for name, gradient in expected_grads.items())
    assert model.target_count(ids, **MASKS[masks]) == (targets != -100).sum()


def test_the_loss_of_many_logits_is_computed_in_parts():
    model = models.LanguageModel(40_000, 600, d_model=4, nhead=1, num_layers=1, dropout=0, dtype=float, rng=0)
    ids = np.random.default_rng(0).integers(0, 40_000, (1, 600))
    loss, grads = model.loss_and_gradients(ids)
    logits, saved = model.forward(ids[:, :-1])
    expected, d_logits = blasformer.cross_entropy(logits, ids[:, 1:])
    _, expected_grads = model.backward(saved, d_logits)
    assert loss == pytest.approx(expected, rel=1e-12)
    for name, gradient in expected_grads.items():
        np.testing.assert_allclose(grads[name], gradient, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_same_bits_for_every_number_of_threads(dtype):
    model, ids = make(dtype, dropout=0.2), random_ids(3, 33)
    results = []
    for count in (1, 2, 3):
        with blasformer.num_threads(count):
            results.append((model(ids), *model.loss_and_gradients(ids, lengths=[33, 1, 20], rng=5)))
    for logits, loss, grads in results[1:]:
        assert same_bits(logits, results[0][0])
        assert loss == results[0][1]
        assert all(same_bits(gradient, results[0][2][name]) for name, gradient in grads.items())


def test_each_part_has_its_own_dropout(tmp_path):
    ids = random_ids(2, 9)

    def drops(**dropout):
        model = make(**dropout)
        return model.loss_and_gradients(ids, rng=1)[0] != model.loss(ids)

    assert not drops()
    assert drops(embedding_dropout=0.2)
    assert drops(attention_dropout=0.2)
    assert drops(dropout=0.2, embedding_dropout=0.0, attention_dropout=0.0)
    model = make(dropout=0.1, embedding_dropout=0.2, attention_dropout=0.3)
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert [config[f"{name}_pdrop"] for name in ("resid", "embd", "attn")] == [0.1, 0.2, 0.3]
    assert models.LanguageModel.from_pretrained(tmp_path)._arguments == model._arguments


def test_dropout_is_drawn_from_rng_alone():
    model, ids = make(dropout=0.3), random_ids(2, 9)
    losses = [model.loss_and_gradients(ids, rng=rng)[0] for rng in (None, 1, 1, 2)]
    assert losses[0] == model.loss(ids)
    assert losses[1] == losses[2]
    assert len(set(losses)) == 3
    generator = np.random.default_rng(1)
    assert [model.loss_and_gradients(ids, rng=generator)[0] for _ in range(2)] != [losses[1]] * 2


def test_gradients_with_dropout_are_derivatives_for_the_same_draw():
    model, ids = make(dropout=0.3), random_ids(2, 9)
    _, grads = model.loss_and_gradients(ids, rng=7)

    def function(parameters):
        other = models.LanguageModel(**model._arguments)
        other.load_state_dict(parameters)
        return other.loss_and_gradients(ids, rng=7)[0]

    assert_is_derivative(function, model.state_dict(), grads)


def test_one_step_may_consist_of_several_calls():
    model, ids = make(np.float32), random_ids(5, 11)
    lengths = np.array([11, 2, 5, 1, 8])
    loss, grads = model.loss_and_gradients(ids, lengths=lengths)
    count = model.target_count(ids, lengths=lengths)
    assert count == (lengths - 1).sum()
    losses, total = [], None
    for part in (slice(0, 2), slice(2, 5)):
        part_loss, total = model.loss_and_gradients(
            ids[part], lengths=lengths[part], divisor=count, accumulate=total
        )
        losses.append(part_loss)
    assert sum(losses) == pytest.approx(loss, rel=1e-5)
    for name, gradient in grads.items():
        np.testing.assert_allclose(total[name], gradient, atol=1e-5)


@pytest.mark.parametrize("layout", ["dense", "strided"])
def test_gradients_are_added_to_the_arrays_that_are_given(layout):
    model, ids = make(tied=False), random_ids(2, 9)
    _, grads = model.loss_and_gradients(ids)
    total = {name: np.ones_like(gradient) for name, gradient in grads.items()}
    if layout == "strided":
        total["ln_f.bias"] = np.ones(48)[::2]
    _, result = model.loss_and_gradients(ids, accumulate=total)
    for name, gradient in grads.items():
        assert result[name] is total[name]
        np.testing.assert_allclose(total[name], 1 + gradient, atol=1e-14)


def test_ignored_targets_alone_give_no_loss_and_zero_gradients():
    model, ids = make(), random_ids(2, 9)
    loss, grads = model.loss_and_gradients(ids, np.full((2, 9), -100))
    assert loss == 0
    assert set(grads) == set(model.parameters())
    assert not any(gradient.any() for gradient in grads.values())
    total = {name: np.ones_like(gradient) for name, gradient in grads.items()}
    model.loss_and_gradients(ids, np.full((2, 9), -100), accumulate=total)
    assert all((gradient == 1).all() for gradient in total.values())


FROZEN = {
    "the embeddings": ("wte.*", "wpe.*"),
    "all but the last block": ("wte.*", "wpe.*", "h.0.*", "lm_head.*", "ln_f.*"),
    "all but the output": ("wte.*", "wpe.*", "h.*", "ln_f.*"),
    "a block in the middle": ("h.1.*",),
    "all but the positions": ("wte.*", "h.*", "ln_f.*", "lm_head.*"),
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_parameters_have_no_gradients_and_the_others_are_the_same(frozen):
    model, ids = make(tied=False), random_ids(2, 9)
    loss, everything = model.loss_and_gradients(ids, rng=1)
    model.freeze(*FROZEN[frozen])
    same_loss, some = model.loss_and_gradients(ids, rng=1)
    assert same_loss == loss
    assert set(some) == set(everything) - model.frozen
    assert all(same_bits(gradient, everything[name]) for name, gradient in some.items())
    logits, saved = model.forward(ids)
    _, through_logits = model.backward(saved, np.ones_like(logits))
    assert set(through_logits) == set(some)
    total = {name: np.ones_like(gradient) for name, gradient in some.items()}
    model.loss_and_gradients(ids, rng=1, accumulate=total)
    for name, gradient in some.items():
        np.testing.assert_allclose(total[name], 1 + gradient, atol=1e-14)
    model.freeze()
    assert model.loss_and_gradients(ids, rng=1) == (loss, {})


def test_tied_weights_have_one_name_and_the_sum_of_both_gradients():
    tied, untied, ids = make(), make(tied=False), random_ids(2, 9)
    untied.load_state_dict({**tied.state_dict(), "lm_head.weight": tied.state_dict()["wte.weight"]})
    assert "lm_head.weight" not in tied.parameters()
    _, grads = tied.loss_and_gradients(ids)
    _, apart = untied.loss_and_gradients(ids)
    np.testing.assert_allclose(grads["wte.weight"], apart["wte.weight"] + apart["lm_head.weight"], atol=1e-14)


# ----------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_small_model_learns_a_few_sequences_by_heart(dtype):
    model = models.LanguageModel(VOCABULARY, LONGEST, 32, 4, 2, dropout=0.1, dtype=dtype, rng=0)
    optimizer, ids = optim.AdamW(model, lr=1e-2), random_ids(3, 20)
    ids[:, 0] = [0, 1, 2]
    generator = np.random.default_rng(0)
    for _ in range(80):
        _, grads = model.loss_and_gradients(ids, rng=generator)
        optimizer.step(grads)
    assert model.loss(ids) < 0.05
    np.testing.assert_array_equal(model(ids[:, :-1]).argmax(-1), ids[:, 1:])


def test_a_model_is_a_module():
    assert isinstance(make(), nn.Module)


def test_adapters_learn_alone_and_are_saved_once_they_are_merged(tmp_path):
    model, ids = make(), random_ids(2, 9)
    frozen = model.state_dict()
    names = lora.add(model, ["c_attn", "attn.c_proj", "c_fc"], rank=2, rng=0)
    assert len(names) == 2 * 3
    optimizer = optim.AdamW(model, lr=1e-2)
    before = model.loss(ids)
    for _ in range(5):
        _, grads = model.loss_and_gradients(ids)
        optimizer.step(grads)
    assert set(grads) == {f"{name}.lora_{part}.weight" for name in names for part in "AB"}
    assert model.loss(ids) < before
    assert all(same_bits(array, model.parameters()[name]) for name, array in frozen.items())
    assert model.parameters()["h.1.attn.c_attn.lora_B.weight"].shape == (72, 2)
    assert model.generate(ids[0], 5).tolist() == [
        int(model(np.concatenate([ids[0], model.generate(ids[0], count)]))[-1].argmax()) for count in range(5)
    ]
    expected = model(ids)
    lora.merge(model)
    model.save(tmp_path)
    loaded = models.LanguageModel.from_pretrained(tmp_path)
    np.testing.assert_allclose(loaded(ids), expected, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------
# Folders
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_model_is_loaded_as_it_was(tmp_path, variant, dtype):
    model, ids = make(dtype, **VARIANTS[variant]), random_ids(2, 9)
    model.save(tmp_path / "new" / "folder")
    loaded = models.LanguageModel.from_pretrained(tmp_path / "new" / "folder")
    assert loaded.dtype == dtype
    assert loaded._arguments == {**model._arguments, "recompute": False}
    assert same_bits(loaded(ids), model(ids))
    restored = pickle.loads(pickle.dumps(model))
    assert same_bits(restored(ids), model(ids))


def test_gradients_of_adapters_are_derivatives():
    model, ids = make(), random_ids(2, 9)
    lora.add(model, ["c_attn", "c_proj", "c_fc"], rank=2, rng=0)
    random = np.random.default_rng(3)
    adapters = {name: a for name, a in model.parameters().items() if ".lora_" in name}
    arrays = {name: random.standard_normal(array.shape) / 5 for name, array in adapters.items()}

    def function(arrays):
        model.load_state_dict(arrays, strict=False)
        return model.loss(ids)

    model.load_state_dict(arrays, strict=False)
    _, grads = model.loss_and_gradients(ids)
    assert_is_derivative(function, arrays, grads)


def test_a_block_with_adapters_alone_is_gone_through():
    model, ids = make(), random_ids(2, 9)
    lora.add(model, "h.0.attn.c_attn", rank=2, rng=0)
    _, grads = model.loss_and_gradients(ids)
    assert list(grads) == ["h.0.attn.c_attn.lora_A.weight", "h.0.attn.c_attn.lora_B.weight"]
    assert grads["h.0.attn.c_attn.lora_B.weight"].any()


def published_gpt2(dtype, prefix):
    """GPT-2 as it is published: matrices (inputs, outputs), query, key and value in one, causal masks."""
    random = np.random.default_rng(5)

    def normal(*shape):
        return (0.4 * random.standard_normal(shape)).astype(dtype)

    tensors = {"wte.weight": normal(VOCABULARY, 24), "wpe.weight": normal(LONGEST, 24)}
    for h in ("h.0.", "h.1."):
        for name, shape in {
            "attn.c_attn": (24, 72),
            "attn.c_proj": (24, 24),
            "mlp.c_fc": (24, 96),
            "mlp.c_proj": (96, 24),
        }.items():
            tensors |= {f"{h}{name}.weight": normal(*shape), f"{h}{name}.bias": normal(shape[1])}
        for name in ("ln_1", "ln_2"):
            tensors |= {f"{h}{name}.weight": 1 + normal(24), f"{h}{name}.bias": normal(24)}
        tensors[f"{h}attn.bias"] = np.tril(np.ones((1, 1, LONGEST, LONGEST), dtype))
    tensors |= {"ln_f.weight": 1 + normal(24), "ln_f.bias": normal(24)}
    return {prefix + name: tensor for name, tensor in tensors.items()}


PUBLISHED_CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "activation_function": "gelu_new",
    "attn_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "resid_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "n_ctx": LONGEST,
    "n_embd": 24,
    "n_head": 3,
    "n_layer": 2,
    "n_positions": LONGEST,
    "vocab_size": VOCABULARY,
}


def gpt2_of_openai(tensors, ids, dtype):
    """GPT-2 as its authors wrote it down: x @ w + b."""
    p = {name.removeprefix("transformer."): tensor.astype(dtype) for name, tensor in tensors.items()}

    def norm(name, x):
        return reference.layer_norm(x, p[f"{name}.weight"], p[f"{name}.bias"], dtype=dtype)

    def matrix(name, x):
        return x @ p[f"{name}.weight"] + p[f"{name}.bias"]

    x = p["wte.weight"][ids] + p["wpe.weight"][: ids.shape[-1]]
    for h in ("h.0", "h.1"):
        q, k, v = np.split(matrix(f"{h}.attn.c_attn", norm(f"{h}.ln_1", x)), 3, axis=-1)
        heads = [reference.split_heads(part, 3) for part in (q, k, v)]
        scores = heads[0] @ np.swapaxes(heads[1], -1, -2) / np.sqrt(dtype(8))
        scores = np.where(np.tri(ids.shape[-1], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + matrix(f"{h}.attn.c_proj", reference.merge_heads(weights @ heads[2]))
        hidden = reference.ACTIVATIONS["gelu_tanh"](
            matrix(f"{h}.mlp.c_fc", norm(f"{h}.ln_2", x)), dtype=dtype
        )
        x = x + matrix(f"{h}.mlp.c_proj", hidden)
    return norm("ln_f", x) @ p["wte.weight"].T


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shards", [1, 3])
def test_a_published_checkpoint_computes_what_its_authors_wrote_down(tmp_path, prefix, stored, shards):
    tensors, ids = published_gpt2(stored, prefix), random_ids(2, 13)
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_CONFIG))
    if shards == 1:
        checkpoint_files.save(tmp_path / "model.safetensors", tensors)
    else:
        items = list(tensors.items())
        checkpoint_files.save_sharded(tmp_path, *(dict(items[i::shards]) for i in range(shards)))
    model = models.LanguageModel.from_pretrained(tmp_path)
    assert model.dtype == (np.float64 if stored == np.float64 else np.float32)
    exact = gpt2_of_openai(tensors, ids, np.float64)
    plain = gpt2_of_openai(tensors, ids, np.float32)
    error = np.abs(model(ids) - exact).max()
    assert error <= (1e-11 if stored == np.float64 else 2 * np.abs(plain - exact).max() + 1e-6)
    wide = models.LanguageModel.from_pretrained(tmp_path, dtype=np.float64)
    np.testing.assert_allclose(wide(ids), exact, rtol=0, atol=1e-11)
    expected = list(ids[0])
    for _ in range(4):
        expected.append(int(gpt2_of_openai(tensors, np.array(expected), np.float64)[-1].argmax()))
    assert wide.generate(ids[0], 4).tolist() == expected[len(ids[0]) :]


def test_a_folder_is_laid_out_as_gpt2_is_published(tmp_path):
    model = make()
    model.save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gpt2"
    assert (config["n_embd"], config["n_inner"], config["n_positions"]) == (24, 37, LONGEST)
    assert config["activation_function"] == "gelu_new"
    stored = blasformer.io.load_tensors(tmp_path)
    assert stored["transformer.h.0.attn.c_attn.weight"].shape == (24, 72)
    np.testing.assert_array_equal(
        stored["transformer.h.1.mlp.c_fc.weight"].T, model.parameters()["h.1.mlp.c_fc.weight"]
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_names_of_older_checkpoints_are_understood(tmp_path):
    model, ids = make(), random_ids(2, 9)
    model.save(tmp_path)
    stored = blasformer.io.load_tensors(tmp_path)
    old = {name.removeprefix("transformer."): array for name, array in stored.items()}
    old["h.0.attn.bias"] = np.ones((1, 1, LONGEST, LONGEST), np.uint8)
    old["h.0.attn.masked_bias"] = np.array(-1e4, np.float32)
    old["lm_head.weight"] = old["wte.weight"]
    blasformer.io.save_tensors(tmp_path / "model.safetensors", old)
    assert same_bits(models.LanguageModel.from_pretrained(tmp_path)(ids), model(ids))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"model_type": "bert"},
            "model_type must be one of gpt2, llama, mistral, qwen2 for LanguageModel, got",
        ),
        ({"n_embd": None}, "config.json lacks n_embd"),
        ({"n_embd": "24"}, "n_embd must be an integer, got str"),
        ({"n_head": 5}, "d_model must be a multiple of nhead = 5, got 24"),
        ({"n_layer": 3}, "missing: h.2.attn.c_attn.bias"),
        ({"n_layer": 1}, "unexpected: h.1.attn.c_attn.bias"),
        ({"vocab_size": 7}, r"misshapen: wte.weight \(29, 24\) instead of \(7, 24\)"),
        ({"activation_function": "mish"}, "activation_function must be one of gelu_new"),
        ({"activation_function": ["gelu"]}, "activation_function must be one of gelu_new"),
        (
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx must be False, got True",
        ),
        ({"scale_attn_weights": False}, "scale_attn_weights must be True, got False"),
        ({"scale_attn_weights": 1}, "scale_attn_weights must be True, got 1"),
        ({"tie_word_embeddings": "no"}, "config.json: tie_word_embeddings must be a bool, got str"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, got True"),
        ({"n_layer": 10**9}, "n_layer must be at most 1000, got 1000000000"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, text):
    make().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    with pytest.raises(ValueError, match=text):
        models.LanguageModel.from_pretrained(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


@given(changes=st.dictionaries(st.sampled_from(sorted(PUBLISHED_CONFIG)), JSON, max_size=3))
def test_any_configuration_loads_or_is_refused(tmp_path, changes):
    if not (tmp_path / "model.safetensors").exists():
        checkpoint_files.save(tmp_path / "model.safetensors", published_gpt2(np.float32, ""))
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_CONFIG | changes))
    try:
        outcome = models.LanguageModel.from_pretrained(tmp_path)
    except (ValueError, MemoryError) as error:
        outcome = str(error)
    assert isinstance(outcome, models.LanguageModel) or str(tmp_path) in outcome


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: models are read"):
        models.LanguageModel.from_pretrained(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_written_keeps_what_it_held(tmp_path, monkeypatch):
    model = make()
    model.save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(*arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr("blasformer.io.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        make(num_layers=1).save(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"ids": [[1.0, 2.0]]}, TypeError, "ids must be integers, got float64"),
        (
            {"ids": [[1, 2], [3]]},
            TypeError,
            "ids must be integers, got list of different lengths, which data",
        ),
        ({"ids": [[[1]]]}, ValueError, r"ids must have the shape \(batch, length\) or \(length,\), got"),
        ({"ids": [[29, 0]]}, IndexError, r"ids must be in \[0, 29\)"),
        ({"ids": [[-1, 0]]}, IndexError, r"ids must be in \[0, 29\)"),
        ({"ids": [[0] * 42]}, ValueError, "ids must have at most max_length = 40 columns, got 41"),
        ({"lengths": [3]}, ValueError, r"lengths must have the shape \(2,\) to fit ids \(2, 9\), got \(1,\)"),
        ({"lengths": [3, 10]}, ValueError, "lengths must lie between 0 and the 9 columns of ids, got 10"),
        ({"lengths": [3, -1]}, ValueError, "lengths must lie between 0 and the 9 columns of ids, got -1"),
        ({"lengths": [3.0, 1.0]}, TypeError, "lengths must be integers, got float64"),
        ({"segments": [[0, 1]]}, ValueError, r"segments must have the shape of ids \(2, 9\), got \(1, 2\)"),
        ({"targets": [[0, 1]]}, ValueError, r"targets must have the shape of ids \(2, 9\), got \(1, 2\)"),
        ({"targets": np.full((2, 9), 29)}, IndexError, r"targets must be classes in \[0, 29\)"),
        ({"targets": np.zeros((2, 9))}, TypeError, "targets must be integers, got float64"),
        ({"divisor": 0}, ValueError, "divisor must be positive, got 0"),
        ({"divisor": "5"}, TypeError, "divisor must be a number, got str"),
        ({"label_smoothing": 1.5}, ValueError, "label_smoothing must lie between 0 and 1, got 1.5"),
        ({"rng": "1"}, TypeError, "rng must be a numpy.random.Generator or an int, got str"),
        ({"accumulate": {}}, ValueError, "accumulate must have the names of the trainable parameters"),
        ({"accumulate": {3: np.ones(3)}}, ValueError, "accumulate must have the names .* differing: 3, "),
        ({"accumulate": 3}, TypeError, "accumulate must map names to arrays, got int"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, error, text):
    model = make()
    accumulate = {name: np.ones_like(array) for name, array in model.parameters().items()}
    given = {"ids": random_ids(2, 9), "accumulate": accumulate} | arguments
    with pytest.raises(error, match=text):
        model.loss_and_gradients(**given)
    assert all((array == 1).all() for array in accumulate.values())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size must be positive, got 0"),
        ({"max_length": 0}, ValueError, "max_length must be positive, got 0"),
        ({"num_layers": 0}, ValueError, "num_layers must be positive, got 0"),
        ({"d_model": 0}, ValueError, "d_model must be positive, got 0"),
        ({"nhead": 5}, ValueError, "d_model must be a multiple of nhead = 5, got 8"),
        ({"dropout": 1.5}, ValueError, "dropout must lie between 0 and 1, got 1.5"),
        ({"embedding_dropout": -1}, ValueError, "embedding_dropout must lie between 0 and 1, got -1"),
        ({"attention_dropout": "0"}, TypeError, "attention_dropout must be a number, got str"),
        ({"activation": "tanh"}, ValueError, "activation must be"),
        ({"nhead": 2.0}, TypeError, "nhead must be an integer, got float"),
        ({"dtype": np.float16}, TypeError, "dtype must be float32 or float64, got float16"),
        ({"vocab_size": sys.maxsize}, MemoryError, "not enough memory"),
        ({"d_model": 2**62}, ValueError, "dim_feedforward must fit into 64 bits"),
    ],
)
def test_sizes_that_make_no_model_are_named(change, error, text):
    sizes = {"vocab_size": 5, "max_length": 6, "d_model": 8, "nhead": 2, "num_layers": 1} | change
    with pytest.raises(error, match=text):
        models.LanguageModel(**sizes)
