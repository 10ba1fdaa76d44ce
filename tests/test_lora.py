"""Low-rank adapters: the formula of the paper, learnt alone, merged, saved alone."""

import functools
import json
import pickle

import blasformer
import numpy as np
import pytest
import reference
from blasformer import io, lora, models, nn, optim
from derivatives import Accuracy, assert_is_derivative
from layer_cases import normal, same_bits

LAYERS = {
    "linear": lambda dtype=float: (nn.Linear(19, 11, dtype=dtype, rng=0), (3, 7, 19), {"linear": ["*"]}),
    "feed-forward": lambda dtype=float: (
        nn.FeedForward(24, 37, activation="silu", dtype=dtype, rng=0),
        (2, 9, 24),
        {"feed-forward": ["linear1", "linear2"]},
    ),
    "gated": lambda dtype=float: (
        nn.GatedFeedForward(24, 37, dtype=dtype, rng=0),
        (2, 9, 24),
        {"gated": ["gate_proj", "up_proj", "down_proj"]},
    ),
    "attention": lambda dtype=float: (
        nn.MultiheadAttention(24, 4, num_kv_heads=2, dtype=dtype, rng=0),
        (2, 9, 24),
        {"attention": ["q_proj", "v_proj", "out_proj"]},
    ),
    "pre-norm layer": lambda dtype=float: (
        nn.TransformerEncoderLayer(24, 4, 37, activation="gelu", norm_first=True, dtype=dtype, rng=0),
        (2, 9, 24),
        {"layer": ["self_attn.*", "linear1"]},
    ),
    "encoder": lambda dtype=float: (
        nn.TransformerEncoder(
            nn.TransformerEncoderLayer(24, 4, 37, activation="gelu", dtype=dtype), 2, rng=0
        ),
        (2, 9, 24),
        {"encoder": ["layers.1.self_attn.k_proj", "layers.*.linear2"]},
    ),
}

FORMULAS = {
    "linear": lambda p, x, **arguments: reference.linear(x, p["weight"], p["bias"], **arguments),
    "feed-forward": functools.partial(reference.feed_forward, activation="silu"),
    "gated": reference.gated_feed_forward,
    "attention": functools.partial(reference.multi_head_attention, num_heads=4, num_kv_heads=2),
    "pre-norm layer": functools.partial(
        reference.transformer_encoder_layer, num_heads=4, activation="gelu", norm_first=True
    ),
    "encoder": functools.partial(reference.transformer_encoder, num_layers=2, num_heads=4, activation="gelu"),
}


def adapted(name, dropout=0.0, seed=1, dtype=float):
    """A layer with adapters that do something, and a shape that it takes."""
    layer, shape, targets = LAYERS[name](dtype)
    lora.add(layer, next(iter(targets.values())), rank=3, alpha=5.0, dropout=dropout, rng=seed)
    random = np.random.default_rng(seed)
    layer.load_state_dict(
        {
            n: (random.standard_normal(a.shape) / 5).astype(dtype)
            for n, a in layer.parameters().items()
            if ".lora_B" in n or n == "lora_B.weight"
        },
        strict=False,
    )
    return layer, shape


