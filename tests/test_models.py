"""Models: what published folders hold is what runs, and no sequence notices its neighbours."""

import copy
import io
import json
import pickle
import re
import sys
import threading
from pathlib import Path

import blasformer
import fresh_python
import ml_dtypes
import numpy as np
import pytest
import reference
import tokenizers
from blasformer import _progress
from blasformer.models import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    SentenceEncoder,
)
from checkpoint_files import save, save_sharded
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import same_bits
from reference import assert_as_accurate_as_numpy, error

CONFIG = {
    "model_type": "bert",
    "vocab_size": 67,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "hidden_act": "gelu",
    "max_position_embeddings": 37,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}
SIZES = {name: value for name, value in CONFIG.items() if name != "model_type"}
LINEARS = {
    "attention.self.query": (24, 24),
    "attention.self.key": (24, 24),
    "attention.self.value": (24, 24),
    "attention.output.dense": (24, 24),
    "intermediate.dense": (40, 24),
    "output.dense": (24, 40),
}
NORMS = ("attention.output.LayerNorm", "output.LayerNorm")


def tiny_tensors(dtype=np.float32, *, pooler=True, seed=0):
    """A BERT checkpoint of random numbers, large enough that attention is far from uniform."""
    rng = np.random.default_rng(seed)

    def random(*shape, scale):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    tensors = {
        "embeddings.word_embeddings.weight": random(67, 24, scale=1),
        "embeddings.position_embeddings.weight": random(37, 24, scale=1),
        "embeddings.token_type_embeddings.weight": random(2, 24, scale=1),
    }
    norms, linears = ["embeddings.LayerNorm"], {}
    for i in range(3):
        norms += [f"encoder.layer.{i}.{norm}" for norm in NORMS]
        linears |= {f"encoder.layer.{i}.{name}": shape for name, shape in LINEARS.items()}
    if pooler:
        linears["pooler.dense"] = (24, 24)
    for name in norms:
        tensors[f"{name}.weight"] = 1 + random(24, scale=0.3)
        tensors[f"{name}.bias"] = random(24, scale=0.3)
    for name, shape in linears.items():
        tensors[f"{name}.weight"] = random(*shape, scale=0.4)
        tensors[f"{name}.bias"] = random(shape[0], scale=0.3)
    return {name: tensor.astype(dtype) for name, tensor in tensors.items()}


