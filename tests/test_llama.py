"""models.Llama: its formula, its gradients, generation with rotary positions, and the folders it lies in."""

import json
import pickle

import blasformer
import checkpoint_files
import ml_dtypes
import numpy as np
import pytest
import reference
from blasformer import lora, models, optim
from derivatives import Accuracy, assert_is_derivative
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import same_bits, shaken

VOCABULARY, LONGEST = 29, 40
VARIANTS = {
    "Llama": {},
    "Qwen2": {"projection_bias": True, "tied": True, "rotary_base": 500.0},
    "a head of its own for each, recomputed": {"num_kv_heads": None, "num_layers": 1, "recompute": True},
    "one head for all, gelu": {"num_kv_heads": 1, "activation": "gelu", "rms_norm_eps": 1e-3},
}
SEGMENTS = np.array([[0] * 5 + [1] * 9 + [2] * 3, [4] * 11 + [1] * 1 + [4] * 5, [3] * 17])
MASKS = {
    "no mask": {},
    "lengths": {"lengths": np.array([17, 3, 11])},
    "segments and lengths": {"segments": SEGMENTS, "lengths": np.array([15, 12, 1])},
}


def make(dtype=np.float64, **changes):
    """A model of which no weight is zero or one, and whose attention is far from uniform."""
    sizes = {"d_model": 24, "nhead": 4, "num_layers": 2, "dim_feedforward": 37, "num_kv_heads": 2} | changes
    model = models.Llama(VOCABULARY, LONGEST, **sizes, dtype=dtype, rng=1)
    return shaken(model)


def random_ids(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape)


def formula(model, ids, parameters=None, dtype=np.float64, **masks):
    arguments = model._arguments
    return reference.llama(
        model.state_dict() if parameters is None else parameters,
        ids,
        num_heads=4,
        num_kv_heads=arguments["num_kv_heads"] or 4,
        base=arguments["rotary_base"],
        eps=arguments["rms_norm_eps"],
        activation=arguments["activation"],
        dtype=dtype,
        **masks,
    )


# ----------------------------------------------------------------------------------------------------------
# Results and gradients
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_as_accurate_as_numpy(variant, masks, isa):
    model, ids = make(np.float32, **VARIANTS[variant]), random_ids(3, 17)
    logits = model(ids, **MASKS[masks])
    is_token = np.arange(17) < MASKS[masks].get("lengths", np.full(3, 17))[:, None]

    def of_tokens(parameters, dtype):
        return formula(model, ids, parameters, dtype, **MASKS[masks])[is_token]

    reference.assert_as_accurate_as_numpy(logits[is_token], of_tokens, model.state_dict())


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_is_the_formula_to_float64(variant):
    model, ids = make(**VARIANTS[variant]), random_ids(2, 13)
    np.testing.assert_allclose(model(ids), formula(model, ids), rtol=0, atol=1e-11)
    assert same_bits(model(ids[0]), model(ids[:1])[0])


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_loss_are_as_accurate_as_numpys(variant, masks):
    model = make(np.float32, **VARIANTS[variant])
    ids, targets = random_ids(3, 17), random_ids(3, 17, seed=1)
    lengths = MASKS[masks].get("lengths", np.full(3, 17))
    counted = np.where(np.arange(17) < lengths[:, None], targets, -100)

    def function(parameters, dtype):
        logits = formula(model, ids, parameters, dtype, **MASKS[masks])
        return reference.cross_entropy(logits, counted, dtype=dtype)[0]

    accuracy = Accuracy(function, model.state_dict(), 1, np.float32)
    accuracy.check(model.loss_and_gradients(ids, targets, **MASKS[masks])[1])


def test_gradients_with_dropout_are_derivatives_for_the_same_draw():
    model, ids = make(attention_dropout=0.3), random_ids(2, 9)
    parameters = model.state_dict()

    def function(arrays):
        model.load_state_dict(arrays)
        return model.loss_and_gradients(ids, rng=3)[0]

    grads = model.loss_and_gradients(ids, rng=3)[1]
    assert function(parameters) != model.loss(ids)
    assert_is_derivative(function, parameters, grads)


