"""train.fit: losses that fall, means that are right, and runs that lose nothing when they are stopped."""

import itertools
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import fresh_python
import numpy as np
import pytest
from blasformer import cross_entropy, lora, models, nn, optim, train
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5)).astype(np.float32)
Y = (X[:, 0] + X[:, 1] * X[:, 2] > 0).astype(np.int64)
BATCHES = [(X[i : i + 10], Y[i : i + 10]) for i in range(0, 60, 10)]


def squared_error(y, targets):
    """The mean over all elements, and its gradient."""
    difference = y - targets
    return float((difference**2).mean()), 2 * difference / difference.size


def make_model(seed=0):
    return nn.Sequential(
        nn.Linear(5, 8, rng=seed), nn.FeedForward(8, 16, dropout=0.2, rng=seed), nn.Linear(8, 2, rng=seed)
    )


def fit(model, batches=BATCHES, *, kind=optim.AdamW, lr=0.01, **arguments):
    return train.fit(model, batches, loss=cross_entropy, optimizer=kind(model, lr=lr), **arguments)


def assert_same_weights(one, other):
    for name, array in one.parameters().items():
        np.testing.assert_array_equal(array, other.parameters()[name], err_msg=name)


def assert_same_run(one, other):
    np.testing.assert_array_equal(one.loss, other.loss)
    np.testing.assert_array_equal(one.lr, other.lr)
    np.testing.assert_array_equal(one.gradient_norm, other.gradient_norm)
    np.testing.assert_array_equal(one.evaluated_at, other.evaluated_at)
    assert one.metrics.keys() == other.metrics.keys()
    for name, values in one.metrics.items():
        np.testing.assert_array_equal(values, other.metrics[name])


# ----------------------------------------------------------------------------------------------------------
# Steps
# ----------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_history_holds_every_step():
    model = make_model()
    history = fit(model, epochs=20, rng=0)
    assert history.loss.shape == history.lr.shape == history.gradient_norm.shape == (120,)
    assert history.loss[-6:].mean() < 0.5 * history.loss[:6].mean()
    assert (history.lr == 0.01).all()
    assert (history.gradient_norm > 0).all()
    assert (len(history), history.stopped, history.metrics) == (120, "finished", {})
    assert repr(history).startswith("History(120 steps, loss 0.")


def test_training_is_forward_loss_backward_and_step():
    model, by_hand = make_model(), make_model()
    history = fit(model, kind=optim.SGD, lr=0.1)
    optimizer = optim.SGD(by_hand, lr=0.1)
    for step, (x, targets) in enumerate(BATCHES):
        y, saved = by_hand.forward(x)
        loss, d_y = cross_entropy(y, targets)
        norm = optimizer.step(by_hand.backward(saved, d_y)[1])
        assert (history.loss[step], history.gradient_norm[step]) == (loss, norm)
    assert_same_weights(model, by_hand)


def test_without_rng_nothing_is_dropped_and_with_the_same_rng_the_same():
    models = [make_model() for _ in range(4)]
    for model, rng in zip(models, (None, 3, np.random.default_rng(3), 4), strict=True):
        fit(model, rng=rng, epochs=2)
    assert_same_weights(models[1], models[2])
    weights = [model.parameters()["1.linear1.weight"] for model in models]
    assert not np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[1], weights[3])


def test_accumulated_steps_are_the_mean_over_all_their_targets():
    cuts = [0, 3, 20, 21, 40]  # batches of very different sizes
    batches = [(X[a:b], Y[a:b].copy()) for a, b in itertools.pairwise(cuts)]
    batches[1][1][2:9] = -100
    whole = (X[:40], np.concatenate([targets for _, targets in batches]))
    model, at_once = make_model(), make_model()
    history = fit(model, batches, kind=optim.SGD, lr=0.1, accumulate=4)
    expected = fit(at_once, [whole], kind=optim.SGD, lr=0.1)
    assert len(history) == 1
    np.testing.assert_allclose(history.loss, expected.loss, rtol=1e-6)
    for name, array in model.parameters().items():
        np.testing.assert_allclose(array, at_once.parameters()[name], rtol=1e-5, atol=1e-7)


def test_the_last_step_of_an_epoch_may_have_fewer_batches():
    assert len(fit(make_model(), accumulate=4, epochs=3)) == 6