def publish(folder: Path, tensors=None, **config) -> Path:
    """A folder as models are published in."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save(folder / "model.safetensors", tiny_tensors() if tensors is None else tensors)
    return folder


def random_ids(batch, length, seed=0, vocab=67):
    return np.random.default_rng(seed).integers(0, vocab, (batch, length))


def formula(tensors, ids, is_token, *, dtype, **arguments):
    """The formula of BERT, with zeros where there is no token."""
    mask = is_token[:, None, None, :]
    hidden, pooled = reference.bert(tensors, ids, num_heads=3, mask=mask, dtype=dtype, **arguments)
    return np.where(is_token[..., None], hidden, 0), pooled


def assert_is_the_formula(out, tensors, ids, is_token=None, **arguments):
    is_token = np.ones(np.shape(ids), bool) if is_token is None else is_token
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    found = (out.last_hidden_state, out.pooler_output)
    assert_as_accurate_as_numpy(found, formula, wide, ids, is_token, **arguments)
    (exact, _) = formula(wide, ids, is_token, dtype=np.float64, **arguments)
    assert error(out.last_hidden_state, exact) <= 1e-5


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> BertModel:
    return BertModel.from_pretrained(publish(tmp_path_factory.mktemp("tiny")))


# ------------------------------------------------------------------------------------------------------------
# BERT is its formula
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 37), (2, 3), (5, 17), (33, 2)])
def test_bert_is_its_formula(tmp_path, shape, dtype, isa):
    model = BertModel.from_pretrained(publish(tmp_path), dtype=dtype)
    ids = random_ids(*shape)
    out = model(ids)
    assert out.last_hidden_state.dtype == out.pooler_output.dtype == dtype
    assert_is_the_formula(out, tiny_tensors(), ids)


def test_the_number_of_threads_changes_no_bit(tiny, threads):
    ids, lengths = random_ids(19, 37), np.arange(19) * 2
    with blasformer.num_threads(1):
        expected = tiny(ids, lengths=lengths)
    with blasformer.num_threads(threads):
        out = tiny(ids, lengths=lengths)
    np.testing.assert_array_equal(out.last_hidden_state, expected.last_hidden_state)
    np.testing.assert_array_equal(out.pooler_output, expected.pooler_output)


def test_token_types_are_added(tiny):
    ids, types = random_ids(3, 11), random_ids(3, 11, seed=1, vocab=2)
    assert_is_the_formula(tiny(ids, token_type_ids=types), tiny_tensors(), ids, token_type_ids=types)


@pytest.mark.parametrize(
    ("published", "activation"),
    [
        ("gelu", "gelu"),
        ("gelu_new", "gelu_tanh"),
        ("gelu_pytorch_tanh", "gelu_tanh"),
        ("relu", "relu"),
        ("silu", "silu"),
    ],
)
def test_the_activation_is_that_of_the_configuration(tmp_path, published, activation):
    model = BertModel.from_pretrained(publish(tmp_path, hidden_act=published))
    ids = random_ids(2, 13)
    assert_is_the_formula(model(ids), tiny_tensors(), ids, activation=activation)


def test_eps_is_that_of_the_configuration(tmp_path):
    model = BertModel.from_pretrained(publish(tmp_path, layer_norm_eps=0.5))
    ids = random_ids(2, 13)
    assert_is_the_formula(model(ids), tiny_tensors(), ids, eps=0.5)


def test_a_single_sequence_has_no_batch_axis(tiny):
    ids = random_ids(1, 9)
    batch, single = tiny(ids, return_weights=True), tiny(ids[0], lengths=9, return_weights=True)
    np.testing.assert_array_equal(single.last_hidden_state, batch.last_hidden_state[0])
    np.testing.assert_array_equal(single.pooler_output, batch.pooler_output[0])
    np.testing.assert_array_equal(single.weights[2], batch.weights[2][0])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_ids_are_of_any_integer_dtype_and_layout(tiny, dtype):
    ids = random_ids(4, 7)
    expected = tiny(ids).last_hidden_state
    np.testing.assert_array_equal(tiny(ids.astype(dtype)).last_hidden_state, expected)
    np.testing.assert_array_equal(tiny(np.asfortranarray(ids)).last_hidden_state, expected)
    np.testing.assert_array_equal(tiny(ids.tolist()).last_hidden_state, expected)


# ------------------------------------------------------------------------------------------------------------
# No sequence notices its neighbours, or padding
# ------------------------------------------------------------------------------------------------------------


def test_a_sequence_does_not_notice_what_else_is_in_the_batch(tiny):
    ids, lengths = random_ids(23, 37), np.random.default_rng(1).integers(1, 38, 23)
    out = tiny(ids, lengths=lengths)
    for i, length in enumerate(lengths):
        alone = tiny(ids[i, :length])
        assert error(out.last_hidden_state[i, :length], alone.last_hidden_state) <= 1e-5
        assert error(out.pooler_output[i], alone.pooler_output) <= 1e-5
        assert not out.last_hidden_state[i, length:].any()


def test_lengths_and_attention_mask_say_the_same(tiny):
    ids, lengths = random_ids(5, 11), np.array([11, 1, 0, 7, 4])
    mask = np.arange(11) < lengths[:, None]
    expected = tiny(ids, lengths=lengths)
    for dtype in (bool, np.int8, np.int64):
        out = tiny(ids, attention_mask=mask.astype(dtype))
        np.testing.assert_array_equal(out.last_hidden_state, expected.last_hidden_state)
        np.testing.assert_array_equal(out.pooler_output, expected.pooler_output)


@pytest.mark.parametrize("padding", [-100, 10**12])
def test_what_is_not_a_token_is_not_looked_at(tiny, padding):
    ids, lengths = random_ids(4, 9), np.array([9, 3, 1, 5])
    is_token = np.arange(9) < lengths[:, None]
    expected = tiny(ids, lengths=lengths, return_weights=True)
    out = tiny(
        np.where(is_token, ids, padding),
        lengths=lengths,
        token_type_ids=np.where(is_token, 0, padding),
        return_weights=True,
    )
    np.testing.assert_array_equal(out.last_hidden_state, expected.last_hidden_state)
    np.testing.assert_array_equal(out.weights[1], expected.weights[1])


def test_left_padding_changes_nothing(tiny):
    ids = random_ids(3, 8)
    padded = np.concatenate([np.zeros((3, 40), int), ids], axis=1)
    mask = np.arange(48) >= 40
    out = tiny(padded, attention_mask=np.tile(mask, (3, 1)))
    expected = tiny(ids)
    np.testing.assert_array_equal(out.last_hidden_state[:, 40:], expected.last_hidden_state)
    np.testing.assert_array_equal(out.pooler_output, expected.pooler_output)
    assert not out.last_hidden_state[:, :40].any()


def test_a_hole_in_the_mask_hides_a_token_and_moves_no_other(tiny):
    ids = random_ids(4, 13)
    is_token = np.random.default_rng(3).random((4, 13)) < 0.6
    is_token[:, 0] = True
    out = tiny(ids, attention_mask=is_token, return_weights=[1])
    assert_is_the_formula(out, tiny_tensors(), ids, is_token)
    assert not out.weights[1][np.broadcast_to(~is_token[:, None, None, :], out.weights[1].shape)].any()
    assert not out.weights[1][np.broadcast_to(~is_token[:, None, :, None], out.weights[1].shape)].any()


def test_sequences_without_tokens_give_zeros(tiny):
    out = tiny(random_ids(3, 5), lengths=[0, 5, 0], return_weights=True)
    assert not out.last_hidden_state[[0, 2]].any()
    assert not out.pooler_output[[0, 2]].any()
    assert not out.weights[0][[0, 2]].any()
    assert out.last_hidden_state[1].any()


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty_batches_are_legal(tiny, shape):
    out = tiny(np.zeros(shape, int), return_weights=[0])
    assert out.last_hidden_state.shape == (*shape, 24)
    assert out.pooler_output.shape == (shape[0], 24)
    assert out.weights[0].shape == (shape[0], 3, shape[1], shape[1])


@given(
    lengths=st.lists(st.integers(0, 37), min_size=1, max_size=9),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batch_is_its_sequences_one_by_one(tiny, lengths, seed):
    ids = random_ids(len(lengths), max(lengths), seed)
    out = tiny(ids, lengths=lengths)
    for i, length in enumerate(lengths):
        alone = tiny(ids[i : i + 1, :length])
        assert error(out.last_hidden_state[i : i + 1, :length], alone.last_hidden_state) <= 1e-5


def test_one_model_serves_many_threads_at_once(tiny):
    batches = [random_ids(3 + i, 5 + i, seed=i) for i in range(8)]
    expected = [tiny(ids).last_hidden_state for ids in batches]
    outputs = [None] * len(batches)

    def run(i):
        for _ in range(20):
            outputs[i] = tiny(batches[i]).last_hidden_state

    workers = [threading.Thread(target=run, args=(i,)) for i in range(len(batches))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for ours, alone in zip(outputs, expected, strict=True):
        np.testing.assert_array_equal(ours, alone)


# ------------------------------------------------------------------------------------------------------------
# Attention weights
# ------------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_formula(tiny):
    ids = random_ids(2, 9)
    wide = {name: tensor.astype(np.float64) for name, tensor in tiny_tensors().items()}
    weights = tiny(ids, return_weights=True).weights
    assert list(weights) == [0, 1, 2]
    for layer in range(3):
        earlier = {
            name: tensor
            for name, tensor in wide.items()
            if not name.startswith("encoder.layer.") or int(name.split(".")[2]) < layer
        }
        x, _ = reference.bert(earlier, ids, num_heads=3)
        own = reference.within(reference.bert_layer_parameters(wide, layer), "self_attn.")
        _, exact = reference.multi_head_attention(own, x, num_heads=3, return_weights=True)
        assert error(weights[layer], exact) <= 1e-5


def test_asking_for_weights_changes_no_bit_of_the_output(tiny):
    ids, lengths = random_ids(6, 12), [12, 3, 0, 1, 7, 12]
    plain, asked = tiny(ids, lengths=lengths), tiny(ids, lengths=lengths, return_weights=[0, 2])
    assert plain.weights is None
    np.testing.assert_array_equal(plain.last_hidden_state, asked.last_hidden_state)


def test_weights_are_returned_for_what_was_chosen(tiny):
    ids, lengths = random_ids(3, 7), [7, 0, 4]
    every = tiny(ids, lengths=lengths, return_weights=True).weights
    some = tiny(ids, lengths=lengths, return_weights=(-1, 0)).weights
    assert list(some) == [-1, 0]
    np.testing.assert_array_equal(some[-1], every[2])
    np.testing.assert_array_equal(some[0], every[0])
    selections = {
        -2: blasformer.WeightSelection(heads=[2, 0], rows=[-1, 3]),
        0: blasformer.WeightSelection(heads=[1, 2], mean=True),
        2: False,
    }
    selected = tiny(ids, lengths=lengths, return_weights=selections).weights
    assert list(selected) == [-2, 0]
    np.testing.assert_array_equal(selected[-2], every[1][:, [2, 0]][:, :, [6, 3]])
    np.testing.assert_allclose(selected[0], every[0][:, 1:].mean(1), rtol=1e-6)


def test_rows_of_weights_sum_to_one_over_the_tokens(tiny):
    lengths = np.array([4, 9, 1])
    weights = tiny(random_ids(3, 9), lengths=lengths, return_weights=[1]).weights[1]
    for i, length in enumerate(lengths):
        np.testing.assert_allclose(weights[i, :, :length].sum(-1), 1, rtol=1e-5)
        assert not weights[i, :, length:].any()
        assert not weights[i, :, :, length:].any()


# ------------------------------------------------------------------------------------------------------------
# Checkpoints as they are published
# ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_weights_of_every_stored_dtype_are_used_exactly(tmp_path, dtype):
    tensors = tiny_tensors(dtype)
    model = BertModel.from_pretrained(publish(tmp_path, tensors))
    assert model.dtype == (np.float64 if dtype == np.float64 else np.float32)
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, tensors[name].astype(model.dtype))
    ids = random_ids(20, 31)  # enough for the largest errors not to hang on a single rounding
    assert_is_the_formula(model(ids), tensors, ids)


def test_shards_make_the_same_model(tmp_path):
    whole = BertModel.from_pretrained(publish(tmp_path / "whole"))
    tensors = tiny_tensors()
    names = list(tensors)
    folder = publish(tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    save_sharded(folder, *({name: tensors[name] for name in names[i::3]} for i in range(3)))
    sharded = BertModel.from_pretrained(folder)
    ids = random_ids(3, 10)
    np.testing.assert_array_equal(sharded(ids).last_hidden_state, whole(ids).last_hidden_state)


def test_parameters_have_the_names_and_shapes_of_the_checkpoint_and_are_read_only(tiny):
    tensors, parameters = tiny_tensors(), tiny.parameters()
    assert {name: array.shape for name, array in parameters.items()} == {
        name: tensor.shape for name, tensor in tensors.items()
    }
    assert not any(array.flags.writeable for array in parameters.values())


def test_a_checkpoint_of_a_task_gives_its_encoder(tmp_path):
    tensors = {f"bert.{name}": tensor for name, tensor in tiny_tensors().items()}
    tensors |= {
        "bert.embeddings.position_ids": np.arange(37)[None],
        "cls.predictions.bias": np.zeros(67, np.float32),
        "cls.predictions.transform.LayerNorm.gamma": np.ones(24, np.float32),
        "classifier.weight": np.zeros((2, 24), np.float32),
        "qa_outputs.bias": np.zeros(2, np.float32),
    }
    model = BertModel.from_pretrained(publish(tmp_path, tensors))
    ids = random_ids(2, 6)
    assert_is_the_formula(model(ids), tiny_tensors(), ids)


def roberta_tensors(prefix="roberta."):
    """A RoBERTa checkpoint with one token type, as it is published."""
    tensors = tiny_tensors()
    tensors["embeddings.token_type_embeddings.weight"] = tensors["embeddings.token_type_embeddings.weight"][
        :1
    ]
    return {prefix + name: tensor for name, tensor in tensors.items()}


ROBERTA = {"model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5}


def roberta_formula(tensors, ids, *, dtype, positions):
    own = {name.removeprefix("roberta."): tensor for name, tensor in tensors.items()}
    return reference.bert(own, ids, num_heads=3, positions=positions, eps=1e-5, dtype=dtype)


@pytest.mark.parametrize("pad", [0, 1, 5])
@pytest.mark.parametrize("prefix", ["roberta.", ""])
def test_positions_of_roberta_begin_behind_that_of_padding(tmp_path, prefix, pad, isa):
    tensors, ids = roberta_tensors(prefix), 6 + random_ids(3, 11, vocab=61)
    bert = BertModel.from_pretrained(publish(tmp_path, tensors, **ROBERTA | {"pad_token_id": pad}))
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    out = bert(ids)
    positions = pad + 1 + np.arange(11)
    found = (out.last_hidden_state, out.pooler_output)
    assert_as_accurate_as_numpy(found, roberta_formula, wide, ids, positions=positions)
    assert bert.config.max_length == 37 - pad - 1


def test_the_padding_token_of_roberta_is_not_counted(tmp_path):
    tensors = roberta_tensors()
    bert = BertModel.from_pretrained(publish(tmp_path, tensors, **ROBERTA), dtype=np.float64)
    ids = np.array([[7, 1, 9, 1, 1, 12, 7]])
    exact, _ = roberta_formula(tensors, ids, dtype=np.float64, positions=np.array([2, 1, 3, 1, 1, 4, 5]))
    np.testing.assert_allclose(bert(ids).last_hidden_state, exact, atol=1e-12)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_in_roberta(tmp_path, side):
    bert = BertModel.from_pretrained(publish(tmp_path, roberta_tensors(), **ROBERTA), dtype=np.float64)
    ids, padding = 2 + random_ids(1, 6, vocab=60), [[1, 1, 1]]
    parts = [padding, ids] if side == "left" else [ids, padding]
    mask = np.concatenate(parts, axis=1) != 1
    padded = bert(np.concatenate(parts, axis=1), attention_mask=mask).last_hidden_state
    np.testing.assert_allclose(padded[mask], bert(ids).last_hidden_state[0], atol=1e-12)


def test_a_sequence_of_roberta_leaves_room_for_the_position_of_padding(tmp_path):
    bert = BertModel.from_pretrained(publish(tmp_path, roberta_tensors(), **ROBERTA))
    assert bert(random_ids(1, 35)).last_hidden_state.shape == (1, 35, 24)
    text = r"at most 35 positions \(max_position_embeddings - pad_token_id - 1\), got a sequence of 36"
    with pytest.raises(ValueError, match=text):
        bert(2 + random_ids(1, 36, vocab=60))
    with pytest.raises(IndexError, match=r"token_type_ids must lie in \[0, 0\], got 1"):
        bert(random_ids(1, 3), token_type_ids=[[0, 0, 1]])


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "camembert"])
@pytest.mark.parametrize("pooler", [True, False])
def test_a_saved_encoder_is_loaded_as_it_was(tmp_path, model_type, pooler):
    config = BertConfig(**SIZES | {"model_type": model_type, "pad_token_id": 3})
    bert = BertModel(config, dtype=np.float64, with_pooler=pooler, rng=0)
    bert.save(tmp_path / "new" / "folder")
    loaded = BertModel.from_pretrained(tmp_path / "new" / "folder")
    assert loaded._arguments == bert._arguments
    assert all(same_bits(array, bert.parameters()[name]) for name, array in loaded.parameters().items())
    restored = pickle.loads(pickle.dumps(bert))
    assert restored.config == config


def test_a_checkpoint_of_masked_words_gives_its_encoder(tmp_path):
    tensors = {name: tensor for name, tensor in roberta_tensors().items() if "pooler" not in name}
    heads = {"lm_head.bias": np.ones(67, np.float32), "lm_head.dense.weight": np.ones((24, 24), np.float32)}
    bert = BertModel.from_pretrained(publish(tmp_path, tensors | heads, **ROBERTA))
    assert not bert.with_pooler
    assert bert(random_ids(1, 5)).pooler_output is None


def test_names_from_before_pytorch_are_understood(tmp_path):
    tensors = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tiny_tensors().items()
    }
    model = BertModel.from_pretrained(publish(tmp_path, tensors))
    ids = random_ids(2, 6)
    assert_is_the_formula(model(ids), tiny_tensors(), ids)


def test_a_model_without_pooler_has_no_pooler_output(tmp_path):
    tensors = tiny_tensors(pooler=False)
    model = BertModel.from_pretrained(publish(tmp_path, tensors))
    ids = random_ids(2, 6)
    assert model(ids).pooler_output is None
    assert_is_the_formula(model(ids), tensors, ids)


def test_all_that_is_wrong_with_the_tensors_is_named_at_once(tmp_path):
    tensors = tiny_tensors()
    del tensors["pooler.dense.bias"], tensors["encoder.layer.1.output.dense.weight"]
    tensors["encoder.layer.3.output.dense.weight"] = np.zeros((24, 40), np.float32)
    tensors["surprise"] = np.zeros(3, np.float32)
    tensors["embeddings.LayerNorm.bias"] = np.zeros(23, np.float32)
    folder = publish(tmp_path, tensors)
    text = (
        f"{folder}: the tensors are not those of the model; "
        "missing: encoder.layer.1.output.dense.weight, pooler.dense.bias; "
        "unexpected: encoder.layer.3.output.dense.weight, surprise; "
        "misshapen: embeddings.LayerNorm.bias (23,) instead of (24,)"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        BertModel.from_pretrained(folder)


def test_unexpected_tensors_are_ignored_on_request_and_missing_ones_never(tmp_path):
    tensors = tiny_tensors() | {"surprise": np.zeros(3, np.float32)}
    model = BertModel.from_pretrained(publish(tmp_path, tensors), strict=False)
    assert "surprise" not in model.parameters()
    del tensors["embeddings.LayerNorm.bias"]
    with pytest.raises(ValueError, match=r"missing: embeddings.LayerNorm.bias$"):
        BertModel.from_pretrained(publish(tmp_path, tensors), strict=False)


def test_a_tensor_under_two_names_is_an_error(tmp_path):
    tensors = tiny_tensors() | {"embeddings.LayerNorm.gamma": np.ones(24, np.float32)}
    with pytest.raises(
        ValueError, match=r"holds embeddings.LayerNorm.weight twice: as embeddings.LayerNorm.\w+ and"
    ):
        BertModel.from_pretrained(publish(tmp_path, tensors))


def test_integer_weights_are_an_error(tmp_path):
    tensors = tiny_tensors() | {"embeddings.LayerNorm.bias": np.zeros(24, np.int64)}
    with pytest.raises(ValueError, match=r"; not floating point: embeddings.LayerNorm.bias$"):
        BertModel.from_pretrained(publish(tmp_path, tensors))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"model_type": "mpnet"},
            "model_type must be one of bert, roberta, xlm-roberta, camembert for BertModel, got 'mpnet'",
        ),
        ({"model_type": None}, "model_type must be one of"),
        ({"model_type": ["bert"]}, "model_type must be one of"),
        (
            {"model_type": "roberta", "pad_token_id": 36},
            "pad_token_id must be at least 0 and leave positions: at most max_position_embeddings - 2",
        ),
        ({"model_type": "roberta", "pad_token_id": "1"}, "pad_token_id must be an integer, got '1'"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type must be 'absolute', got",
        ),
        ({"is_decoder": True}, "is_decoder must be False, got True"),
        ({"is_decoder": "no"}, "is_decoder must be False, got 'no'"),
        (
            {"hidden_act": "swish2"},
            "hidden_act must be one of gelu, gelu_new, gelu_pytorch_tanh, relu, silu, got 'swish2'",
        ),
        ({"hidden_act": ["gelu"]}, "hidden_act must be one of"),
        ({"hidden_size": 25}, "hidden_size must be a multiple of num_attention_heads = 3, got 25"),
        ({"hidden_size": "24"}, "hidden_size must be an integer, got '24'"),
        ({"num_attention_heads": 0}, "num_attention_heads must be between 1 and"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer, got True"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers must be at most 1000, got 1000000"),
        ({"intermediate_size": 10**30}, "intermediate_size must be between 1 and"),
        ({"layer_norm_eps": -1}, "layer_norm_eps must be a positive number, got -1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be a positive number, got nan"),
        ({"vocab_size": 68}, r"misshapen: embeddings.word_embeddings.weight (67, 24) instead of (68, 24)"),
        ({"num_hidden_layers": 2}, r"unexpected: encoder.layer.2.attention.output.LayerNorm.bias, "),
    ],
)
def test_a_configuration_that_does_not_fit_is_a_clear_error(tmp_path, change, text):
    folder = publish(tmp_path, **change)
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        BertModel.from_pretrained(folder)
    assert str(folder) in str(raised.value)


def test_a_configuration_too_large_for_memory_is_a_memory_error(tmp_path):
    folder = publish(tmp_path, hidden_size=3 * 2**28, vocab_size=2**30)
    with pytest.raises(MemoryError, match=r"not enough memory for the sizes in config.json"):
        BertModel.from_pretrained(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=5,
)


@given(
    changes=st.dictionaries(
        st.sampled_from([*CONFIG, "is_decoder", "position_embedding_type", "pad_token_id"]), JSON, max_size=3
    )
)
def test_any_configuration_loads_or_is_refused(tmp_path, changes):
    folder = publish(tmp_path, **changes)
    try:
        outcome = BertModel.from_pretrained(folder)
    except (ValueError, MemoryError) as error:
        outcome = str(error)
    assert isinstance(outcome, BertModel) or str(folder) in outcome


def test_missing_fields_of_the_configuration_are_named(tmp_path):
    folder = publish(tmp_path)
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 24}')
    with pytest.raises(
        ValueError, match=r"lacks intermediate_size, num_attention_heads, num_hidden_layers, vocab_size"
    ):
        BertModel.from_pretrained(folder)


def test_a_folder_without_its_files_is_a_file_not_found_error(tmp_path):
    for kind in (BertModel, SentenceEncoder):
        with pytest.raises(FileNotFoundError, match="nowhere is not a folder: models are read"):
            kind.from_pretrained(tmp_path / "nowhere")
        with pytest.raises(TypeError, match="folder must be a path, got NoneType"):
            kind.from_pretrained(None)
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist"):
        BertModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(FileNotFoundError, match=r"holds neither model.safetensors nor"):
        BertModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 10**5])
def test_a_configuration_that_is_no_json_is_a_clear_error(tmp_path, content):
    folder = publish(tmp_path)
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        BertModel.from_pretrained(folder)


# ------------------------------------------------------------------------------------------------------------
# Wrong input to a model
# ------------------------------------------------------------------------------------------------------------

IDS = [[1, 2, 3], [4, 5, 6]]


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"input_ids": [[1, 67]]}, IndexError, "input_ids must lie in [0, 66], got 67 at [0, 1]"),
        ({"input_ids": [-1]}, IndexError, "input_ids must lie in [0, 66], got -1 at [0]"),
        ({"input_ids": np.array([[2**64 - 1]], np.uint64)}, IndexError, "got 18446744073709551615 at [0, 0]"),
        ({"input_ids": [[1.0]]}, TypeError, "input_ids must be integers, got float64"),
        ({"input_ids": [[True]]}, TypeError, "input_ids must be integers, got bool"),
        ({"input_ids": [[1, 2], [3]]}, ValueError, "input_ids must be rectangular"),
        ({"input_ids": 5}, ValueError, "input_ids must have the shape (batch, length) or (length,), got ()"),
        (
            {"input_ids": np.zeros((1, 1, 1), int)},
            ValueError,
            "input_ids must have the shape (batch, length)",
        ),
        (
            {"input_ids": np.zeros((2, 38), int)},
            ValueError,
            "at most 37 positions (max_position_embeddings), got a sequence of 38",
        ),
        ({"lengths": [3]}, ValueError, "lengths must have the shape (2,) to fit input_ids (2, 3), got (1,)"),
        ({"lengths": [3, 4]}, ValueError, "lengths must be between 0 and the 3 columns of input_ids, got 4"),
        (
            {"lengths": [-1, 2]},
            ValueError,
            "lengths must be between 0 and the 3 columns of input_ids, got -1",
        ),
        ({"lengths": [1.0, 2.0]}, TypeError, "lengths must be integers, got float64"),
        (
            {"lengths": [1, 2], "attention_mask": IDS},
            ValueError,
            "lengths and attention_mask must not both be given",
        ),
        (
            {"attention_mask": [[1, 1]]},
            ValueError,
            "attention_mask must have the shape of input_ids (2, 3), got (1, 2)",
        ),
        ({"attention_mask": [[1, 1, 1], [1]]}, ValueError, "attention_mask must be rectangular"),
        ({"attention_mask": IDS}, ValueError, "attention_mask must hold 0 and 1 only, got 2"),
        (
            {"attention_mask": np.ones((2, 3))},
            TypeError,
            "attention_mask must be bool, or integers 0 and 1, got float64",
        ),
        (
            {"token_type_ids": [[0, 0, 2], [0, 0, 0]]},
            IndexError,
            "token_type_ids must lie in [0, 1], got 2 at [0, 2]",
        ),
        (
            {"token_type_ids": [0, 0, 0]},
            ValueError,
            "token_type_ids must have the shape of input_ids (2, 3), got (3,)",
        ),
        ({"return_weights": [3]}, IndexError, "layers of return_weights must lie in [-3, 2], got 3"),
        ({"return_weights": [0, -4]}, IndexError, "layers of return_weights must lie in [-3, 2], got -4"),
        ({"return_weights": [0, 0.5]}, TypeError, "layers of return_weights must be an integer, got float"),
        ({"return_weights": [2, -1]}, ValueError, "layers of return_weights must not name a layer twice"),
        (
            {"return_weights": {0: [1]}},
            TypeError,
            "return_weights must be a bool or a WeightSelection, got list",
        ),
        (
            {"return_weights": 2.0},
            TypeError,
            "return_weights must be a bool, layer indices or a dict",
        ),
    ],
)
def test_wrong_input_is_a_clear_error(tiny, arguments, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        tiny(**({"input_ids": IDS} | arguments))
    assert_is_the_formula(tiny(IDS), tiny_tensors(), IDS)


def test_padding_beyond_the_positions_is_no_error(tiny):
    ids = random_ids(2, 50)
    out = tiny(ids, lengths=[37, 2])
    np.testing.assert_array_equal(
        out.last_hidden_state[:, :37], tiny(ids[:, :37], lengths=[37, 2]).last_hidden_state
    )


# ------------------------------------------------------------------------------------------------------------
# all-MiniLM-L6-v2
# ------------------------------------------------------------------------------------------------------------

SENTENCES = [
    "A man is eating food.",
    "Someone has a meal.",
    "The stock market fell sharply on Monday after weak earnings.",
    "Shares dropped at the start of the week because profits disappointed.",
    "Naïve café owners in Zürich don't serve crème brûlée at 3:45 a.m.",
    "",
    "!",
    "深層学習 and \u0645\u0631\u062d\u0628\u0627, e\u0301 🎉 \u200b zero\twidth\r\n spaces",
    "Supercalifragilisticexpialidocious antidisestablishmentarianism " * 3,
    " ".join(f"Sentence number {i} of a paragraph that goes on and on." for i in range(60)),
]


@pytest.fixture(scope="module")
def encoder(minilm_folder) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(minilm_folder)


@pytest.fixture(scope="module")
def exact_embeddings(minilm_folder) -> np.ndarray:
    """The sentences' vectors by the formula in float64, each by itself, of tokens by vocab.txt alone."""
    tensors = blasformer.io.load_tensors(minilm_folder, dtype=np.float64)
    wordpiece = tokenizers.BertWordPieceTokenizer(str(minilm_folder / "vocab.txt"), lowercase=True)
    vectors = []
    for sentence in SENTENCES:
        ids = wordpiece.encode(sentence).ids
        ids = ids if len(ids) <= 256 else [*ids[:255], ids[-1]]
        hidden, _ = reference.bert(tensors, [ids], num_heads=12)
        vectors.append(reference.normalise(reference.mean_pool(hidden, [len(ids)]))[0])
    return np.array(vectors)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_real_sentences_have_the_vectors_of_the_formula(encoder, exact_embeddings, batch_size):
    embeddings = encoder.encode(SENTENCES, batch_size=batch_size)
    assert embeddings.dtype == np.float32
    for ours, exact in zip(embeddings, exact_embeddings, strict=True):
        assert error(ours, exact) <= 1e-5