def test_forward_and_backward_give_the_gradients_of_the_loss():
    model, ids, targets = make(), random_ids(2, 9), random_ids(2, 9, seed=1)
    logits, saved = model.forward(ids)
    loss, d_logits = blasformer.cross_entropy(logits, targets)
    _, grads = model.backward(saved, d_logits)
    own_loss, own_grads = model.loss_and_gradients(ids, targets)
    assert own_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(own_grads[name], gradient, atol=1e-12)


def test_results_have_the_same_bits_for_every_number_of_threads():
    model, ids, found = make(np.float32), random_ids(3, 33), []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            loss, grads = model.loss_and_gradients(ids)
            found.append([np.array(loss), model(ids), *grads.values()])
    for results in found[1:]:
        assert all(same_bits(one, other) for one, other in zip(results, found[0], strict=True))


def test_gradients_are_added_to_the_arrays_that_are_given():
    model, ids = make(), random_ids(3, 9)
    _, grads = model.loss_and_gradients(ids)
    sums = {name: np.ones_like(array) for name, array in model.parameters().items()}
    _, returned = model.loss_and_gradients(ids, accumulate=sums)
    for name, gradient in grads.items():
        assert returned[name] is sums[name]
        np.testing.assert_allclose(sums[name], gradient + 1, atol=1e-12)


@pytest.mark.parametrize(
    "frozen", [["embed_tokens.*"], ["*.q_proj.*", "*.mlp.*"], ["embed_tokens.*", "layers.0.*"], ["*norm*"]]
)
def test_frozen_parameters_have_no_gradients_and_the_others_are_the_same(frozen):
    model, ids = make(), random_ids(2, 9)
    _, whole = model.loss_and_gradients(ids)
    model.freeze(*frozen)
    _, grads = model.loss_and_gradients(ids)
    assert set(grads) == set(whole) - model.frozen
    assert all(same_bits(gradient, whole[name]) for name, gradient in grads.items())


def test_a_small_model_learns_a_few_sequences_by_heart():
    model = models.Llama(VOCABULARY, 16, 32, 4, 2, num_kv_heads=2, rng=0)
    ids, optimizer = random_ids(2, 12), optim.AdamW(model, lr=1e-2)
    for _ in range(80):
        optimizer.step(model.loss_and_gradients(ids)[1])
    assert model.loss(ids) < 0.05
    assert model.generate(ids[0, :3], 9).tolist() == ids[0, 3:].tolist()


def test_adapters_learn_alone_and_come_back(tmp_path):
    model, ids = make(), random_ids(2, 9)
    frozen = model.state_dict()
    names = lora.add(model, ["q_proj", "v_proj", "o_proj", "down_proj"], rank=2, rng=0)
    assert len(names) == 2 * 4
    optimizer = optim.AdamW(model, lr=1e-2)
    for _ in range(3):
        optimizer.step(model.loss_and_gradients(ids)[1])
    assert all(same_bits(array, model.parameters()[name]) for name, array in frozen.items())
    lora.save(model, tmp_path)
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in blasformer.io.load_tensors(
        tmp_path / "adapter_model.safetensors"
    )
    other = make()
    assert lora.load(other, tmp_path) == names
    assert same_bits(other(ids), model(ids))
    assert model.generate(ids[0], 5).tolist() == by_whole_passes(model, ids[0], 5)
    lora.merge(model)
    np.testing.assert_allclose(model(ids), other(ids), atol=1e-11)


# ----------------------------------------------------------------------------------------------------------
# Generation
# ----------------------------------------------------------------------------------------------------------


def by_whole_passes(model, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(model(np.array(tokens))[-1].argmax()))
    return [int(token) for token in tokens[len(prompt) :]]


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_generated_is_what_whole_passes_would_choose(variant):
    model = make(**VARIANTS[variant])
    prompts = [random_ids(length, seed=length) for length in (1, 7, 12)]
    generated = model.generate(prompts, 15)
    assert [new.tolist() for new in generated] == [by_whole_passes(model, prompt, 15) for prompt in prompts]


