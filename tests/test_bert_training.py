"""BERT as it is trained: gradients of packed sequences, a classifier on top, fine-tuning of parts."""

import dataclasses
import json

import blasformer
import numpy as np
import pytest
import reference
from blasformer import io, models, optim
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
DROPPING = models.BertConfig(
    **vars(CONFIG) | {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}
)
IDS = np.random.default_rng(0).integers(0, 23, (5, 11))
LENGTHS = np.array([11, 3, 0, 7, 1])
TYPES = np.random.default_rng(1).integers(0, 2, (5, 11))
LABELS = np.array([0, 2, 1, -100, 2])


def numpy_bert(parameters, dtype=np.float64):
    return reference.bert(parameters, IDS, num_heads=3, lengths=LENGTHS, token_type_ids=TYPES, dtype=dtype)


def test_gradients_are_the_derivatives_of_the_formula():
    model = shaken(models.BertModel(CONFIG, dtype=float, rng=0))
    _, saved = model.forward(IDS, lengths=LENGTHS, token_type_ids=TYPES)
    d_last, d_pooled = normal((5, 11, 24), np.float64, 3), normal((5, 24), np.float64, 4)
    nothing, grads = model.backward(saved, d_last, d_pooled)
    assert nothing is None

    def function(parameters):
        hidden, pooled = numpy_bert(parameters)
        seen = np.arange(11) < LENGTHS[:, None]
        return np.sum((d_last * hidden)[seen]) + np.sum((d_pooled * pooled)[LENGTHS > 0])

    assert_is_derivative(function, model.state_dict(), grads)


def test_an_output_whose_gradient_is_left_out_counts_nothing():
    model = shaken(models.BertModel(CONFIG, dtype=float, rng=0))
    d_last, d_pooled = normal((5, 11, 24), np.float64, 3), normal((5, 24), np.float64, 4)

    def gradients(*d_outputs):
        _, saved = model.forward(IDS, lengths=LENGTHS)
        return model.backward(saved, *d_outputs)[1]

    both, last, pooled = gradients(d_last, d_pooled), gradients(d_last), gradients(None, d_pooled)
    for name in both:
        np.testing.assert_allclose(last[name] + pooled[name], both[name], rtol=0, atol=1e-11)
    assert not last["pooler.dense.weight"].any()


def test_packed_sequences_have_the_gradients_each_has_alone():
    model = shaken(models.BertModel(CONFIG, dtype=float, rng=0))
    d_last = normal((5, 11, 24), np.float64, 3)
    _, saved = model.forward(IDS, lengths=LENGTHS)
    together = model.backward(saved, d_last)[1]
    alone = {name: np.zeros_like(array) for name, array in together.items()}
    for ids, length, d in zip(IDS, LENGTHS, d_last, strict=True):
        _, saved = model.forward(ids[:length])
        model.backward(saved, d[:length], accumulate=alone)
    for name in together:
        np.testing.assert_allclose(alone[name], together[name], rtol=0, atol=1e-11)