def effective_weights(parameters, scale):
    """The state dict of a layer without adapters that computes the same: weight + scale * B A."""
    plain = {name: array.copy() for name, array in parameters.items() if "lora_" not in name}
    for name, b in parameters.items():
        if not name.endswith("lora_B.weight"):
            continue
        change = scale * b @ parameters[name.replace("lora_B", "lora_A")]
        module = name.removesuffix("lora_B.weight")
        if module + "weight" in plain:
            plain[module + "weight"] = plain[module + "weight"] + change
        else:  # rows of in_proj_weight
            prefix, projection = module.removesuffix(".").rpartition(".")[::2]
            whole = plain[f"{prefix}.in_proj_weight".lstrip(".")]
            kv_rows = (len(whole) - whole.shape[1]) // 2
            first = {"q_proj": 0, "k_proj": whole.shape[1], "v_proj": whole.shape[1] + kv_rows}[projection]
            rows = slice(first, first + len(change))
            whole[rows] = whole[rows] + change
    return plain


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_is_a_change_of_low_rank_to_the_weight(name):
    layer, shape = adapted(name)
    plain = LAYERS[name]()[0]
    plain.load_state_dict(effective_weights(layer.parameters(), 5 / 3))
    x = normal(shape, np.float64)
    np.testing.assert_allclose(layer(x), plain(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", LAYERS)
def test_new_adapters_change_nothing(name):
    layer, shape, targets = LAYERS[name]()
    x = normal(shape, np.float64)
    before = layer(x)
    lora.add(layer, next(iter(targets.values())), rank=4)
    assert same_bits(layer(x), before)


@pytest.mark.parametrize("name", LAYERS)
def test_the_dropout_of_adapters_acts_where_there_is_an_rng(name):
    layer, shape = adapted(name, 0.5)
    x = normal(shape, float)
    with_rng, again, other = (layer.forward(x, rng=seed)[0] for seed in (1, 1, 2))
    assert same_bits(layer.forward(x)[0], layer(x))
    assert same_bits(with_rng, again)
    assert not np.array_equal(with_rng, other)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_adapters_are_derivatives(name, dropout):
    layer, shape = adapted(name, dropout)
    x, d_y = normal(shape, np.float64, 3), None
    y, saved = layer.forward(x, rng=7)
    d_y = normal(y.shape, np.float64, 4)
    d_x, grads = layer.backward(saved, d_y)
    d_x = d_x[0] if isinstance(d_x, tuple) else d_x
    other = pickle.loads(pickle.dumps(layer))

    def function(arrays):
        other.load_state_dict({name: array for name, array in arrays.items() if name != "x"}, strict=False)
        return np.sum(d_y * other.forward(arrays["x"], rng=7)[0])

    trained = {name: array for name, array in layer.state_dict().items() if "lora_" in name}
    assert_is_derivative(function, {"x": x, **trained}, {"x": d_x, **grads})


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_adapters_are_as_accurate_as_numpys(name, isa):
    layer, shape = adapted(name, dtype=np.float32)
    x = normal(shape, seed=3)
    y, saved = layer.forward(x)
    d_y = normal(y.shape, seed=4)
    d_x, grads = layer.backward(saved, d_y)
    d_x = d_x[0] if isinstance(d_x, tuple) else d_x

    def formula(arrays, dtype):
        parameters = {name: array for name, array in arrays.items() if name != "x"}
        return FORMULAS[name](effective_weights(parameters, 5 / 3), arrays["x"], dtype=dtype)

    Accuracy(formula, {"x": x, **layer.state_dict()}, d_y, np.float32).check({"y": y, "x": d_x, **grads})


@pytest.mark.parametrize("name", LAYERS)
def test_merging_keeps_the_function_and_unmerging_brings_the_weights_back(name):
    layer, shape = adapted(name)
    x = normal(shape, np.float64)
    before, weights = layer(x), layer.state_dict()
    lora.merge(layer)
    lora.merge(layer)  # once is enough
    np.testing.assert_allclose(layer(x), before, rtol=0, atol=1e-13)
    np.testing.assert_allclose(pickle.loads(pickle.dumps(layer))(x), before, rtol=0, atol=1e-13)
    y, saved = layer.forward(x)
    assert not any(gradient.any() for gradient in layer.backward(saved, y)[1].values())
    lora.unmerge(layer)
    for name, array in layer.state_dict().items():
        np.testing.assert_allclose(array, weights[name], rtol=0, atol=1e-14)
    lora.merge(layer)
    lora.remove(layer)
    assert not any("lora_" in name for name in layer.parameters())
    assert not layer.frozen
    np.testing.assert_allclose(layer(x), before, rtol=0, atol=1e-13)


def test_only_adapters_and_what_was_asked_for_learn():
    layer = nn.TransformerEncoderLayer(24, 4, 37, rng=0)
    before = layer.state_dict()
    names = lora.add(layer, ["q_proj", "linear2"], rank=2, also=["norm2.*"], rng=1)
    assert names == ["self_attn.q_proj", "linear2"]
    optimizer = optim.AdamW(layer, lr=1e-2)
    x = normal((2, 5, 24))
    for step in range(3):
        y, saved = layer.forward(x, rng=step)
        _, grads = layer.backward(saved, y)
        optimizer.step(grads)
    assert len(grads) == 6
    after = layer.state_dict()
    for name, array in before.items():
        assert same_bits(array, after[name]) == (not name.startswith("norm2."))


def test_gradients_have_the_same_bits_for_any_number_of_threads():
    layer = nn.TransformerEncoderLayer(128, 4, 300, rng=0)
    lora.add(layer, "*", rank=5, dropout=0.1, rng=1)
    x, d_y = normal((3, 141, 128), seed=1), normal((3, 141, 128), seed=2)
    found = []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            y, saved = layer.forward(x, rng=3)
            d_x, grads = layer.backward(saved, d_y)
        found.append([y, d_x, *grads.values()])
    for results in found[1:]:
        assert all(same_bits(one, other) for one, other in zip(results, found[0], strict=True))


def test_what_is_saved_are_the_adapters_alone_under_the_names_of_peft(tmp_path):
    layer = nn.TransformerEncoderLayer(24, 4, 37, rng=0)
    lora.add(layer, ["q_proj"], rank=2, alpha=6, dropout=0.1, also=["norm2.*"], rng=1)
    lora.save(layer, tmp_path)
    stored = io.load_tensors(tmp_path / "adapter_model.safetensors")
    assert set(stored) == {
        "base_model.model.self_attn.q_proj.lora_A.weight",
        "base_model.model.self_attn.q_proj.lora_B.weight",
        "base_model.model.norm2.weight",
        "base_model.model.norm2.bias",
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6, 0.1)
    assert config["modules_to_save"] == ["norm2"]


def test_loaded_adapters_compute_what_the_saved_ones_did(tmp_path):
    layer, shape = adapted("encoder")
    lora.save(layer, tmp_path)
    other = LAYERS["encoder"]()[0]
    names = lora.load(other, tmp_path)
    x = normal(shape, np.float64)
    assert same_bits(other(x), layer(x))
    assert names == layer._lora["names"]
    assert other.frozen == layer.frozen


@pytest.mark.parametrize("name", LAYERS)
def test_adapters_of_any_layer_come_back(name, tmp_path):
    layer, shape = adapted(name)
    lora.save(layer, tmp_path)
    other = LAYERS[name]()[0]
    lora.load(other, tmp_path)
    assert same_bits(other(normal(shape, np.float64)), layer(normal(shape, np.float64)))
    assert other._lora == layer._lora


def test_parameters_trained_besides_come_back_as_they_were_and_alone(tmp_path):
    layer = nn.TransformerEncoderLayer(24, 4, 37, rng=0)
    lora.add(layer, ["q_proj"], rank=2, also=["linear*.bias", "norm1.weight"], rng=1)
    with layer.edit() as parameters:
        for name in layer._lora["also"]:
            parameters[name] += 1
    lora.save(layer, tmp_path)
    other = nn.TransformerEncoderLayer(24, 4, 37, rng=0)
    lora.load(other, tmp_path)
    assert other.frozen == layer.frozen
    assert all(same_bits(array, layer.parameters()[name]) for name, array in other.parameters().items())


def gpt2():
    return models.LanguageModel(11, 9, 8, 2, 2, dropout=0.0, dtype=np.float64, rng=0)


def write_peft(folder, arrays, **config):
    """A folder as PEFT writes it."""
    folder.mkdir()
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["c_attn"]}
    (folder / "adapter_config.json").write_text(json.dumps(plain | {"fan_in_fan_out": True} | config))
    stored = {f"base_model.model.{name}": array for name, array in arrays.items()}
    io.save_tensors(folder / "adapter_model.safetensors", stored)


@pytest.mark.parametrize(("use_rslora", "scale"), [(False, 3), (True, 6 / np.sqrt(2))])
def test_adapters_that_peft_wrote_for_gpt2_change_its_weights(tmp_path, use_rslora, scale):
    model, ids = gpt2(), np.arange(9)
    a, b = normal((2, 8), np.float64), normal((24, 2), np.float64)
    module = "transformer.h.1.attn.c_attn"
    arrays = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    write_peft(tmp_path / "peft", arrays, target_modules=r".*\.1\.attn\.c_attn", use_rslora=use_rslora)
    assert lora.load(model, tmp_path / "peft") == ["h.1.attn.c_attn"]
    expected = gpt2()
    with expected.edit() as parameters:
        parameters["h.1.attn.c_attn.weight"] += scale * b @ a
    np.testing.assert_allclose(model(ids), expected(ids), atol=1e-12)


def test_what_is_saved_of_gpt2_is_laid_out_as_peft_has_it(tmp_path):
    model = gpt2()
    lora.add(model, ["c_attn"], rank=2, also=["h.0.mlp.c_fc.*", "wpe.weight"], rng=0)
    lora.save(model, tmp_path)
    stored = io.load_tensors(tmp_path / "adapter_model.safetensors")
    shapes = {
        name.removeprefix("base_model.model.transformer."): array.shape for name, array in stored.items()
    }
    assert shapes == {
        **{f"h.{h}.attn.c_attn.lora_A.weight": (2, 8) for h in (0, 1)},
        **{f"h.{h}.attn.c_attn.lora_B.weight": (24, 2) for h in (0, 1)},
        "h.0.mlp.c_fc.weight": (8, 32),  # as the checkpoint has it
        "h.0.mlp.c_fc.bias": (32,),
        "wpe.weight": (9, 8),
    }
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"]
    assert config["target_modules"] == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert config["modules_to_save"] == ["transformer.h.0.mlp.c_fc", "transformer.wpe"]
    other = gpt2()
    lora.load(other, tmp_path)
    assert all(same_bits(array, model.parameters()[name]) for name, array in other.parameters().items())


def test_adapters_of_roberta_have_the_names_of_its_checkpoints(tmp_path):
    config = models.BertConfig(20, 8, 1, 2, 16, model_type="roberta")
    model = models.BertForSequenceClassification(config, 2, rng=0)
    lora.add(model, ["query", "pooler.dense"], rank=2, also=["classifier.*"], rng=1)
    lora.save(model, tmp_path)
    stored = io.load_tensors(tmp_path / "adapter_model.safetensors")
    assert {name.removeprefix("base_model.model.") for name in stored} == {
        *(f"roberta.encoder.layer.0.attention.self.query.lora_{part}.weight" for part in "AB"),
        *(f"classifier.dense.lora_{part}.weight" for part in "AB"),
        *(f"classifier.out_proj.{part}" for part in ("weight", "bias")),
    }
    other = models.BertForSequenceClassification(config, 2, rng=0)
    assert lora.load(other, tmp_path) == model._lora["names"]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda config, arrays: config.update(peft_type="IA3"), "peft_type must be 'LORA', got 'IA3'"),
        (lambda config, arrays: config.update(use_dora=True), "use_dora must be False, got True"),
        (lambda config, arrays: config.pop("r"), "lacks r"),
        (
            lambda config, arrays: config.update(target_modules=["q_proj", "linear1"]),
            "missing: base_model.model.linear1.lora_A.weight, base_model.model.linear1.lora_B.weight",
        ),
        (lambda config, arrays: config.update(target_modules=[3]), "target_modules must hold names, got"),
        (lambda config, arrays: config.update(r="2"), "adapter_config.json: r must be an integer, got str"),
        (lambda config, arrays: config.update(r=0), "rank must be positive, got 0"),
        (lambda config, arrays: config.update(lora_alpha=None), "lora_alpha must be a number, got NoneType"),
        (lambda config, arrays: config.update(lora_dropout=""), "lora_dropout must be a number, got str"),
        (lambda config, arrays: config.update(use_rslora="no"), "use_rslora must be a bool, got str"),
        (lambda config, arrays: config.update(use_dora=0), "use_dora must be False, got 0"),
        (lambda config, arrays: config.update(target_modules=3), "target_modules must hold names, got 3"),
        (lambda config, arrays: config.update(modules_to_save={}), "modules_to_save must hold names, got {}"),
        (lambda config, arrays: config.update(init_lora_weights=1), "init_lora_weights must be one that"),
        (lambda config, arrays: config.update(alpha_pattern={"q_proj": 3}), "alpha_pattern must be {}, got"),
        (
            lambda config, arrays: config.update(init_lora_weights="pissa"),
            "init_lora_weights must be one that",
        ),
        (lambda config, arrays: arrays.clear(), "missing: base_model.model.self_attn.q_proj.lora_A.weight"),
        (
            lambda config, arrays: (config.update(target_modules=".*nothing"), arrays.clear()),
            "there are no adapters",
        ),
        (
            lambda config, arrays: arrays.update({n: a.astype(np.int64) for n, a in arrays.items()}),
            "not floating point: base_model.model.self_attn.q_proj.lora_A.weight",
        ),
        (lambda config, arrays: config.update(r=3), "misshapen: .*lora_A.weight"),
        (lambda config, arrays: arrays.popitem(), "missing: base_model.model"),
        (lambda config, arrays: arrays.update(more=np.zeros(2)), "unexpected: more"),
    ],
)
def test_adapters_that_do_not_fit_change_nothing(spoil, text, tmp_path):
    layer = nn.TransformerEncoderLayer(24, 4, 37, rng=0)
    lora.add(layer, ["q_proj"], rank=2, rng=1)
    lora.save(layer, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    arrays = dict(io.load_tensors(tmp_path / "adapter_model.safetensors"))
    spoil(config, arrays)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    io.save_tensors(tmp_path / "adapter_model.safetensors", arrays)
    other = nn.TransformerEncoderLayer(24, 4, 37, rng=2)
    other.freeze("norm1.*")
    before = other.state_dict()
    with pytest.raises(ValueError, match=text):
        lora.load(other, tmp_path)
    assert all(same_bits(array, before[name]) for name, array in other.state_dict().items())
    assert other.state_dict().keys() == before.keys()
    assert other.frozen == {"norm1.weight", "norm1.bias"}


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda layer: lora.add(layer, "q"),
            ValueError,
            "must match linear layers, got 'q'; there are",
        ),
        (lambda layer: lora.add(layer, "linear1", rank=0), ValueError, "rank must be positive, got 0"),
        (lambda layer: lora.add(layer, "linear1", rank=2.5), TypeError, "rank must be an integer, got float"),
        (lambda layer: lora.add(layer, "linear1", alpha=np.nan), ValueError, "must be finite, got nan"),
        (
            lambda layer: lora.add(layer, "linear1", dropout=1.5),
            ValueError,
            "must lie between 0 and 1",
        ),
        (
            lambda layer: lora.add(layer, "linear1", also=["nothing"]),
            ValueError,
            "must match parameters",
        ),
        (
            lambda layer: lora.add("layer", "linear1"),
            TypeError,
            "model must be a layer or model of blasformer",
        ),
        (lambda layer: lora.add(layer, 3), TypeError, "targets must be names or patterns of names, got int"),
        (
            lambda layer: lora.add(layer, ["linear1", 3]),
            TypeError,
            "got 3 among them",
        ),
        (lambda layer: lora.add(layer, "linear1", also=3), TypeError, "also must be names or patterns"),
        (lora.merge, ValueError, "model must have adapters"),
        (lora.unmerge, ValueError, "model must have adapters"),
        (lora.remove, ValueError, "model must have adapters"),
        (lambda layer: lora.save(layer, "nowhere"), ValueError, "model must have adapters"),
    ],
)
def test_errors_name_the_argument_and_change_nothing(call, error, text):
    layer = nn.TransformerEncoderLayer(24, 4, 37, rng=0)
    with pytest.raises(error, match=text):
        call(layer)
    assert not any("lora_" in name for name in layer.parameters())
    assert not layer.frozen