def test_targets_that_are_numbers_count_by_their_elements():
    targets = RNG.standard_normal((60, 2)).astype(np.float32)
    batches = [(X[:7], targets[:7]), (X[7:], targets[7:])]
    model, at_once = make_model(), make_model()
    for trained, data, accumulate in ((model, batches, 2), (at_once, [(X, targets)], 1)):
        optimizer = optim.SGD(trained, lr=0.1)
        train.fit(trained, data, loss=squared_error, optimizer=optimizer, accumulate=accumulate)
    for name, array in model.parameters().items():
        np.testing.assert_allclose(array, at_once.parameters()[name], rtol=1e-5, atol=1e-7)


def test_batches_may_be_dicts_and_functions_of_the_epoch():
    asked = []

    def batches(epoch):
        asked.append(epoch)
        return ({"x": x, "targets": targets} for x, targets in BATCHES)

    model, other = make_model(), make_model()
    fit(model, batches, epochs=2)
    fit(other, epochs=2)
    assert asked == [0, 1]
    assert_same_weights(model, other)


def test_a_generator_serves_one_epoch_and_is_refused_for_more():
    assert len(fit(make_model(), iter(BATCHES))) == 6
    with pytest.raises(ValueError, match="batches must be there again in every epoch"):
        fit(make_model(), iter(BATCHES), epochs=2)


def test_the_schedule_gives_the_rate_of_every_step():
    schedule = optim.cosine_schedule(0.1, steps=12, warmup=3)
    history = fit(make_model(), epochs=2, schedule=schedule)
    np.testing.assert_array_equal(history.lr, [schedule(step) for step in range(12)])


def test_training_ends_after_so_many_steps_or_epochs():
    assert len(fit(make_model(), max_steps=4, epochs=3)) == 4
    assert len(fit(make_model(), max_steps=15, epochs=None)) == 15
    assert len(fit(make_model(), max_steps=100, epochs=2)) == 12


def test_layers_of_users_train():
    class Affine:
        def __init__(self):
            self.weight = np.zeros((5, 1))

        def parameters(self):
            return {"weight": self.weight}

        def forward(self, x, *, rng=None):
            return x @ self.weight, x

        def backward(self, saved, d_y):
            return d_y @ self.weight.T, {"weight": saved.T @ d_y}

    model, x = Affine(), X.astype(np.float64)
    truth = np.arange(5.0)[:, None]
    train.fit(model, [(x, x @ truth)], loss=squared_error, optimizer=optim.SGD(model, lr=0.3), epochs=300)
    np.testing.assert_allclose(model.weight, truth, atol=1e-6)


class LineModel:
    """y = a x, which knows its loss: the contract of models."""

    def __init__(self):
        self.a = np.zeros(1)
        self.asked = []

    def parameters(self):
        return {"a": self.a}

    def target_count(self, x, y):
        return len(y)

    def loss_and_gradients(self, x, y, *, rng=None, divisor=None, accumulate=None):
        self.asked.append((divisor, accumulate is not None))
        divisor = len(y) if divisor is None else divisor
        off = self.a * x - y
        gradient = np.array([(2 * off * x).sum() / divisor])
        if accumulate is not None:
            accumulate["a"] += gradient
        return (off**2).sum() / divisor, accumulate or {"a": gradient}

    def loss(self, x, y):
        return self.loss_and_gradients(x, y)[0]


def test_a_model_that_knows_its_loss_is_asked_for_it():
    x = np.array([1.0, 2.0, 3.0, 4.0])
    batches = [(x[:3], 2 * x[:3]), {"x": x[3:], "y": 2 * x[3:]}]
    one, two = LineModel(), LineModel()
    history = train.fit(one, batches, optimizer=optim.SGD(one, lr=0.05), accumulate=2, evaluate=batches)
    train.fit(two, [(x, 2 * x)], optimizer=optim.SGD(two, lr=0.05))
    assert one.a == pytest.approx(two.a, rel=1e-12)
    assert one.asked[:2] == [(4, False), (4, True)]
    assert history.metrics["loss"] == pytest.approx([((one.a * x - 2 * x) ** 2).mean()])