def classifier_loss(parameters, pooling, dtype=np.float64, **arguments):
    bert = reference.within(parameters, "bert.")
    if pooling == "mean":
        bert = {**bert, "pooler.dense.weight": np.zeros((24, 24)), "pooler.dense.bias": np.zeros(24)}
    hidden, pooled = numpy_bert(bert, dtype)
    if pooling == "mean":
        seen = np.arange(11) < LENGTHS[:, None]
        pooled = (hidden * seen[..., None]).sum(1) / np.maximum(LENGTHS, 1)[:, None].astype(dtype)
    else:
        pooled = pooled * (LENGTHS[:, None] > 0)
    weight, bias = parameters["classifier.weight"], parameters["classifier.bias"]
    logits = reference.linear(pooled, weight, bias, dtype=dtype)
    return reference.cross_entropy(logits, LABELS, **arguments, dtype=dtype)[0]


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_the_loss_of_a_classifier_and_its_gradients_are_the_formula(pooling):
    model = shaken(models.BertForSequenceClassification(CONFIG, 3, pooling, dtype=float, rng=0))
    loss, grads = model.loss_and_gradients(
        IDS, LABELS, lengths=LENGTHS, token_type_ids=TYPES, label_smoothing=0.1
    )

    def function(parameters):
        return classifier_loss(parameters, pooling, label_smoothing=0.1)

    assert loss == pytest.approx(function(model.state_dict()), rel=1e-12)
    # Without gradients the few rows of the head are read from packed weights, whose sums have another order.
    again = model.loss(IDS, LABELS, lengths=LENGTHS, token_type_ids=TYPES, label_smoothing=0.1)
    assert again == pytest.approx(loss, rel=1e-14)
    assert_is_derivative(function, model.state_dict(), grads)


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_gradients_of_the_loss_are_as_accurate_as_numpys(pooling, isa):
    model = shaken(models.BertForSequenceClassification(CONFIG, 3, pooling, rng=0))
    accuracy = Accuracy(
        lambda parameters, dtype: classifier_loss(parameters, pooling, dtype),
        model.state_dict(),
        1,
        np.float32,
    )
    _, grads = model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS, token_type_ids=TYPES)
    for name in [name for name in grads if name.endswith("key.bias")]:
        # It adds the same to all scores of a row, which changes no weight: the gradient is zero.
        largest = np.abs(grads[name.replace("key", "query")]).max()
        assert np.abs(grads.pop(name)).max() < 2e-6 * largest
    accuracy.check(grads)


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_gradients_under_dropout_are_those_of_what_was_dropped(pooling):
    model = shaken(models.BertForSequenceClassification(DROPPING, 3, pooling, dtype=float, rng=0))
    loss, grads = model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS, rng=5)
    assert loss != model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS, rng=6)[0]
    assert loss == model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS, rng=5)[0]

    def function(parameters):
        model.load_state_dict(parameters)
        return model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS, rng=5)[0]

    assert_is_derivative(function, model.state_dict(), grads)


def test_a_step_in_one_call_is_forward_loss_and_backward():
    model = models.BertForSequenceClassification(DROPPING, 3, rng=0)
    loss, grads = model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS, rng=5)
    logits, saved = model.forward(IDS, lengths=LENGTHS, rng=5)
    assert saved.nbytes > logits.nbytes
    expected, d_logits = blasformer.cross_entropy(logits, LABELS)
    _, separate = model.backward(saved, d_logits)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    for name, gradient in grads.items():
        np.testing.assert_allclose(gradient, separate[name], rtol=0, atol=1e-7)


def test_batches_of_a_step_add_up_to_the_step():
    model = models.BertForSequenceClassification(CONFIG, 3, dtype=float, rng=0)
    whole, expected = model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS)
    total, grads = 0.0, None
    for part in (slice(0, 2), slice(2, 5)):
        loss, grads = model.loss_and_gradients(
            IDS[part], LABELS[part], lengths=LENGTHS[part], divisor=4, accumulate=grads
        )
        total += loss
    assert total == pytest.approx(whole, rel=1e-12)
    for name, gradient in expected.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=0, atol=1e-14)


def test_gradients_have_the_same_bits_for_any_number_of_threads():
    model = models.BertForSequenceClassification(DROPPING, 3, rng=0)
    ids = np.random.default_rng(3).integers(0, 23, (17, 16))
    labels = np.arange(17) % 3
    found = []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            found.append(model.loss_and_gradients(ids, labels, rng=1))
    for loss, grads in found[1:]:
        assert loss == found[0][0]
        assert all(same_bits(gradient, found[0][1][name]) for name, gradient in grads.items())


def test_layers_below_the_lowest_that_learns_keep_the_gradients_of_the_others_as_they_are():
    model = models.BertForSequenceClassification(CONFIG, 3, rng=0)
    _, everything = model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS)
    model.freeze("bert.embeddings.*", "bert.encoder.layer.0.*", "bert.encoder.layer.1.attention.self.key.*")
    _, some = model.loss_and_gradients(IDS, LABELS, lengths=LENGTHS)
    assert set(some) == set(everything) - model.frozen
    assert all(same_bits(gradient, everything[name]) for name, gradient in some.items())


def test_nothing_to_learn_from_is_a_loss_of_zero():
    model = models.BertForSequenceClassification(CONFIG, 3, rng=0)
    loss, grads = model.loss_and_gradients(IDS, np.full(5, -100), lengths=LENGTHS)
    assert loss == 0
    assert not any(gradient.any() for gradient in grads.values())
    loss, grads = model.loss_and_gradients(np.zeros((0, 4), int), np.zeros(0, int))
    assert loss == 0
    assert not any(gradient.any() for gradient in grads.values())