def test_float64_is_the_formula_to_float64(minilm_folder, exact_embeddings):
    encoder = SentenceEncoder.from_pretrained(minilm_folder, dtype=np.float64)
    embeddings = encoder.encode(SENTENCES[:4])
    assert embeddings.dtype == np.float64
    assert error(embeddings, exact_embeddings[:4]) <= 1e-12


def test_a_sentence_does_not_notice_its_neighbours(encoder):
    together = encoder.encode(SENTENCES)
    for sentence, vector in zip(SENTENCES, together, strict=True):
        assert error(vector, encoder.encode(sentence)) <= 1e-5


def test_sentences_of_one_meaning_are_nearest_to_each_other(encoder):
    pairs = [
        ("A man is eating food.", "Someone has a meal."),
        ("The stock market fell sharply on Monday.", "Shares dropped at the start of the week."),
        ("How do I reset my password?", "I cannot log in because I forgot my credentials."),
        ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
        ("It will rain tomorrow.", "Wet weather is expected the next day."),
    ]
    one, other = encoder.encode([a for a, _ in pairs]), encoder.encode([b for _, b in pairs])
    similarity = one @ other.T
    np.testing.assert_array_equal(similarity.argmax(0), np.arange(5))
    np.testing.assert_array_equal(similarity.argmax(1), np.arange(5))