def test_our_models_train_and_resume(tmp_path):
    def make():
        return models.LanguageModel(11, max_length=8, d_model=16, nhead=2, num_layers=1, rng=0)

    ids = np.random.default_rng(0).integers(0, 11, (4, 8))
    batches = [{"ids": ids, "lengths": [8, 3, 5, 2]}, ids[:2], (ids[2:],)]
    settings = {"accumulate": 2, "epochs": 3, "rng": 0, "evaluate": batches}
    whole, stopped, resumed = make(), make(), make()
    expected = train.fit(whole, batches, optimizer=optim.AdamW(whole, lr=0.01), **settings)
    assert expected.loss[-1] < expected.loss[0]
    for model, limit in ((stopped, 3), (resumed, None)):
        optimizer = optim.AdamW(model, lr=0.01)
        history = train.fit(
            model, batches, optimizer=optimizer, **settings, max_steps=limit, checkpoint=tmp_path
        )
    assert_same_run(history, expected)
    assert_same_weights(resumed, whole)


def test_a_classifier_is_fine_tuned_with_what_is_frozen_left_alone(tmp_path):
    config = models.BertConfig(13, 12, 2, 3, 16, max_position_embeddings=8)
    model = models.BertForSequenceClassification(config, 2, rng=0)
    lora.add(model, ["query", "value"], rank=2, also="classifier.*", rng=1)
    before = model.state_dict()
    random = np.random.default_rng(0)
    ids, labels = random.integers(0, 13, (6, 8)), np.array([0, 1, 1, 0, -100, 1])
    batches = [{"input_ids": ids[:2], "labels": labels[:2]}, (ids[2:], labels[2:])]
    history = train.fit(
        model,
        batches,
        optimizer=optim.AdamW(model, lr=0.05),
        epochs=30,
        accumulate=2,
        evaluate=batches,
        early_stopping=train.EarlyStopping(patience=30),
        checkpoint=tmp_path,
    )
    assert history.metrics["loss"][-1] < 0.5 * history.metrics["loss"][0]
    assert history.metrics["loss"].min() == pytest.approx(model.loss(ids, labels), rel=1e-5)
    for name, array in model.parameters().items():
        assert np.array_equal(array, before[name]) == (name in model.frozen), name


def test_fifty_steps_are_those_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is an optional cross-check")
    ours = nn.Sequential(
        nn.Linear(5, 16, dtype=np.float64, rng=0),
        nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", dtype=np.float64, rng=1),
        nn.Linear(16, 3, dtype=np.float64, rng=2),
    )
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, activation="gelu", batch_first=True)
    theirs = torch.nn.Sequential(torch.nn.Linear(5, 16), layer, torch.nn.Linear(16, 3)).double()
    theirs.load_state_dict({name: torch.tensor(array) for name, array in ours.state_dict().items()})
    random = np.random.default_rng(0)
    x, targets = random.standard_normal((6, 7, 5)), random.integers(0, 3, (6, 7))
    targets[0, 3:] = -100
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        logits = theirs(torch.tensor(x)).reshape(-1, 3)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).reshape(-1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    adamw = optim.AdamW(ours, lr=0.01, weight_decay=0.1)
    history = train.fit(ours, [(x, targets)], loss=cross_entropy, optimizer=adamw, epochs=50)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-8)
    assert losses[-1] < 0.5 * losses[0]


def test_parameters_of_any_shape_and_strides_come_back_from_checkpoints(tmp_path):
    class Scale:
        def __init__(self):
            self.scale, self.weight = np.array(3.0), np.arange(10.0).reshape(5, 2).T[:, ::2]

        def parameters(self):
            return {"scale": self.scale, "weight": self.weight}

        def forward(self, x, *, rng=None):
            return self.scale * x, x

        def backward(self, saved, d_y):
            return self.scale * d_y, {"scale": (saved * d_y).sum(), "weight": np.ones((2, 3))}

    model, other = Scale(), Scale()
    optimizer = optim.Adam(model, lr=0.1)
    train.fit(model, [(X, X)], loss=squared_error, optimizer=optimizer, checkpoint=tmp_path)
    train.load_checkpoint(tmp_path, other)
    assert other.scale == model.scale != 3
    np.testing.assert_array_equal(other.weight, model.weight)
    np.testing.assert_allclose(model.weight, np.arange(10.0).reshape(5, 2).T[:, ::2] - 0.1)