def test_fine_tuning_learns_what_it_is_shown():
    model = models.BertForSequenceClassification(CONFIG, 3, rng=0)
    optimizer = optim.AdamW(model, lr=3e-3)
    labels = np.array([0, 1, 2, 0, 1])
    for step in range(60):
        loss, grads = model.loss_and_gradients(IDS, labels, rng=step)
        optimizer.step(grads)
    assert loss < 0.05
    assert (model.predict_proba(IDS).argmax(-1) == labels).all()


def test_a_saved_model_comes_back_with_its_bits(tmp_path):
    for pooling in ("pooler", "mean"):
        model = models.BertForSequenceClassification(CONFIG, 3, pooling, 0.25, rng=0)
        model.save(tmp_path)
        assert {"bert.encoder.layer.0.attention.self.query.weight", "classifier.bias"} <= set(
            io.load_tensors(tmp_path / "model.safetensors")
        )
        same = models.BertForSequenceClassification.from_pretrained(tmp_path)
        assert same_bits(same(IDS, lengths=LENGTHS), model(IDS, lengths=LENGTHS))
        assert same._arguments == model._arguments


@pytest.mark.parametrize("pooling", ["pooler", "mean"])
def test_a_saved_roberta_has_the_names_that_transformers_gives_it(tmp_path, pooling):
    config = dataclasses.replace(CONFIG, model_type="roberta", pad_token_id=None)
    model = models.BertForSequenceClassification(config, 3, pooling, rng=0)
    model.save(tmp_path)
    stored = io.load_tensors(tmp_path)
    expected = {"roberta.embeddings.LayerNorm.bias", "classifier.out_proj.weight", "classifier.out_proj.bias"}
    if pooling == "pooler":
        expected |= {"classifier.dense.weight", "classifier.dense.bias"}
    assert expected <= set(stored)
    assert all(name.startswith(("roberta.", "classifier.")) for name in stored)
    same = models.BertForSequenceClassification.from_pretrained(tmp_path)
    assert same_bits(same(IDS, lengths=LENGTHS), model(IDS, lengths=LENGTHS))
    assert same._arguments == model._arguments


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"classifier_dropout": "0.1"}, "classifier_dropout must be a number, got str"),
        ({"classifier_dropout": 2}, "dropout must lie between 0 and 1, got 2"),
        ({"blasformer_pooling": "max"}, "pooling must be one of pooler, mean, got 'max'"),
        ({"blasformer_pooling": [1]}, "pooling must be one of pooler, mean"),
        ({"id2label": ["a", "b", "c"]}, "id2label must be an object of names, or null, got \\["),
        ({"id2label": {"0": 1, "1": 2, "2": 3}}, "id2label must be an object of names, or null, got {"),
        ({"model_type": "roberta"}, "num_labels must be given: .* has no classifier"),
    ],
)
def test_a_configuration_that_does_not_fit_is_a_clear_error(tmp_path, change, text):
    models.BertForSequenceClassification(CONFIG, 3, rng=0).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=text) as raised:
        models.BertForSequenceClassification.from_pretrained(tmp_path)
    assert str(tmp_path) in str(raised.value)


def test_an_encoder_of_roberta_gets_a_new_head(tmp_path):
    config = dataclasses.replace(CONFIG, model_type="xlm-roberta", pad_token_id=1)
    encoder = models.BertModel(config, rng=0)
    encoder.save(tmp_path)
    model = models.BertForSequenceClassification.from_pretrained(tmp_path, 4, rng=1)
    own = model.parameters()
    assert model(IDS).shape == (5, 4)
    assert own["bert.pooler.dense.weight"].any()  # new: that of the encoder was trained for something else
    assert not same_bits(own["bert.pooler.dense.weight"], encoder.parameters()["pooler.dense.weight"])
    model.save(tmp_path)
    wider = models.BertForSequenceClassification.from_pretrained(tmp_path, 6, rng=2)
    assert wider(IDS).shape == (5, 6)
    assert same_bits(wider.parameters()["bert.pooler.dense.weight"], own["bert.pooler.dense.weight"])
    lone = {"classifier.out_proj.weight": own["classifier.weight"]}
    io.save_tensors(tmp_path / "model.safetensors", lone)
    with pytest.raises(ValueError, match=r"missing: bert\.embeddings\.LayerNorm\.bias"):
        models.BertForSequenceClassification.from_pretrained(tmp_path)