def test_order_is_kept_and_repetition_harmless(encoder):
    sentences = [SENTENCES[i] for i in (8, 0, 5, 0, 6, 1, 0)]
    embeddings = encoder.encode(sentences, batch_size=2)
    for sentence, vector in zip(sentences, embeddings, strict=True):
        assert error(vector, encoder.encode(sentence)) <= 1e-5


def test_one_string_gives_one_vector_and_several_give_rows(encoder):
    assert encoder.encode("one").shape == (384,)
    assert encoder.encode("").shape == (384,)
    assert encoder.encode(["one"]).shape == (1, 384)
    assert encoder.encode(("one", "two")).shape == (2, 384)
    assert encoder.encode(str(i) for i in range(3)).shape == (3, 384)
    assert encoder.encode(np.array(["one", "two"])).shape == (2, 384)
    assert encoder.encode([]).shape == (0, 384)


def test_vectors_have_length_one_unless_told_otherwise(encoder):
    published = encoder.encode(SENTENCES[:3])
    pooled = encoder.encode(SENTENCES[:3], normalize_embeddings=False)
    np.testing.assert_allclose(np.linalg.norm(published, axis=1), 1, rtol=1e-6)
    assert abs(np.linalg.norm(pooled, axis=1) - 1).min() > 0.1
    assert error(reference.normalise(pooled), published) <= 1e-6
    np.testing.assert_array_equal(encoder.encode(SENTENCES[:3], normalize_embeddings=True), published)