def test_without_a_loss_or_a_count_there_is_a_clear_error():
    class Uncounted(LineModel):
        target_count = property()

    model, uncounted = make_model(), Uncounted()
    with pytest.raises(TypeError, match=r"loss must be given, as Sequential has no loss_and_gradients"):
        train.fit(model, BATCHES, optimizer=optim.SGD(model))
    with pytest.raises(TypeError, match="count must be given, as Uncounted has no target_count"):
        train.fit(uncounted, [(X, X)], optimizer=optim.SGD(uncounted), evaluate=[(X, X)])


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"epochs": 0}, ValueError, "epochs must be >= 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, got float"),
        ({"epochs": None}, ValueError, "epochs or max_steps must be given"),
        ({"accumulate": True}, TypeError, "accumulate must be an integer, got bool"),
        ({"early_stopping": train.EarlyStopping()}, ValueError, "evaluate must be given for early_stopping"),
        ({"early_stopping": 3}, TypeError, "early_stopping must be an EarlyStopping, got int"),
        ({"count": 3}, TypeError, "count must be a function, got int"),
        ({"schedule": 1e-3}, TypeError, "schedule must be a function, got float"),
        ({"callbacks": print}, TypeError, "callbacks must be a sequence of functions, got builtin_function"),
        ({"callbacks": [print, 3]}, TypeError, r"callbacks\[1\] must be a function, got int"),
        ({"batches": 3}, TypeError, "batches must be batches, or a function, got int"),
        ({"evaluate": 3}, TypeError, "evaluate must be batches, or a function, got int"),
        ({"batches": []}, ValueError, "batches must have a batch in every epoch, got none in epoch 0"),
        (
            {"batches": [X]},
            TypeError,
            r"\(inputs..., targets\) or a dict with 'targets', got an array .*Batches",
        ),
        (
            {"batches": [(X,)]},
            TypeError,
            r"\(inputs..., targets\) or a dict with 'targets', got a tuple of 1",
        ),
        ({"batches": [{"x": X}]}, ValueError, "a batch must have the key 'targets', got x"),
        ({"evaluate": []}, ValueError, "evaluate must have a batch in every evaluation, got none"),
        ({"evaluate": lambda model: 3}, TypeError, "evaluate must return {name: number}, got int"),
        (
            {"evaluate": BATCHES, "early_stopping": train.EarlyStopping(metric="accuracy")},
            ValueError,
            "metric must be one of loss, got 'accuracy'",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments, kind, text):
    with pytest.raises(kind, match=text):
        fit(make_model(), **arguments)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        (X, r"missing a required argument: 'targets', got an array .*; data.Batches\(x, y, batch_size=...\)"),
        ({"x": X, "labels": [1]}, "missing a required argument: 'targets', got a dict of 2"),
        ({"x": X, "targets": [1], "y": 3}, "got an unexpected keyword argument 'y', got a dict of 3"),
    ],
)
def test_a_batch_that_is_not_what_the_model_takes_is_named(batch, text):
    model = models.Classifier(2, in_features=8, max_length=9, d_model=8, nhead=2, num_layers=1, rng=0)
    message = rf"a batch must hold the arguments of Classifier.loss_and_gradients\(\): {text}"
    with pytest.raises(TypeError, match=message):
        train.fit(model, [batch], optimizer=optim.SGD(model, lr=0.1))


def test_what_is_no_layer_or_no_loss_is_refused():
    model = make_model()
    with pytest.raises(TypeError, match=r"model must have parameters\(\), as nn.Module says, got list"):
        train.fit([], BATCHES, loss=cross_entropy, optimizer=optim.SGD(model))
    with pytest.raises(TypeError, match="loss must be a function, got str"):
        train.fit(model, BATCHES, loss="mse", optimizer=optim.SGD(model))
    with pytest.raises(TypeError, match=r"loss must return \(mean loss, its gradient\), got float"):
        train.fit(model, BATCHES, loss=lambda y, targets: 3.0, optimizer=optim.SGD(model))