def test_tokens_may_be_added_several_at_a_time():
    model, ids = make(), random_ids(2, 11)
    whole = model(ids)
    cache = model._held.new_cache(2, 11)
    np.testing.assert_allclose(cache.add(ids[:, :4], [4, 2])[0], whole[0, 3], atol=1e-12)
    added = np.stack([ids[0, 4:9], ids[1, 2:7]])
    logits = cache.add(added, [5, 3])
    np.testing.assert_allclose(logits, [whole[0, 8], whole[1, 4]], atol=1e-12)
    cache.choose([1])
    np.testing.assert_allclose(cache.add(ids[1:, 5:6], [1])[0], whole[1, 5], atol=1e-12)


# ----------------------------------------------------------------------------------------------------------
# Folders
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_model_is_loaded_as_it_was(tmp_path, variant, dtype):
    model, ids = make(dtype, **VARIANTS[variant]), random_ids(2, 9)
    model.save(tmp_path)
    for kind in (models.LanguageModel, models.Llama):
        loaded = kind.from_pretrained(tmp_path)
        assert type(loaded) is models.Llama
        assert loaded._sizes() == model._sizes() | {"recompute": False}
        assert same_bits(loaded(ids), model(ids))
    restored = pickle.loads(pickle.dumps(model))
    assert restored._arguments == model._arguments
    assert same_bits(restored(ids), model(ids))


PUBLISHED_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 24,
    "intermediate_size": 37,
    "max_position_embeddings": LONGEST,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 500.0,
    "tie_word_embeddings": False,
    "vocab_size": VOCABULARY,
}


def published_tensors(dtype=np.float32):
    """A checkpoint as it is published."""
    random = np.random.default_rng(5)
    shapes = {"model.embed_tokens.weight": (VOCABULARY, 24), "lm_head.weight": (VOCABULARY, 24)}
    for i in range(2):
        shapes |= {f"model.layers.{i}.self_attn.{name}_proj.weight": (24, 24) for name in "qo"}
        shapes |= {f"model.layers.{i}.self_attn.{name}_proj.weight": (12, 24) for name in "kv"}
        shapes |= {f"model.layers.{i}.mlp.{name}_proj.weight": (37, 24) for name in ("gate", "up")}
        shapes[f"model.layers.{i}.mlp.down_proj.weight"] = (24, 37)
    tensors = {name: 0.4 * random.standard_normal(shape) for name, shape in shapes.items()}
    norms = ["model.norm"] + [
        f"model.layers.{i}.{name}"
        for i in range(2)
        for name in ("input_layernorm", "post_attention_layernorm")
    ]
    tensors |= {f"{name}.weight": 1 + 0.3 * random.standard_normal(24) for name in norms}
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def publish(folder, tensors=None, **config):
    (folder / "config.json").write_text(json.dumps(PUBLISHED_CONFIG | config))
    checkpoint_files.save(folder / "model.safetensors", published_tensors() if tensors is None else tensors)
    return folder