def test_adapters_are_added_once():
    layer = nn.Linear(3, 4, rng=0)
    lora.add(layer, "*", rank=1)
    with pytest.raises(ValueError, match="model must have no adapters yet"):
        lora.add(layer, "*", rank=1)


def test_an_adapter_equals_its_formula_in_float32(isa):
    layer = nn.Linear(67, 35, rng=0)
    lora.add(layer, "*", rank=5, alpha=10, rng=1)
    layer.load_state_dict({"lora_B.weight": normal((35, 5))}, strict=False)
    p = layer.parameters()
    x = normal((33, 67))

    def formula(x, *, dtype):
        a, b = p["lora_A.weight"].astype(dtype), p["lora_B.weight"].astype(dtype)
        return (
            reference.linear(x, p["weight"], p["bias"], dtype=dtype)
            + dtype(2) * (x.astype(dtype) @ a.T) @ b.T
        )

    reference.assert_as_accurate_as_numpy(layer(x), formula, x)


def test_bert_names_its_projections_as_published():
    config = models.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    model = models.BertForSequenceClassification(config, 2, rng=0)
    names = lora.add(model, ["query", "value"], rank=2, also=["classifier.*"])
    assert names == [
        f"bert.encoder.layer.{layer}.attention.self.{part}" for layer in (0, 1) for part in ("query", "value")
    ]
    _, grads = model.loss_and_gradients([[1, 2, 3]], [1])
    assert set(grads) == {f"{n}.lora_{p}.weight" for n in names for p in "AB"} | {
        "classifier.weight",
        "classifier.bias",
    }