def test_an_optimiser_of_another_model_is_refused_and_one_of_the_same_weights_is_not():
    model, other = make_model(), make_model()
    with pytest.raises(
        ValueError, match=r"optimizer must be made for this model, got one for others: SGD\(lr"
    ):
        train.fit(model, BATCHES, loss=cross_entropy, optimizer=optim.SGD(other))
    assert_same_weights(model, other)
    optimizer = optim.SGD(nn.Sequential(*model.layers), lr=0.1)
    train.fit(model, BATCHES, loss=cross_entropy, optimizer=optimizer)
    assert optimizer.steps == len(BATCHES)


@pytest.mark.parametrize(
    ("rule", "kind", "text"),
    [
        ({"patience": 0}, ValueError, "patience must be >= 1, got 0"),
        ({"patience": 1.5}, TypeError, "patience must be an integer, got float"),
        ({"metric": 3}, TypeError, "metric must be a string, got int"),
        ({"min_delta": "0.1"}, TypeError, "min_delta must be a number, got str"),
        ({"min_delta": np.nan}, ValueError, "min_delta must be >= 0 and finite, got nan"),
    ],
)
def test_rules_of_early_stopping_that_make_no_sense_are_refused(rule, kind, text):
    with pytest.raises(kind, match=text):
        train.EarlyStopping(**rule)


def test_a_loss_that_is_not_finite_is_an_error_that_leaves_the_weights_of_the_step_before():
    model, other = make_model(), make_model()
    broken = [*BATCHES[:2], (X[:10] * np.float32(np.nan), Y[:10]), *BATCHES[2:]]
    with pytest.raises(ValueError, match="loss must be finite, got nan in step 2, epoch 0, batch 2 of it"):
        fit(model, broken)
    fit(other, BATCHES[:2])
    assert_same_weights(model, other)


def test_steps_whose_loss_is_not_finite_are_skipped_on_request():
    model, other = make_model(), make_model()
    broken = [*BATCHES[:2], (X[:10] * np.float32(np.nan), Y[:10]), *BATCHES[2:]]
    optimizer = optim.AdamW(model, lr=0.01, nonfinite="skip")
    history = train.fit(model, broken, loss=cross_entropy, optimizer=optimizer)
    fit(other)
    assert_same_weights(model, other)
    assert np.isnan(history.loss[2])
    assert np.isfinite(np.delete(history.loss, 2)).all()


# ----------------------------------------------------------------------------------------------------------
# Evaluation, callbacks, and what is shown
# ----------------------------------------------------------------------------------------------------------


def test_evaluation_is_the_mean_over_all_targets_without_dropout():
    model = make_model()
    uneven = [(X[:7], Y[:7]), (X[7:], Y[7:])]
    history = fit(model, epochs=2, evaluate=uneven, rng=0)
    assert history.evaluated_at.tolist() == [6, 12]
    assert history.metrics["loss"][-1] == pytest.approx(cross_entropy(model(X), Y)[0], rel=1e-6)
    assert "evaluated loss 0." in repr(history)


def test_evaluation_may_be_a_function_and_come_every_few_steps():
    def accuracy(model):
        return {"accuracy": (model(X).argmax(1) == Y).mean()}

    history = fit(make_model(), epochs=2, evaluate=accuracy, evaluate_every=5)
    assert history.evaluated_at.tolist() == [5, 10]
    assert history.metrics["accuracy"].shape == (2,)


@pytest.mark.parametrize("larger_is_better", [False, True])
def test_training_stops_when_evaluation_does_not_become_better(larger_is_better):
    values = iter([3.0, 2.0, 2.5, math.nan, 1.0])
    weights = []

    def evaluate(model):
        weights.append({name: array.copy() for name, array in model.parameters().items()})
        return {"score": next(values) * (-1 if larger_is_better else 1)}

    model = make_model()
    rule = train.EarlyStopping(patience=2, metric="score", larger_is_better=larger_is_better)
    history = fit(model, epochs=9, evaluate=evaluate, early_stopping=rule)
    assert (history.stopped, len(history.evaluated_at)) == ("early stopping", 4)
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, weights[1][name])


def test_a_gain_must_be_large_enough_and_the_last_weights_may_stay():
    values = iter([3.0, 2.9, 2.8, 2.0])
    model, other = make_model(), make_model()
    rule = train.EarlyStopping(patience=2, metric="score", min_delta=0.5, restore_best=False)
    history = fit(model, epochs=9, evaluate=lambda model: {"score": next(values)}, early_stopping=rule)
    assert len(history.evaluated_at) == 3
    fit(other, epochs=3)
    assert_same_weights(model, other)