@pytest.mark.parametrize("stored", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_published_checkpoint_computes_its_formula(tmp_path, stored):
    tensors, ids = published_tensors(stored), random_ids(2, 13)
    old = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    model = models.LanguageModel.from_pretrained(publish(tmp_path, tensors | old))
    assert model.dtype == (np.float64 if stored == np.float64 else np.float32)
    wide = {name.removeprefix("model."): tensor.astype(np.float64) for name, tensor in tensors.items()}

    def function(dtype):
        return reference.llama(wide, ids, num_heads=4, num_kv_heads=2, base=500.0, eps=1e-5, dtype=dtype)

    if stored == np.float64:
        np.testing.assert_allclose(model(ids), function(np.float64), rtol=0, atol=1e-11)
    else:
        reference.assert_as_accurate_as_numpy(model(ids), function)


def test_the_base_is_where_newer_files_have_it(tmp_path):
    old = models.LanguageModel.from_pretrained(publish(tmp_path))
    parameters = {"rope_type": "default", "rope_theta": 500.0}
    new = models.LanguageModel.from_pretrained(publish(tmp_path, rope_theta=None, rope_parameters=parameters))
    assert old._arguments == new._arguments


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "bert"}, "model_type must be one of gpt2, llama, mistral, qwen2 for LanguageModel"),
        ({"model_type": ["llama"]}, "model_type must be one of"),
        ({"hidden_size": None}, "hidden_size must be an integer, got NoneType"),
        ({"num_attention_heads": 5}, "d_model must be a multiple of nhead = 5, got 24"),
        ({"num_key_value_heads": 3}, "num_kv_heads must divide num_heads = 4, got 3"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 1000, got 1000000000"),
        ({"num_hidden_layers": 3}, "missing: layers.2.input_layernorm.weight"),
        ({"vocab_size": 7}, r"misshapen: embed_tokens.weight \(29, 24\) instead of \(7, 24\)"),
        ({"hidden_act": "mish"}, "hidden_act must be one of silu, gelu"),
        ({"hidden_act": {}}, "hidden_act must be one of silu, gelu"),
        ({"attention_bias": True}, "attention_bias must be False, got True"),
        ({"head_dim": 8}, "head_dim must be hidden_size / num_attention_heads, got 8"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling must be those of rope_type 'default', got"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling must be those of rope_type 'default', got 'lin"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object or null"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor must be 1, got 0.5"),
        ({"rope_theta": 0}, "rope_theta must be a finite number above 0, got 0"),
        ({"rms_norm_eps": -1}, "rms_norm_eps must be finite and at least 0, got -1"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding_window must be null, or"),
        (
            {"model_type": "mistral", "num_key_value_heads": None},
            "num_key_value_heads must be an integer, got NoneType",
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types must all be 'full_attention'",
        ),
        ({"model_type": "qwen2"}, "missing: layers.0.self_attn.k_proj.bias"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, text):
    publish(tmp_path, **change)
    with pytest.raises(ValueError, match=text):
        models.LanguageModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings must be a bool, got str"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings must be a bool, got int"),
        ({"attention_bias": 0}, "attention_bias must be False, got 0"),
        ({"mlp_bias": ""}, "mlp_bias must be False, got ''"),
        ({"use_sliding_window": "false"}, "use_sliding_window must be a bool, got str"),
        ({"layer_types": 0}, "layer_types must all be 'full_attention', got 0"),
        ({"rope_parameters": []}, r"rope_parameters must be an object or null, got \[\]"),
        ({"rope_scaling": False}, "rope_scaling must be an object or null, got False"),
        (
            {"rope_parameters": {"partial_rotary_factor": "1"}},
            "partial_rotary_factor must be a number, got str",
        ),
        ({"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta must be a number, got str"),
    ],
)
def test_a_value_of_another_type_in_a_configuration_is_named(tmp_path, change, text):
    publish(tmp_path, **change)
    with pytest.raises(ValueError, match=f"config.json: {text}"):
        models.LanguageModel.from_pretrained(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


@given(changes=st.dictionaries(st.sampled_from(sorted(PUBLISHED_CONFIG)), JSON, max_size=3))
def test_any_configuration_loads_or_is_refused(tmp_path, changes):
    publish(tmp_path, **changes)
    try:
        outcome = models.LanguageModel.from_pretrained(tmp_path)
    except (ValueError, MemoryError) as error:
        outcome = str(error)
    assert isinstance(outcome, models.LanguageModel) or str(tmp_path) in outcome


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size must be positive, got 0"),
        ({"nhead": 5}, ValueError, "d_model must be a multiple of nhead = 5, got 12"),
        ({"nhead": 4}, ValueError, "dims of rotary must be positive, even"),
        ({"num_kv_heads": 0}, ValueError, "num_kv_heads must divide"),
        ({"attention_dropout": 1.5}, ValueError, "attention_dropout must lie between 0 and 1, got 1.5"),
        ({"rotary_base": np.inf}, ValueError, "base of rotary must be a finite number above 0, got inf"),
        ({"num_kv_heads": 1.0}, TypeError, "num_kv_heads must be an integer, got float"),
        ({"dtype": np.float16}, TypeError, "dtype must be float32 or float64, got float16"),
    ],
)
def test_sizes_that_make_no_model_are_named(change, error, text):
    sizes = {"vocab_size": 5, "max_length": 6, "d_model": 12, "nhead": 2, "num_layers": 1} | change
    with pytest.raises(error, match=text):
        models.Llama(**sizes)
