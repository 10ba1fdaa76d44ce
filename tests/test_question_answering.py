"""BertForQuestionAnswering: logits, loss and gradients as their formulas, answers as the best pairs."""

import dataclasses
import json

import numpy as np
import pytest
import reference
from blasformer import io, lora, models, nn, optim, train
from derivatives import Accuracy, assert_is_derivative
from layer_cases import normal, same_bits, shaken

CONFIG = models.BertConfig(
    vocab_size=23,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=41,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)
DROPPING = dataclasses.replace(CONFIG, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3)
IDS = np.random.default_rng(0).integers(0, 23, (5, 11))
LENGTHS = np.array([11, 3, 0, 7, 1])
TYPES = np.random.default_rng(1).integers(0, 2, (5, 11))
IS_TOKEN = np.arange(11) < LENGTHS[:, None]
CANDIDATES = TYPES == 1
CANDIDATES[:, 0] = [False, True, True, False, True]
STARTS = np.array([np.flatnonzero(CANDIDATES[0])[1], 0, -100, np.flatnonzero(CANDIDATES[3])[0], 0])
ENDS = np.array([np.flatnonzero(CANDIDATES[0])[3], -100, -100, np.flatnonzero(CANDIDATES[3])[1], 0])
GIVEN = {"lengths": LENGTHS, "token_type_ids": TYPES}


def numpy_logits(parameters, dtype=np.float64):
    """(batch, length, 2), also where there is no token."""
    bert = reference.within(parameters, "bert.")
    bert = {**bert, "pooler.dense.weight": np.zeros((24, 24)), "pooler.dense.bias": np.zeros(24)}
    hidden, _ = reference.bert(bert, IDS, num_heads=3, lengths=LENGTHS, token_type_ids=TYPES, dtype=dtype)
    weight, bias = parameters["qa_outputs.weight"], parameters["qa_outputs.bias"]
    return reference.linear(hidden, weight, bias, dtype=dtype)


def numpy_loss(parameters, candidates, dtype=np.float64):
    """The mean of -log P over the beginnings and ends that count."""
    logits, allowed = numpy_logits(parameters, dtype), candidates & IS_TOKEN
    losses = []
    for column, positions in enumerate((STARTS, ENDS)):
        for row in np.flatnonzero(positions >= 0):
            there = np.flatnonzero(allowed[row])
            among = logits[np.full((1, len(there)), row), there[None], column]
            target = np.flatnonzero(there == positions[row])
            losses.append(reference.cross_entropy(among, target, dtype=dtype)[0])
    return sum(losses) / len(losses)


def test_logits_are_the_formula_and_minus_infinity_where_no_answer_may_be():
    model = shaken(models.BertForQuestionAnswering(CONFIG, dtype=float, rng=0))
    expected = numpy_logits(model.state_dict()).swapaxes(-1, -2)
    for candidates, allowed in ((None, IS_TOKEN), (CANDIDATES, IS_TOKEN & CANDIDATES)):
        logits = model(IDS, **GIVEN, candidates=candidates)
        there = np.broadcast_to(allowed[:, None], logits.shape)
        assert np.abs(logits - expected)[there].max() < 1e-12
        assert np.all(logits[~there] == -np.inf)
        assert same_bits(model.forward(IDS, **GIVEN, candidates=candidates)[0], logits)
    alone = model(IDS[0], token_type_ids=TYPES[0])
    assert alone.shape == (2, 11)
    assert np.abs(alone - expected[0]).max() < 1e-12


@pytest.mark.parametrize("candidates", [None, CANDIDATES], ids=["all", "some"])
def test_the_loss_and_its_gradients_are_the_formula(candidates):
    model = shaken(models.BertForQuestionAnswering(CONFIG, dtype=float, rng=0))
    loss, grads = model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN, candidates=candidates)

    def function(parameters):
        return numpy_loss(parameters, np.ones_like(CANDIDATES) if candidates is None else candidates)

    assert loss == pytest.approx(function(model.state_dict()), rel=1e-12)
    assert model.loss(IDS, STARTS, ENDS, **GIVEN, candidates=candidates) == loss
    assert_is_derivative(function, model.state_dict(), grads)


def test_gradients_of_the_loss_are_as_accurate_as_numpys(isa):
    model = shaken(models.BertForQuestionAnswering(CONFIG, rng=0))
    accuracy = Accuracy(
        lambda parameters, dtype: numpy_loss(parameters, CANDIDATES, dtype),
        model.state_dict(),
        1,
        np.float32,
    )
    _, grads = model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN, candidates=CANDIDATES)
    # What adds the same to all scores of a row, or to all logits of a column, changes nothing: zero.
    largest = max(np.abs(gradient).max() for gradient in grads.values())
    for name in [name for name in grads if name.endswith(("key.bias", "qa_outputs.bias"))]:
        assert np.abs(grads.pop(name)).max() < 2e-6 * largest
    accuracy.check(grads)