def test_callbacks_are_told_every_step_and_can_stop():
    told = []

    def callback(step):
        told.append(step)
        return step.step == 8

    history = fit(make_model(), epochs=5, evaluate=BATCHES, callbacks=[callback])
    assert (len(history), history.stopped) == (8, "callback")
    assert [(step.step, step.epoch) for step in told] == [(n, 0 if n <= 6 else 1) for n in range(1, 9)]
    assert [step.loss for step in told] == history.loss.tolist()
    assert [list(step.metrics) for step in told] == [[]] * 5 + [["loss"]] + [[]] * 2


def test_progress_is_shown_when_asked_for(capsys):
    pytest.importorskip("tqdm")
    fit(make_model(), epochs=2, evaluate=BATCHES, progress=True)
    shown = capsys.readouterr().err
    assert "Training: 100%" in shown
    assert "12/12" in shown
    assert "loss=" in shown
    for quiet in (None, False):
        fit(make_model(), progress=quiet)
        assert capsys.readouterr() == ("", "")


def test_history_is_drawn():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    history = fit(make_model(), epochs=3, evaluate=BATCHES)
    ax = history.plot()
    assert [line.get_label() for line in ax.lines] == ["training", "evaluation"]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), history.loss)
    assert history.plot(ax) is ax
    pyplot.close("all")


# ----------------------------------------------------------------------------------------------------------
# Ctrl-C
# ----------------------------------------------------------------------------------------------------------


def interrupt(step):
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_ends_after_the_running_step_and_what_follows_continues(tmp_path):
    whole, model = make_model(), make_model()
    expected = fit(whole, epochs=3, rng=0)
    at_eight = [lambda step: interrupt(step) if step.step == 8 else None]
    history = fit(model, epochs=3, rng=0, callbacks=at_eight, checkpoint=tmp_path)
    assert (len(history), history.stopped) == (8, "interrupted")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_same_run(fit(model, epochs=3, rng=0, checkpoint=tmp_path), expected)
    assert_same_weights(model, whole)


def test_a_second_ctrl_c_is_obeyed_at_once():
    def twice(step):
        interrupt(step)
        interrupt(step)
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        fit(make_model(), callbacks=[twice])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_evaluation_that_was_interrupted_is_made_up_for(tmp_path):
    class Interrupting:
        def __iter__(self):
            for batch in BATCHES:
                yield batch
                interrupt(None)

    whole, model = make_model(), make_model()
    expected = fit(whole, epochs=3, evaluate=BATCHES)
    history = fit(model, epochs=3, evaluate=Interrupting(), checkpoint=tmp_path)
    assert (len(history), history.stopped, history.metrics) == (6, "interrupted", {})
    assert_same_run(fit(model, epochs=3, evaluate=BATCHES, checkpoint=tmp_path), expected)


def test_training_works_outside_of_the_main_thread():
    results = []
    thread = threading.Thread(target=lambda: results.append(fit(make_model())))
    thread.start()
    thread.join()
    assert results[0].stopped == "finished"


# ----------------------------------------------------------------------------------------------------------
# Checkpoints
# ----------------------------------------------------------------------------------------------------------


def shuffled(epoch):
    order = np.random.default_rng([7, epoch]).permutation(len(BATCHES))
    return [BATCHES[i] for i in order]


SETTINGS = {
    "epochs": 4,
    "accumulate": 2,
    "rng": 5,
    "evaluate": BATCHES[:2],
    "early_stopping": train.EarlyStopping(patience=3),
    "schedule": optim.cosine_schedule(0.02, steps=12, warmup=2),
}


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD, optim.Lion])
@pytest.mark.parametrize("stop", [1, 2, 3, 6, 11])
def test_a_resumed_run_has_the_same_bits(kind, stop, tmp_path):
    whole, model = make_model(), make_model()
    expected = fit(whole, shuffled, kind=kind, **SETTINGS)
    stopped = fit(model, shuffled, kind=kind, **SETTINGS, max_steps=stop, checkpoint=tmp_path)
    assert len(stopped) == stop
    resumed = make_model(seed=99)
    history = fit(resumed, shuffled, kind=kind, **SETTINGS, checkpoint=tmp_path)
    assert_same_run(history, expected)
    assert_same_weights(resumed, whole)