def test_classes_keep_their_names(tmp_path):
    model = models.BertForSequenceClassification(CONFIG, 2, labels=["bad", "good"], rng=0)
    model.save(tmp_path)
    loaded = models.BertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.labels == ("bad", "good")
    assert json.loads((tmp_path / "config.json").read_text())["label2id"] == {"bad": 0, "good": 1}
    anew = models.BertForSequenceClassification.from_pretrained(tmp_path, 3, rng=0)
    assert anew.labels == ("LABEL_0", "LABEL_1", "LABEL_2")


@pytest.mark.parametrize("names", [None, {"0": "a"}, {"0": "a", "1": "a"}])
def test_names_that_are_not_those_of_the_classes_are_passed_over(tmp_path, names):
    models.BertForSequenceClassification(CONFIG, 2, rng=0).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"id2label": names}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = models.BertForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.labels == ("LABEL_0", "LABEL_1")


def test_a_model_of_a_single_score_computes_it(tmp_path):
    config = dataclasses.replace(CONFIG, model_type="roberta", pad_token_id=None)
    model = models.BertForSequenceClassification(config, 1, dtype=np.float64, rng=0)
    model.save(tmp_path)
    loaded = models.BertForSequenceClassification.from_pretrained(tmp_path)
    parameters = loaded.parameters()
    bert = {name.removeprefix("bert."): array for name, array in parameters.items() if "bert." in name}
    _, pooled = reference.bert(bert, IDS, num_heads=3, positions=2 + np.arange(11))
    counted = np.all(IDS != 1, axis=-1)
    expected = pooled @ parameters["classifier.weight"].T + parameters["classifier.bias"]
    np.testing.assert_allclose(loaded(IDS)[counted], expected[counted], atol=1e-12)


def test_an_encoder_gets_a_new_classifier(tmp_path):
    models.BertForSequenceClassification(CONFIG, 3, rng=0).save(tmp_path)
    bert = models.BertModel.from_pretrained(tmp_path)
    model = models.BertForSequenceClassification.from_pretrained(tmp_path, 5, "mean", rng=1)
    assert model(IDS).shape == (5, 5)
    for name, array in bert.parameters().items():
        if not name.startswith("pooler."):
            assert same_bits(model.parameters()[f"bert.{name}"], array)


ERRORS = {
    "num_labels must be positive, got 0": lambda: models.BertForSequenceClassification(CONFIG, 0),
    r"labels must be 2 different names, got \['a', 'a'\]": lambda: models.BertForSequenceClassification(
        CONFIG, 2, labels=["a", "a"]
    ),
    "num_labels must be at least 2 for probabilities and losses, got 1": lambda: (
        models.BertForSequenceClassification(CONFIG, 1).loss_and_gradients(IDS, [0] * 5)
    ),
    "pooling must be one of pooler, mean, got 'max'": lambda: models.BertForSequenceClassification(
        CONFIG, 3, "max"
    ),
    "labels must be as many as the 5 sequences, got 4": lambda: models.BertForSequenceClassification(
        CONFIG, 3
    ).loss_and_gradients(IDS, LABELS[:4]),
    r"d_last_hidden_state must have the shape of last_hidden_state, \(5, 11, 24\), got \(5, 11\)": lambda: (
        backward(np.zeros((5, 11), np.float32))
    ),
    r"d_pooler_output must have the shape of pooler_output, \(5, 24\), got \(24,\)": lambda: backward(
        None, np.zeros(24, np.float32)
    ),
}


def backward(*d_outputs):
    model = models.BertModel(CONFIG, rng=0)
    return model.backward(model.forward(IDS)[1], *d_outputs)


@pytest.mark.parametrize("text", ERRORS)
def test_errors_name_the_argument_what_it_must_be_and_what_it_was(text):
    with pytest.raises(ValueError, match=text):
        ERRORS[text]()


def test_labels_out_of_range_are_an_index_error():
    model = models.BertForSequenceClassification(CONFIG, 3, rng=0)
    with pytest.raises(IndexError, match="3"):
        model.loss_and_gradients(IDS, [0, 1, 2, 3, 0])


def test_a_saved_value_of_bert_is_used_once():
    model = models.BertModel(CONFIG, rng=0)
    _, saved = model.forward(IDS)
    model.backward(saved)
    with pytest.raises(RuntimeError, match="saved was used already"):
        model.backward(saved)
    with pytest.raises(TypeError, match="saved must be what forward returned, got int"):
        model.backward(3)