def test_long_text_is_cut_after_max_seq_length_tokens(encoder):
    assert encoder.max_seq_length == 256
    long = "word " * 254 + "and something else that is never read"
    assert error(encoder.encode(long), encoder.encode("word " * 254)) <= 1e-6


def test_heads_of_a_real_model_can_be_looked_at(encoder):
    ids = encoder.tokenizer.encode("The cat sat on the mat.").ids
    out = encoder.bert(ids, return_weights=[0, 5])
    assert out.weights[5].shape == (12, len(ids), len(ids))
    np.testing.assert_allclose(out.weights[0].sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("sentences", "arguments", "kind", "text"),
    [
        (b"bytes", {}, TypeError, "sentences must be a str or several of them, got bytes"),
        (None, {}, TypeError, "sentences must be a str or several of them, got NoneType"),
        (["one", None], {}, TypeError, "sentences[1] must be a str, got NoneType"),
        (["\ud800"], {}, ValueError, r"sentences[0] must be valid Unicode, got '\ud800'"),
        (["one"], {"batch_size": 0}, ValueError, "batch_size must be >= 1, got 0"),
        (["one"], {"batch_size": 2.0}, TypeError, "batch_size must be an integer, got float"),
    ],
)
def test_wrong_sentences_are_a_clear_error(encoder, exact_embeddings, sentences, arguments, kind, text):
    with pytest.raises(kind, match=re.escape(text)):
        encoder.encode(sentences, **arguments)
    assert error(encoder.encode(SENTENCES[0]), exact_embeddings[0]) <= 1e-5