def test_a_finished_run_is_not_repeated_and_can_be_prolonged(tmp_path):
    whole, model, again = make_model(), make_model(), make_model(1)
    fit(model, epochs=2, rng=1, checkpoint=tmp_path)
    assert len(fit(again, epochs=2, rng=1, checkpoint=tmp_path)) == 12
    assert_same_weights(again, model)
    assert len(fit(again, epochs=3, rng=1, checkpoint=tmp_path)) == 18
    fit(whole, epochs=3, rng=1)
    assert_same_weights(again, whole)


def test_so_many_checkpoints_stay_and_nothing_else(tmp_path):
    fit(make_model(), epochs=2, checkpoint=tmp_path / "new" / "run", checkpoint_every=5, keep_checkpoints=2)
    names = sorted(path.name for path in (tmp_path / "new" / "run").iterdir())
    assert names == ["step-000000010.safetensors", "step-000000012.safetensors"]


def test_remnants_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".step-000000003.safetensors.abc").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    fit(make_model(), checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "step-000000006.safetensors"]


def test_resume_false_refuses_a_folder_with_checkpoints(tmp_path):
    fit(make_model(), checkpoint=tmp_path, resume=False)
    with pytest.raises(ValueError, match="checkpoint must be a folder without checkpoints for resume=False"):
        fit(make_model(), checkpoint=tmp_path, resume=False)


def test_a_checkpoint_is_a_safetensors_file_with_the_weights_under_their_names(tmp_path):
    model = make_model()
    fit(model, checkpoint=tmp_path)
    arrays = load_file(tmp_path / "step-000000006.safetensors")
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(arrays[f"model.{name}"], array)


def test_weights_of_a_checkpoint_are_loaded_by_themselves(tmp_path):
    values = iter([1.0, 2.0, 3.0])
    rule = train.EarlyStopping(patience=2, metric="m")
    model, last, best = make_model(), make_model(1), make_model(2)
    fit(model, epochs=3, evaluate=lambda model: {"m": next(values)}, early_stopping=rule, checkpoint=tmp_path)
    assert train.load_checkpoint(tmp_path, best, best=True) == 18
    assert_same_weights(best, model)
    train.load_checkpoint(tmp_path / "step-000000018.safetensors", last)
    expected = make_model()
    fit(expected, epochs=3)
    assert_same_weights(last, expected)


def altered(path, change):
    """The checkpoint with its arrays and metadata changed."""
    arrays = load_file(path)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
    change(arrays, metadata)
    save_file(arrays, path, metadata)


def test_a_checkpoint_of_something_else_is_one_clear_error_and_changes_nothing(tmp_path):
    fit(make_model(), checkpoint=tmp_path, rng=0)
    other = nn.Sequential(nn.Linear(5, 3, rng=0))
    before = other.state_dict()
    with pytest.raises(
        ValueError, match=r"must be of this Sequential; unexpected: .*; wrong shape: 0.bias must"
    ):
        fit(other, epochs=2, rng=0, checkpoint=tmp_path)
    for name, array in other.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    model = make_model(3)
    before = model.state_dict()
    optimizer = optim.SGD(model, momentum=0.9)
    with pytest.raises(
        ValueError, match=r"must be of this optimizer; state must be a state dict of SGD; missing"
    ):
        train.fit(model, BATCHES, loss=cross_entropy, optimizer=optimizer, rng=0, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="rng must be given, as it was for "):
        fit(model, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"must hold weights of a best evaluation for best=True"):
        train.load_checkpoint(tmp_path, model, best=True)
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    assert optimizer.steps == 0


def drop_metadata(arrays, metadata):
    metadata.clear()


def drop_state(arrays, metadata):
    metadata["state"] = "{"


def drop_position(arrays, metadata):
    metadata["state"] = '{"step": 6}'


def drop_history(arrays, metadata):
    del arrays["history"]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (drop_metadata, "is not a checkpoint of training"),
        (drop_state, "is damaged: its state is not valid JSON"),
        (drop_position, "is damaged: KeyError"),
        (drop_history, "is damaged: KeyError"),
    ],
)
def test_a_damaged_checkpoint_is_a_clear_error(change, text, tmp_path):
    fit(make_model(), checkpoint=tmp_path)
    altered(tmp_path / "step-000000006.safetensors", change)
    with pytest.raises(ValueError, match=text):
        fit(make_model(), epochs=2, checkpoint=tmp_path)