def test_backward_is_that_of_the_loss_of_the_logits():
    model = shaken(models.BertForQuestionAnswering(CONFIG, dtype=float, rng=0))
    logits, saved = model.forward(IDS, **GIVEN, candidates=CANDIDATES)
    assert saved.nbytes > logits.nbytes
    d_logits = np.zeros(logits.shape)
    count = model.target_count(IDS, STARTS, ENDS, **GIVEN, candidates=CANDIDATES)
    assert count == 4 + 3
    for column, positions in enumerate((STARTS, ENDS)):
        for row in np.flatnonzero(positions >= 0):
            p = np.exp(logits[row, column] - logits[row, column].max())
            d_logits[row, column] = p / p.sum() / count
            d_logits[row, column, positions[row]] -= 1 / count
    d_logits[~np.broadcast_to((CANDIDATES & IS_TOKEN)[:, None], logits.shape)] = np.nan  # not looked at
    nothing, grads = model.backward(saved, d_logits)
    assert nothing is None
    _, expected = model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN, candidates=CANDIDATES)
    for name, gradient in expected.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=0, atol=1e-12)


def test_batches_of_a_step_add_up_to_the_step():
    model = shaken(models.BertForQuestionAnswering(CONFIG, dtype=float, rng=0))
    _, whole = model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN)
    total = None
    for part in (slice(0, 2), slice(2, 5)):
        given = {name: array[part] for name, array in GIVEN.items()}
        _, total = model.loss_and_gradients(
            IDS[part], STARTS[part], ENDS[part], **given, divisor=7, accumulate=total
        )
    for name, gradient in whole.items():
        np.testing.assert_allclose(total[name], gradient, rtol=0, atol=1e-12)


def test_dropout_acts_with_an_rng_alone_and_its_gradients_are_those_of_what_was_dropped():
    model = shaken(models.BertForQuestionAnswering(DROPPING, dtype=float, rng=0))
    kept, _ = model.forward(IDS, **GIVEN)
    dropped, _ = model.forward(IDS, **GIVEN, rng=3)
    assert same_bits(kept, model(IDS, **GIVEN))
    assert not np.array_equal(kept, dropped)
    loss, grads = model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN, rng=3)
    name, step = "bert.encoder.layer.0.intermediate.dense.weight", 1e-6
    losses = []
    for sign in (1, -1):
        with model.edit() as p:
            p[name][2, 3] += sign * step
        losses.append(model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN, rng=3)[0])
        with model.edit() as p:
            p[name][2, 3] -= sign * step
    assert grads[name][2, 3] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5)
    assert min(losses) <= loss <= max(losses)


def test_nothing_to_learn_from_is_a_loss_of_zero():
    model = models.BertForQuestionAnswering(CONFIG, rng=0)
    nothing = np.full(5, -100)
    loss, grads = model.loss_and_gradients(IDS, nothing, nothing, **GIVEN)
    assert loss == 0
    assert not any(gradient.any() for gradient in grads.values())


@pytest.mark.parametrize("longest", [1, 2, 30])
def test_answers_are_the_most_probable_pairs(longest):
    model = shaken(models.BertForQuestionAnswering(CONFIG, dtype=float, rng=0))
    found = model.answers(IDS, **GIVEN, candidates=CANDIDATES, longest=longest)
    logits = model(IDS, **GIVEN, candidates=CANDIDATES)
    for row, (start, end, probability) in enumerate(zip(*found, strict=True)):
        allowed = np.flatnonzero((CANDIDATES & IS_TOKEN)[row])
        if len(allowed) == 0:
            assert (start, end, probability) == (-1, -1, 0)
            continue
        p = np.exp(logits[row] - logits[row].max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        best = max((p[0, i] * p[1, j], i, j) for i in allowed for j in allowed if i <= j < i + longest)
        assert (start, end) == best[1:]
        assert probability == pytest.approx(best[0])
    alone = model.answers(IDS[0], token_type_ids=TYPES[0], candidates=CANDIDATES[0], longest=longest)
    assert [value.shape for value in alone] == [()] * 3
    assert (alone.start, alone.end) == (found.start[0], found.end[0])


def test_training_learns_what_it_is_shown():
    model = models.BertForQuestionAnswering(CONFIG, rng=0)
    batch = {"input_ids": IDS, "start_positions": STARTS, "end_positions": ENDS, "candidates": CANDIDATES}
    optimizer = optim.AdamW(model, lr=5e-3)
    history = train.fit(model, [batch | GIVEN], optimizer=optimizer, epochs=80, rng=0, progress=False)
    assert history.loss[-1] < 0.05
    found = model.answers(IDS, **GIVEN, candidates=CANDIDATES)
    assert found.start[0] == STARTS[0]
    assert found.end[0] == ENDS[0]


def test_frozen_layers_get_no_gradient_and_adapters_get_theirs():
    model = models.BertForQuestionAnswering(CONFIG, rng=0)
    model.freeze("bert.embeddings.*", "bert.encoder.layer.0.*")
    _, grads = model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN)
    assert set(grads) == set(model.parameters()) - model.frozen
    model = models.BertForQuestionAnswering(CONFIG, rng=0)
    lora.add(model, ["query", "value"], rank=2, also="qa_outputs.*", rng=0)
    _, grads = model.loss_and_gradients(IDS, STARTS, ENDS, **GIVEN)
    assert all(name.startswith("qa_outputs.") or "lora_" in name for name in grads)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_saved_model_comes_back_with_its_bits(tmp_path, kind):
    config = dataclasses.replace(CONFIG, model_type=kind, pad_token_id=None)
    model = models.BertForQuestionAnswering(config, rng=0)
    model.save(tmp_path)
    stored = io.load_tensors(tmp_path / "model.safetensors")
    assert all(name.startswith((f"{kind}.", "qa_outputs.")) for name in stored)
    noted = json.loads((tmp_path / "config.json").read_text())
    assert noted["architectures"] == [f"{kind.capitalize()}ForQuestionAnswering"]
    same = models.BertForQuestionAnswering.from_pretrained(tmp_path)
    assert same_bits(same(IDS, **GIVEN), model(IDS, **GIVEN))
    encoder = models.BertModel.from_pretrained(tmp_path)
    assert not encoder.with_pooler