def test_progress_is_shown_when_asked_for_and_not_in_scripts(encoder, capsys):
    encoder.encode(SENTENCES[:3], batch_size=1, show_progress_bar=True)
    shown = capsys.readouterr().err
    assert "Encoding: 100%" in shown
    assert "3/3" in shown
    for quiet in (None, False):
        encoder.encode(SENTENCES[:3], batch_size=1, show_progress_bar=quiet)
        assert capsys.readouterr() == ("", "")


def test_progress_appears_in_terminals_for_long_work(encoder, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(_progress, "DELAY", 1e9)
    encoder.encode(SENTENCES[:3], batch_size=1)
    assert sys.stderr.getvalue() == ""
    monkeypatch.setattr(_progress, "DELAY", 1e-9)
    encoder.encode(SENTENCES[:3], batch_size=1)
    assert "3/3" in sys.stderr.getvalue()


def test_encoding_needs_neither_torch_nor_tqdm(minilm_folder):
    program = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = sys.modules["tqdm"] = None
from blasformer.models import SentenceEncoder
print(SentenceEncoder.from_pretrained({str(minilm_folder)!r}).encode(["one", "two"]).shape)"""
    assert fresh_python.run(program) == "(2, 384)"


# ------------------------------------------------------------------------------------------------------------
# Folders of sentence encoders
# ------------------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "one", "two", "three", "prompt"]


def tiny_tokenizer(words=WORDS, template=True) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    if template:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return tokenizer


def publish_encoder(
    folder: Path, *, pooling=None, kinds=("Transformer", "Pooling"), files=(), tokenizer=None
) -> Path:
    """A sentence-transformers folder; `files` are (name, JSON value) pairs on top."""
    publish(folder)
    (tokenizer or tiny_tokenizer()).save(str(folder / "tokenizer.json"))
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": paths.get(kind, ""),
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    pooling = (
        {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True} if pooling is None else pooling
    )
    (folder / "1_Pooling").mkdir(exist_ok=True)
    for name, value in [("modules.json", modules), ("1_Pooling/config.json", pooling), *files]:
        (folder / name).write_text(json.dumps(value))
    return folder


def tiny_hidden(text: str) -> np.ndarray:
    ids = [2, *(WORDS.index(word) if word in WORDS else 1 for word in text.split()), 3]
    return reference.bert(tiny_tensors(), [ids], num_heads=3)[0][0]


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [
        ({"pooling_mode_mean_tokens": True}, lambda x: x.mean(0)),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda x: x[0]),
        ({"pooling_mode_max_tokens": True}, lambda x: x.max(0)),
        ({}, lambda x: x.mean(0)),
        ({"pooling_mode": "cls"}, lambda x: x[0]),
        ({"pooling_mode": ["max"], "embedding_dimension": 24}, lambda x: x.max(0)),
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_pooling_is_the_one_the_folder_names(tmp_path, pooling, pool, normalize):
    kinds = ("Transformer", "Pooling", "Normalize")[: 3 if normalize else 2]
    encoder = SentenceEncoder.from_pretrained(publish_encoder(tmp_path, pooling=pooling, kinds=kinds))
    texts = ["one two three", "", "two", "unknown one", "three three two one"]
    expected = np.array([pool(tiny_hidden(text)) for text in texts])
    if normalize:
        expected = reference.normalise(expected)
    assert error(encoder.encode(texts, batch_size=2), expected) <= 1e-5


def test_sentences_are_encoded_by_roberta_too(tmp_path):
    folder = publish_encoder(tmp_path)
    publish(folder, roberta_tensors(), **ROBERTA)
    encoder = SentenceEncoder.from_pretrained(folder)
    assert encoder.max_seq_length == 35
    texts = ["one two three", "", "two", "three three two one"]
    expected = []
    for text in texts:
        ids = np.array([[2, *(WORDS.index(word) for word in text.split()), 3]])
        positions = 2 + np.arange(ids.shape[1])
        hidden, _ = roberta_formula(roberta_tensors(), ids, dtype=np.float64, positions=positions)
        expected.append(hidden[0].mean(0))
    assert error(encoder.encode(texts, batch_size=3), np.array(expected)) <= 1e-5
    assert encoder.encode("one " * 99).shape == (24,)


def test_settings_of_the_folder_are_followed(tmp_path):
    files = [
        ("sentence_bert_config.json", {"max_seq_length": 4, "do_lower_case": True}),
        (
            "config_sentence_transformers.json",
            {"prompts": {"query": "prompt "}, "default_prompt_name": "query"},
        ),
    ]
    encoder = SentenceEncoder.from_pretrained(publish_encoder(tmp_path, files=files))
    assert encoder.max_seq_length == 4
    assert error(encoder.encode("ONE two three"), tiny_hidden("prompt one").mean(0)) <= 1e-5


def test_without_settings_the_model_bounds_the_length(tmp_path):
    encoder = SentenceEncoder.from_pretrained(publish_encoder(tmp_path))
    assert encoder.max_seq_length == 37
    assert error(encoder.encode("one " * 100), tiny_hidden("one " * 35).mean(0)) <= 1e-5


def test_padding_and_truncation_of_the_tokenizer_file_do_not_matter(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.enable_padding(length=20)
    tokenizer.enable_truncation(3)
    encoder = SentenceEncoder.from_pretrained(publish_encoder(tmp_path, tokenizer=tokenizer))
    assert error(encoder.encode("one two three"), tiny_hidden("one two three").mean(0)) <= 1e-5


def test_an_empty_string_without_special_tokens_has_a_vector_of_zeros(tmp_path):
    tokenizer = tiny_tokenizer(template=False)
    for pooling in ("mean", "max", "cls"):
        folder = publish_encoder(tmp_path / pooling, tokenizer=tokenizer, pooling={"pooling_mode": pooling})
        encoder = SentenceEncoder.from_pretrained(folder)
        embeddings = encoder.encode(["", "one"], normalize_embeddings=True)
        assert not embeddings[0].any()
        assert embeddings[1].any()
        assert not encoder.encode([""]).any()


def test_an_encoder_can_be_made_of_its_parts(tiny):
    encoder = SentenceEncoder(tiny, tiny_tokenizer(), pooling="cls", normalize=True)
    assert error(encoder.encode("one two"), reference.normalise(tiny_hidden("one two")[:1])[0]) <= 1e-5
    with pytest.raises(ValueError, match="pooling must be one of cls, mean, max, got 'sum'"):
        SentenceEncoder(tiny, tiny_tokenizer(), pooling="sum")
    with pytest.raises(ValueError, match="max_seq_length must be more than the 2 special tokens, got 2"):
        SentenceEncoder(tiny, tiny_tokenizer(), max_seq_length=2)
    with pytest.raises(ValueError, match="the tokenizer has 70 tokens, more than the 67 of the model"):
        SentenceEncoder(tiny, tiny_tokenizer(["[UNK]", *map(str, range(69))]))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"pooling": {"pooling_mode_lasttoken": True}},
            "the pooling must be one of cls, mean, max, got ['lasttoken']",
        ),
        (
            {"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}},
            "the pooling must be one of cls, mean, max, got ['max', 'mean']",
        ),
        ({"pooling": {"pooling_mode": 3}}, "the pooling must be one of cls, mean, max, got 3"),
        (
            {"pooling": {"pooling_mode_cls_token": "false"}},
            "config.json: pooling_mode_cls_token must be a bool, got str",
        ),
        (
            {"pooling": {"embedding_dimension": 24.0}},
            "hidden_size 24, got 24.0",
        ),
        ({"pooling": {"include_prompt": "yes"}}, "config.json: include_prompt must be a bool, got str"),
        (
            {"files": [("sentence_bert_config.json", {"do_lower_case": "no"})]},
            "sentence_bert_config.json: do_lower_case must be a bool, got str",
        ),
        (
            {"files": [("config_sentence_transformers.json", {"default_prompt_name": ["q"], "prompts": {}})]},
            "default_prompt_name must be one of its prompts, got ['q']",
        ),
        (
            {"pooling": {"word_embedding_dimension": 25}},
            "the dimension must be the model's hidden_size 24, got 25",
        ),
        (
            {"kinds": ("Transformer", "Pooling", "Dense")},
            "modules must be Transformer, Pooling and perhaps Normalize, got Transformer, Pooling, Dense",
        ),
        (
            {"kinds": ("Transformer",)},
            "modules must be Transformer, Pooling and perhaps Normalize, got Transformer",
        ),
        ({"files": [("modules.json", {})]}, "modules.json must hold a JSON array, got dict"),
        ({"files": [("modules.json", [{"type": "Transformer"}])]}, "each module must have a type and a path"),
        (
            {"files": [("modules.json", [{"type": "x.Transformer", "path": "../.."}])]},
            "'../..' must be the name of a file in the same folder",
        ),
        (
            {"files": [("sentence_bert_config.json", {"max_seq_length": 0})]},
            "max_seq_length must be a positive integer, got 0",
        ),
        (
            {"files": [("sentence_bert_config.json", [])]},
            "sentence_bert_config.json must hold a JSON object, got list",
        ),
        (
            {"files": [("config_sentence_transformers.json", {"default_prompt_name": "query"})]},
            "default_prompt_name must be one of its prompts, got 'query'",
        ),
        (
            {
                "files": [
                    ("config_sentence_transformers.json", {"prompts": {"q": "x"}, "default_prompt_name": "q"})
                ],
                "pooling": {"include_prompt": False},
            },
            "include_prompt must be true for a model with a default prompt",
        ),
        ({"files": [("tokenizer.json", {})]}, "tokenizer.json is not a valid tokenizer: Model missing"),
        (
            {"files": [("config.json", CONFIG | {"model_type": "mpnet"})]},
            "model_type must be one of bert, roberta, xlm-roberta",
        ),
    ],
)
def test_a_folder_that_is_not_supported_is_a_clear_error(tmp_path, changes, text):
    folder = publish_encoder(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        SentenceEncoder.from_pretrained(folder)
    assert str(folder) in str(raised.value)


@pytest.mark.parametrize("name", ["modules.json", "tokenizer.json", "1_Pooling/config.json", "config.json"])
def test_a_missing_file_is_a_file_not_found_error_that_names_it(tmp_path, name):
    folder = publish_encoder(tmp_path)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(name)):
        SentenceEncoder.from_pretrained(folder)


def test_a_new_model_has_the_random_weights_of_its_seed():
    config = BertConfig(**SIZES)
    one, same, other = (BertModel(config, rng=seed).parameters() for seed in (1, 1, 2))
    for name, array in one.items():
        np.testing.assert_array_equal(array, same[name])
        if name.endswith("LayerNorm.weight"):
            assert (array == 1).all()
        elif name.endswith("bias"):
            assert not array.any()
        else:
            assert (array != other[name]).all()
            assert 0.01 < array.std() < 0.03
    assert BertModel(config, dtype=np.float64, with_pooler=False)(IDS).pooler_output is None
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got float16"):
        BertModel(config, dtype=np.float16)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_compute_the_same(tiny, copied):
    ids = random_ids(3, 8)
    np.testing.assert_array_equal(copied(tiny)(ids).last_hidden_state, tiny(ids).last_hidden_state)
    encoder = SentenceEncoder(tiny, tiny_tokenizer(), pooling="max", normalize=True)
    np.testing.assert_array_equal(copied(encoder).encode(["one two"]), encoder.encode(["one two"]))


def test_models_say_what_they_are(tiny):
    assert repr(tiny).startswith("BertModel(BertConfig(vocab_size=67, hidden_size=24, ")
    encoder = SentenceEncoder(tiny, tiny_tokenizer(), pooling="cls", max_seq_length=9)
    assert repr(encoder) == f"SentenceEncoder({tiny!r}, pooling='cls', normalize=False, max_seq_length=9)"


def test_configurations_can_be_made_in_python():
    assert BertConfig(**SIZES).hidden_size == 24
    with pytest.raises(TypeError, match=r"vocab_size must be an integer, got 1.5"):
        BertConfig(**(SIZES | {"vocab_size": 1.5}))


def test_what_models_are_made_of_is_checked():
    config = BertConfig(**SIZES)
    for kind in (
        BertModel,
        BertForQuestionAnswering,
        lambda config: BertForSequenceClassification(config, 2),
    ):
        with pytest.raises(TypeError, match="config must be a BertConfig, got dict"):
            kind(dict(SIZES))
    with pytest.raises(TypeError, match="with_pooler must be a bool, got str"):
        BertModel(config, with_pooler="no")
    with pytest.raises(TypeError, match="bert must be a BertModel, got BertConfig"):
        SentenceEncoder(config, tiny_tokenizer())
    with pytest.raises(TypeError, match=r"tokenizer must be a tokenizers.Tokenizer, got NoneType"):
        SentenceEncoder(BertModel(config), None)