def test_a_truncated_checkpoint_is_a_clear_error(tmp_path):
    fit(make_model(), checkpoint=tmp_path)
    path = tmp_path / "step-000000006.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="is not a valid safetensors file, or is damaged or truncated"):
        fit(make_model(), epochs=2, checkpoint=tmp_path)


def test_a_folder_without_checkpoints_is_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no checkpoint of training"):
        train.load_checkpoint(tmp_path, make_model())


# ----------------------------------------------------------------------------------------------------------
# In processes of their own: killed, without space, without permission
# ----------------------------------------------------------------------------------------------------------

LONG = SETTINGS | {"epochs": 60, "early_stopping": train.EarlyStopping(patience=60)}

PROGRAM = f"""
import os, resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_train
from test_train import *
model = make_model()
"""


def python(program, *arguments):
    command = [sys.executable, "-c", PROGRAM + program, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, env=fresh_python.environment())


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    program = """
slow = [lambda step: time.sleep(0.01)]
print("ready", flush=True)
fit(model, shuffled, **LONG, callbacks=slow, checkpoint=sys.argv[1], checkpoint_every=1)
"""
    clock = random.Random(0)
    for _ in range(4):
        with python(program, tmp_path) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(clock.uniform(0.02, 0.3))
            process.kill()
        assert process.returncode == -signal.SIGKILL, "it ended before it was killed"
    with python(program, tmp_path) as process:
        _, errors = process.communicate(timeout=fresh_python.TIME_LIMIT)
    assert process.returncode == 0, errors
    whole, resumed = make_model(), make_model(3)
    expected = fit(whole, shuffled, **LONG)
    history = fit(resumed, shuffled, **LONG, checkpoint=tmp_path)
    assert len(history) == 180
    assert_same_run(history, expected)
    assert_same_weights(resumed, whole)


def test_a_full_disk_is_a_clear_error_and_the_checkpoints_before_are_intact(tmp_path):
    program = """
def fill(step):
    if step.step == 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    fit(model, callbacks=[fill], checkpoint=sys.argv[1], checkpoint_every=2)
except OSError as error:
    print(error)
    print(np.isfinite(model(X)).all())
"""
    with python(program, tmp_path) as process:
        output, errors = process.communicate(timeout=fresh_python.TIME_LIMIT)
    first, usable = output.strip().split("\n")
    assert first.startswith(f"{tmp_path}/step-000000004.safetensors cannot be written: "), errors
    assert "File too large" in first
    assert usable == "True"
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000002.safetensors"]
    whole, resumed = make_model(), make_model(1)
    fit(whole)
    assert len(fit(resumed, checkpoint=tmp_path)) == 6
    assert_same_weights(resumed, whole)


def test_a_folder_that_cannot_be_written_is_found_out_before_training(tmp_path):
    program = """
before = model.state_dict()
os.chdir(sys.argv[1])
if os.geteuid() == 0:
    try:
        os.seteuid(65534)
    except OSError:
        sys.exit("root may write everywhere, and is not allowed to become another user here")
try:
    fit(model, checkpoint=".")
except PermissionError as error:
    print(error)
    print(all(np.array_equal(array, before[name]) for name, array in model.parameters().items()))
"""
    tmp_path.chmod(0o555)
    with python(program, tmp_path) as process:
        output, errors = process.communicate(timeout=fresh_python.TIME_LIMIT)
    if "root may write everywhere" in errors:
        pytest.skip(errors)
    assert "Permission denied" in output, errors
    assert output.strip().endswith("True")
    with pytest.raises(FileExistsError):
        fit(make_model(), checkpoint=__file__)


def test_saving_without_safetensors_says_how_to_get_it():
    program = """
sys.modules["safetensors"] = None
try:
    fit(model, checkpoint="somewhere")
except ImportError as error:
    print(error)
"""
    with python(program) as process:
        output, errors = process.communicate(timeout=fresh_python.TIME_LIMIT)
    assert "writing checkpoints needs the package safetensors: pip install 'blasformer[io]'" in output, errors