def test_an_encoder_gets_a_new_head(tmp_path):
    encoder = models.BertModel(CONFIG, rng=0)
    encoder.save(tmp_path)
    model, other = (models.BertForQuestionAnswering.from_pretrained(tmp_path, rng=seed) for seed in (1, 2))
    for name, array in encoder.parameters().items():
        if not name.startswith("pooler."):
            assert same_bits(model.parameters()[f"bert.{name}"], array)
    head = model.parameters()["qa_outputs.weight"]
    assert not np.array_equal(head, other.parameters()["qa_outputs.weight"])
    assert 0.01 < head.std() < 0.03
    assert models.BertForQuestionAnswering.from_pretrained(tmp_path, dtype=float).dtype == np.float64


def test_half_a_head_is_an_error(tmp_path):
    model = models.BertForQuestionAnswering(CONFIG, rng=0)
    model.save(tmp_path)
    arrays = io.load_tensors(tmp_path / "model.safetensors")
    del arrays["qa_outputs.bias"]
    io.save_tensors(tmp_path / "model.safetensors", arrays)
    with pytest.raises(ValueError, match=r"missing: qa_outputs\.bias"):
        models.BertForQuestionAnswering.from_pretrained(tmp_path)


MODEL = models.BertForQuestionAnswering(CONFIG, rng=0)
ERRORS = {
    "start_positions must lie in [0, 11), or be -100, got 11": (
        IndexError,
        lambda: MODEL.loss(IDS, [11] * 5, ENDS),
    ),
    "start_positions must be candidates, got 5, which is none in sequence 1": (
        ValueError,
        lambda: MODEL.loss(IDS, [0, 5, -100, 0, 0], [-100] * 5, lengths=LENGTHS),
    ),
    "end_positions must be candidates, got 0, which is none in sequence 0": (
        ValueError,
        lambda: MODEL.loss(IDS, [-100] * 5, [0] * 5, candidates=np.zeros((5, 11), bool)),
    ),
    "start_positions must have the shape (5,) of the sequences, got (4,)": (
        ValueError,
        lambda: MODEL.loss(IDS, [0] * 4, ENDS),
    ),
    "end_positions must be integers, got float64": (TypeError, lambda: MODEL.loss(IDS, [0] * 5, [0.5] * 5)),
    "candidates must be bool, got int64": (TypeError, lambda: MODEL(IDS, candidates=IDS)),
    "candidates must have the shape of input_ids (5, 11), got (11,)": (
        ValueError,
        lambda: MODEL(IDS, candidates=np.ones(11, bool)),
    ),
    "longest must be at least 1, got 0": (ValueError, lambda: MODEL.answers(IDS, longest=0)),
    "saved must be what forward returned, got list": (TypeError, lambda: MODEL.backward([], IDS)),
    "d_output must have the shape of the output, (5, 2, 11), got (5, 11, 2)": (
        ValueError,
        lambda: MODEL.backward(MODEL.forward(IDS)[1], normal((5, 11, 2))),
    ),
    "input_ids must lie in [0, 22], got 23": (IndexError, lambda: MODEL([[23]])),
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_name_the_argument_what_it_must_be_and_what_it_was(text):
    kind, call = ERRORS[text]
    with pytest.raises(kind) as error:
        call()
    assert str(error.value).startswith(text)


def test_it_is_a_module():
    assert isinstance(MODEL, nn.Module)


def test_sequences_without_tokens_have_no_answers():
    model = models.BertForQuestionAnswering(models.BertConfig(5, 8, 1, 2, 16), rng=0)
    for shape in ((2, 0), (0, 3), (0, 0)):
        answers = model.answers(np.zeros(shape, np.int64))
        assert np.array_equal(answers.start, np.full(shape[0], -1))
        assert np.array_equal(answers.probability, np.zeros(shape[0]))
