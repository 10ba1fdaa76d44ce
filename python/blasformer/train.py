"""Training: a loop that can be watched, stopped, and resumed as if it had never been stopped.

    history = train.fit(
        model, batches, loss=cross_entropy, optimizer=optim.AdamW(model, lr=1e-3, clip_norm=1.0), epochs=10,
        schedule=optim.cosine_schedule(1e-3, steps=1000, warmup=100), rng=0, evaluate=held_out,
        early_stopping=train.EarlyStopping(patience=3), checkpoint="run1",
    )
    history.plot()

A model is either a layer (any that follows `nn.Module`) together with a `loss`, or one that knows its loss:

    model.loss_and_gradients(*batch, rng=None, divisor=None, accumulate=None) -> (loss, {name: gradient})
    model.target_count(*batch) -> the number of targets: for accumulation and evaluation
    model.loss(*batch) -> loss: for evaluation

where loss is the sum over the targets / divisor, by default their mean, and accumulate are gradients to be
added to. Those of blasformer.models do.
"""

from __future__ import annotations

import inspect
import itertools
import math
import sys
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ._arguments import checked_flag, checked_integer, checked_name, checked_number
from ._attention import Array
from ._checkpoints import CheckpointFolder, TrainingState, part, read_training_state
from ._composite import require_module
from ._interrupts import StopRequest
from ._module import add_gradients, infer, write_parameters
from ._optional import require_package
from ._progress import progress_bar
from ._random import Rng, draw_seed
from ._state_dicts import Wanted, require_fitting
from .io import PathLike
from .optim import Optimizer, Schedule

__all__ = ["EarlyStopping", "History", "Step", "fit", "load_checkpoint"]

Batch: TypeAlias = Any
Loss: TypeAlias = Callable[[Any, Any], tuple[float, Any]]
IGNORED_TARGET = -100


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when evaluation has not become better for a while.

    patience: how many evaluations in a row may pass without a new best
    metric: the one that counts, of those that `evaluate` gives
    larger_is_better: True for an accuracy, False for a loss
    min_delta: by how much a new best must be better
    restore_best: end with the weights of the best evaluation, not with the last ones

    Raises TypeError or ValueError for values that these cannot be.

    >>> EarlyStopping(patience=5, metric="accuracy", larger_is_better=True).min_delta
    0.0
    """

    patience: int = 3
    metric: str = "loss"
    larger_is_better: bool = False
    min_delta: float = 0.0
    restore_best: bool = True

    def __post_init__(self) -> None:
        checked_integer("patience", self.patience, least=1)
        checked_name("metric", self.metric)
        checked_number("min_delta", self.min_delta)
        checked_flag("larger_is_better", self.larger_is_better)
        checked_flag("restore_best", self.restore_best)
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"min_delta must be >= 0 and finite, got {self.min_delta}")


class Step(NamedTuple):
    """What callbacks are told after a step.

    step: how many steps have been made
    epoch: the epoch it was in, from 0
    loss, lr, gradient_norm: those of the step; the norm is the one before clipping
    metrics: what evaluation after this step gave; empty if there was none
    """

    step: int
    epoch: int
    loss: float
    lr: float
    gradient_norm: float
    metrics: dict[str, float]


class History:
    """What happened in training, as arrays.

    stopped: why training ended: "finished", "interrupted", "early stopping" or "callback"

    >>> from blasformer import data, models, optim
    >>> model = models.LanguageModel(4, max_length=8, d_model=8, nhead=2, num_layers=1, rng=0)
    >>> batches = data.Batches(np.zeros((6, 5), int), batch_size=2)
    >>> history = fit(model, batches, optimizer=optim.AdamW(model, lr=1e-3), epochs=2)
    >>> len(history), history.loss.shape, history.stopped
    (6, (6,), 'finished')
    """

    def __init__(self) -> None:
        self.stopped = ""
        self._numbers = array("d")  # loss, learning rate and gradient norm of each step
        self._evaluations: list[tuple[int, dict[str, float]]] = []

    def _table(self) -> Array:
        return np.array(self._numbers, np.float64).reshape(-1, 3)

    @property
    def loss(self) -> Array:
        """(steps,): the mean loss over the targets of each step."""
        return self._table()[:, 0]

    @property
    def lr(self) -> Array:
        """(steps,): the learning rate of each step."""
        return self._table()[:, 1]

    @property
    def gradient_norm(self) -> Array:
        """(steps,): the norm of all gradients of each step, before clipping; not finite if it was skipped."""
        return self._table()[:, 2]

    @property
    def metrics(self) -> dict[str, Array]:
        """{name: (evaluations,)}: what each evaluation gave."""
        names = dict.fromkeys(name for _, metrics in self._evaluations for name in metrics)
        return {
            name: np.array([metrics.get(name, math.nan) for _, metrics in self._evaluations])
            for name in names
        }

    @property
    def evaluated_at(self) -> Array:
        """(evaluations,): after how many steps each evaluation was made."""
        return np.array([step for step, _ in self._evaluations], np.int64)

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __repr__(self) -> str:
        parts = [f"{len(self)} steps"]
        if self._numbers:
            parts.append(f"loss {self._numbers[-3]:.4g}")
        if self._evaluations:
            parts += [f"evaluated {name} {value:.4g}" for name, value in self._evaluations[-1][1].items()]
        return f"History({', '.join([*parts, self.stopped] if self.stopped else parts)})"

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss of every step, and of the evaluations, and return the matplotlib axes.

        ax: the axes to draw on; new ones by default. Needs `pip install "blasformer[viz]"`.
        """
        if ax is None:
            pyplot = require_package("matplotlib.pyplot", extra="viz", purpose="plotting")
            ax = pyplot.figure(layout="constrained").add_subplot()
        ax.plot(np.arange(1, len(self) + 1), self.loss, linewidth=1, label="training")
        if "loss" in self.metrics:
            ax.plot(self.evaluated_at, self.metrics["loss"], marker="o", markersize=3, label="evaluation")
        ax.set(xlabel="step", ylabel="loss")
        ax.legend()
        return ax


class _Objective(ABC):
    """A model and its loss, on batches."""

    @abstractmethod
    def count(self, batch: Batch) -> float:
        """The number of targets of a batch."""

    @abstractmethod
    def gradients(
        self,
        batch: Batch,
        rng: np.random.Generator | None,
        divisor: float | None,
        total: dict[str, Array] | None,
    ) -> tuple[float, dict[str, Array]]:
        """The sum of the losses / divisor, by default their number, and its gradients, added to `total`."""

    @abstractmethod
    def loss(self, batch: Batch) -> float:
        """The mean loss, without dropout."""


class _LayerObjective(_Objective):
    """A layer, and a loss of its output and the targets."""

    def __init__(self, layer: Any, loss: Loss, count: Callable[[Any], float] | None) -> None:
        self._layer, self._loss, self._count = layer, loss, count or _count_targets

    def count(self, batch: Batch) -> float:
        return self._count(_taken_apart(batch)[2])

    def gradients(
        self,
        batch: Batch,
        rng: np.random.Generator | None,
        divisor: float | None,
        total: dict[str, Array] | None,
    ) -> tuple[float, dict[str, Array]]:
        inputs, arguments, targets = _taken_apart(batch)
        y, saved = self._layer.forward(*inputs, rng=rng, **arguments)
        loss, d_y = self._loss_of(y, targets)
        if divisor is not None:
            share = self._count(targets) / divisor
            loss, d_y = loss * share, d_y * d_y.dtype.type(share)
        grads = self._layer.backward(saved, d_y)[1]
        return float(loss), dict(grads) if total is None else add_gradients(total, grads)

    def loss(self, batch: Batch) -> float:
        inputs, arguments, targets = _taken_apart(batch)
        return float(self._loss_of(infer(self._layer, *inputs, **arguments), targets)[0])

    def _loss_of(self, y: Any, targets: Any) -> tuple[float, Any]:
        result = self._loss(y, targets)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"loss must return (mean loss, its gradient), got {type(result).__name__}")
        return result


class _ModelObjective(_Objective):
    """A model that knows its loss."""

    def __init__(self, model: Any, count: Callable[[Any], float] | None) -> None:
        self._model, self._count = model, count

    def count(self, batch: Batch) -> float:
        if self._count is not None:
            return self._count(batch)
        if not hasattr(self._model, "target_count"):
            raise TypeError(
                f"count must be given, as {type(self._model).__name__} has no target_count() to weight "
                "batches by"
            )
        return float(_called(self._model, "target_count", batch))

    def gradients(
        self,
        batch: Batch,
        rng: np.random.Generator | None,
        divisor: float | None,
        total: dict[str, Array] | None,
    ) -> tuple[float, dict[str, Array]]:
        loss, grads = _called(
            self._model, "loss_and_gradients", batch, rng=rng, divisor=divisor, accumulate=total
        )
        return float(loss), dict(grads)

    def loss(self, batch: Batch) -> float:
        return float(_called(self._model, "loss", batch))


def _called(model: Any, method: str, batch: Batch, **keywords: Any) -> Any:
    function = getattr(model, method)
    named = batch if isinstance(batch, Mapping) else {}
    positional = () if batch is named else batch if isinstance(batch, (tuple, list)) else (batch,)
    try:
        return function(*positional, **named, **keywords)
    except TypeError:
        try:
            inspect.signature(function).bind(*positional, **named, **keywords)
        except TypeError as error:
            raise TypeError(
                f"a batch must hold the arguments of {type(model).__name__}.{method}(): {error}, "
                f"got {_kind_of(batch)}"
            ) from None
        raise


def _kind_of(batch: Any) -> str:
    if isinstance(batch, np.ndarray):
        return f"an array {batch.shape}; data.Batches(x, y, batch_size=...) makes batches of arrays"
    return f"a {type(batch).__name__} of {len(batch)}" if isinstance(batch, Sized) else type(batch).__name__


def _taken_apart(batch: Batch) -> tuple[list[Any], dict[str, Any], Any]:
    """(inputs, keyword arguments, targets) of a batch for a layer."""
    if isinstance(batch, Mapping):
        if "targets" not in batch:
            raise ValueError(f"a batch must have the key 'targets', got {', '.join(map(str, batch))}")
        return [], {name: value for name, value in batch.items() if name != "targets"}, batch["targets"]
    if not isinstance(batch, (tuple, list)) or len(batch) < 2:
        raise TypeError(
            f"a batch must be (inputs..., targets) or a dict with 'targets', got {_kind_of(batch)}"
        )
    return list(batch[:-1]), {}, batch[-1]


def _count_targets(targets: Any) -> float:
    """Of class numbers those that are not ignored, of other targets all elements."""
    array = np.asarray(targets)
    return float(np.count_nonzero(array != IGNORED_TARGET)) if array.dtype.kind in "iu" else float(array.size)


def _objective(model: Any, loss: Loss | None, count: Callable[[Any], float] | None) -> _Objective:
    _require_callable("count", count)
    if loss is not None:
        require_module("model", model)
        _require_callable("loss", loss)
        return _LayerObjective(model, loss, count)
    if not hasattr(model, "loss_and_gradients"):
        raise TypeError(
            f"loss must be given, as {type(model).__name__} has no loss_and_gradients() of its own, got None"
        )
    return _ModelObjective(model, count)


def _require_callable(name: str, value: Any) -> None:
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be a function, got {type(value).__name__}")


def _require_batches(name: str, value: Any) -> None:
    if not callable(value) and not hasattr(value, "epoch") and not isinstance(value, Iterable):
        raise TypeError(f"{name} must be batches, or a function, got {type(value).__name__}")


def fit(
    model: Any,
    batches: Any,
    *,
    optimizer: Optimizer,
    loss: Loss | None = None,
    count: Callable[[Any], float] | None = None,
    epochs: int | None = 1,
    max_steps: int | None = None,
    accumulate: int = 1,
    schedule: Schedule | None = None,
    rng: Rng | None = None,
    evaluate: Any = None,
    evaluate_every: int | None = None,
    early_stopping: EarlyStopping | None = None,
    callbacks: Sequence[Callable[[Step], bool | None]] = (),
    checkpoint: PathLike | None = None,
    checkpoint_every: int | None = None,
    keep_checkpoints: int = 2,
    resume: bool = True,
    progress: bool | None = None,
) -> History:
    """Train a model, and return what happened.

    Parameters
    ----------
    model : a layer, with `loss`; or a model with loss_and_gradients, see above
    batches : a sequence of batches; a `data.Batches`; or a function of the number of an epoch, from 0, that
        returns its batches. A layer's batch is (inputs..., targets), or a dict with "targets" and the
        arguments of forward; a model's is the arguments of loss_and_gradients. To be resumed, batches must be
        the same each time they are asked for.
    optimizer : made for this model; clips, and says what NaN and Inf gradients do
    loss : function of (output, targets) that returns (mean loss, its gradient with respect to the output), as
        `cross_entropy`
    count : the number that `loss` divides by, as a function of targets (for a model: of the batch). By
        default that of targets other than -100, or of all elements if targets are not integers.
    epochs, max_steps : where training ends, whichever comes first; None for no limit
    accumulate : gradients of so many batches make one step; its loss is the mean over all their targets
    schedule : function of the number of steps made so far that gives the learning rate; without one it is
        optimizer.lr
    rng : Generator or int that dropout draws from; without it nothing is dropped
    evaluate : batches whose mean loss is the metric "loss"; or a function of the model that returns {name:
        number}. After each epoch, or every `evaluate_every` steps.
    early_stopping : when to stop for what `evaluate` gave
    callbacks : functions of a `Step`, called after every step; one that returns True ends training
    checkpoint : folder for files that training continues from: weights, optimiser, schedule, random numbers,
        position in the data, history. Written after each epoch, or every `checkpoint_every` steps, and when
        training ends; the last `keep_checkpoints` files stay. Needs `pip install "blasformer[io]"`.
    resume : continue from the newest file in that folder, if there is one; False refuses such a folder
    progress : whether to show a progress bar; None shows one in terminals and notebooks when it takes longer
        than 2 seconds

    Returns a History. A run that was resumed has the same bits, in weights and history, as one that never
    stopped.

    Ctrl-C ends training after the running step, with a checkpoint if they are written: `fit` returns as
    usual, with history.stopped == "interrupted", and everything can be used or resumed. A second Ctrl-C
    raises KeyboardInterrupt at once.

    Raises ValueError if a loss is not finite (unless the optimiser skips such steps), for a checkpoint of
    another model or optimiser, and for arguments that make no sense; OSError if a checkpoint cannot be
    written, and then the ones before are intact. The model always has the weights after a whole step.

    Examples
    --------
    >>> from blasformer import cross_entropy, nn, optim
    >>> x = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    >>> model, targets = nn.Linear(8, 2, rng=0), (x[:, 0] > 0).astype(int)
    >>> optimizer = optim.AdamW(model, lr=0.05)
    >>> history = fit(model, [(x, targets)], loss=cross_entropy, optimizer=optimizer, epochs=100)
    >>> history.loss.shape, bool(history.loss[-1] < 0.2)
    ((100,), True)
    """
    limits = {
        "epochs": epochs,
        "max_steps": max_steps,
        "evaluate_every": evaluate_every,
        "checkpoint_every": checkpoint_every,
    }
    for name, value in limits.items():
        if value is not None:
            checked_integer(name, value, least=1)
    for name, value in {"accumulate": accumulate, "keep_checkpoints": keep_checkpoints}.items():
        checked_integer(name, value, least=1)
    if epochs is None and max_steps is None:
        raise ValueError("epochs or max_steps must be given, got None for both")
    if isinstance(batches, Iterator) and epochs != 1:
        raise ValueError(
            f"batches must be there again in every epoch, but a {type(batches).__name__} ends with the first"
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be one of blasformer.optim, got {type(optimizer).__name__}")
    if not optimizer._is_made_for(model):
        raise ValueError(f"optimizer must be made for this model, got one for others: {optimizer!r}")
    _require_batches("batches", batches)
    if evaluate is not None:
        _require_batches("evaluate", evaluate)
    _require_callable("schedule", schedule)
    if not isinstance(callbacks, Sequence):
        raise TypeError(f"callbacks must be a sequence of functions, got {type(callbacks).__name__}")
    for index, callback in enumerate(callbacks):
        _require_callable(f"callbacks[{index}]", callback)
    if early_stopping is not None:
        if not isinstance(early_stopping, EarlyStopping):
            got = type(early_stopping).__name__
            raise TypeError(f"early_stopping must be an EarlyStopping, got {got}")
        if evaluate is None:
            raise ValueError("evaluate must be given for early_stopping")
    run = _Run(
        model=model,
        objective=_objective(model, loss, count),
        batches=batches,
        optimizer=optimizer,
        accumulate=accumulate,
        schedule=schedule,
        generator=None if rng is None else np.random.default_rng(draw_seed(rng)),
        evaluation=evaluate,
        evaluate_every=evaluate_every,
        early_stopping=early_stopping,
        callbacks=callbacks,
        folder=None if checkpoint is None else CheckpointFolder(checkpoint, keep_checkpoints),
        checkpoint_every=checkpoint_every,
    )
    run.begin(checked_flag("resume", resume))
    with (
        StopRequest() as request,
        progress_bar(
            run.total_steps(epochs, max_steps),
            progress,
            argument="progress",
            description="Training",
            unit="step",
            done=run.step,
        ) as bar,
    ):
        run.train(
            sys.maxsize if epochs is None else epochs,
            sys.maxsize if max_steps is None else max_steps,
            request,
            bar,
        )
    return run.history


@dataclass
class _Best:
    """The best evaluation so far."""

    value: float
    waited: int  # evaluations since
    arrays: dict[str, Array]  # the weights then, if they are to be restored


@dataclass
class _Run:
    """Where training stands, and what takes it further: everything that a checkpoint holds is here."""

    model: Any
    objective: _Objective
    batches: Any
    optimizer: Optimizer
    accumulate: int
    schedule: Schedule | None
    generator: np.random.Generator | None
    evaluation: Any
    evaluate_every: int | None
    early_stopping: EarlyStopping | None
    callbacks: Sequence[Callable[[Step], bool | None]]
    folder: CheckpointFolder | None
    checkpoint_every: int | None
    step: int = 0  # steps made
    epoch: int = 0
    batch: int = 0  # batches of this epoch that were used
    evaluation_is_due: bool = False
    best: _Best | None = None
    saved_step: int | None = None
    history: History = field(default_factory=History)

    def begin(self, resume: bool) -> None:
        if self.folder is None:
            return
        newest = self.folder.newest()
        if newest is not None and not resume:
            raise ValueError(
                f"checkpoint must be a folder without checkpoints for resume=False, got {newest}"
            )
        self.folder.prepare()
        if newest is not None:
            self.restore(newest, read_training_state(newest))
            self.saved_step = self.step

    def total_steps(self, epochs: int | None, max_steps: int | None) -> int | None:
        """How many steps there will be, if that is known."""
        if epochs is None or not hasattr(self.batches, "__len__"):
            return max_steps
        total = epochs * math.ceil(len(self.batches) / self.accumulate)
        return total if max_steps is None else min(total, max_steps)

    def train(self, epochs: int, max_steps: int, request: StopRequest, bar: Callable[..., object]) -> None:
        stopped = ""
        if self.evaluation_is_due:
            self.evaluate(request)
        while not stopped:
            if self.epoch >= epochs or self.step >= max_steps:
                stopped = "finished"
            elif self.is_out_of_patience():
                stopped = "early stopping"
            else:
                stopped = self.train_epoch(max_steps, request, bar)
        self.history.stopped = stopped
        if self.folder is not None and self.saved_step != self.step:
            self.save()
        if stopped != "interrupted" and self.best is not None and self.best.arrays:
            _load_weights(self.model, self.best.arrays)

    def train_epoch(self, max_steps: int, request: StopRequest, bar: Callable[..., object]) -> str:
        """What is left of the epoch. Returns "interrupted" or "callback" if these end training."""
        position = (self.epoch, self.batch)
        groups = _grouped(_batches_of(self.batches, *position), self.accumulate)
        for group, is_last in _with_last(groups):
            told = self.make_step(group, is_last, request)
            shown = {f"evaluated {name}": f"{value:.4g}" for name, value in told.metrics.items()}
            bar(1, loss=f"{told.loss:.4g}", **shown)
            answers = [callback(told) for callback in self.callbacks]
            if self.folder is not None and self.is_due(self.checkpoint_every, is_last):
                self.save()
            if request.made:
                return "interrupted"
            if any(answers):
                return "callback"
            if self.step >= max_steps or self.is_out_of_patience():
                return ""
        if (self.epoch, self.batch) == position:
            if self.batch == 0:
                raise ValueError(f"batches must have a batch in every epoch, got none in epoch {self.epoch}")
            self.epoch, self.batch = self.epoch + 1, 0  # the checkpoint was made with more data
        return ""

    def is_due(self, every: int | None, is_last: bool) -> bool:
        return is_last if every is None else self.step % every == 0

    def make_step(self, group: Sequence[Batch], is_last: bool, request: StopRequest) -> Step:
        """One step of the optimiser, and what belongs to it. is_last: of its epoch."""
        if self.schedule is not None:
            self.optimizer.lr = self.schedule(self.step)
        loss, norm = self.follow_gradients(group)
        told = Step(self.step + 1, self.epoch, loss, self.optimizer.lr, norm, {})
        self.step += 1
        self.epoch, self.batch = (self.epoch + 1, 0) if is_last else (self.epoch, self.batch + len(group))
        self.history._numbers.extend((told.loss, told.lr, told.gradient_norm))
        if self.evaluation is not None and self.is_due(self.evaluate_every, is_last):
            told = told._replace(metrics=self.evaluate(request))
        return told

    def follow_gradients(self, group: Sequence[Batch]) -> tuple[float, float]:
        """The mean loss over all targets of the group, and the norm of its gradients."""
        divisor = None
        if len(group) > 1:
            divisor = sum(self.objective.count(batch) for batch in group) or 1.0
        loss, grads = self.objective.gradients(group[0], self.generator, divisor, None)
        for batch in group[1:]:
            more, grads = self.objective.gradients(batch, self.generator, divisor, grads)
            loss += more
        if not math.isfinite(loss):
            if self.optimizer.nonfinite == "error":
                raise ValueError(
                    f"loss must be finite, got {loss} in step {self.step}, epoch {self.epoch}, batch "
                    f"{self.batch} of it; the weights are those of the step before"
                )
            return loss, math.nan
        return loss, self.optimizer.step(grads)

    def evaluate(self, request: StopRequest) -> dict[str, float]:
        """The metrics of the present weights; nothing, to be made up for, if the user stops meanwhile."""
        self.evaluation_is_due = True
        metrics = self.metrics(request)
        if metrics:
            self.evaluation_is_due = False
            self.history._evaluations.append((self.step, metrics))
            self.judge(metrics)
        return metrics

    def metrics(self, request: StopRequest) -> dict[str, float]:
        if callable(self.evaluation) and not hasattr(self.evaluation, "epoch"):
            given = self.evaluation(self.model)
            if not isinstance(given, Mapping) or not given:
                raise TypeError(f"evaluate must return {{name: number}}, got {type(given).__name__}")
            return {str(name): float(value) for name, value in given.items()}
        total, count, batches = 0.0, 0.0, 0
        for batch in _batches_of(self.evaluation, 0, 0):
            targets = self.objective.count(batch)
            total, count, batches = total + targets * self.objective.loss(batch), count + targets, batches + 1
            if request.made:
                return {}
        if batches == 0:
            raise ValueError("evaluate must have a batch in every evaluation, got none")
        return {"loss": total / (count or 1.0)}

    def judge(self, metrics: dict[str, float]) -> None:
        """Compares with the best evaluation so far."""
        rule = self.early_stopping
        if rule is None:
            return
        if rule.metric not in metrics:
            raise ValueError(f"metric must be one of {', '.join(metrics)}, got {rule.metric!r}")
        value = metrics[rule.metric]
        gain = -math.inf if self.best is None else value - self.best.value
        gain = gain if rule.larger_is_better else -gain
        if self.best is None or gain > rule.min_delta or math.isnan(self.best.value):
            weights = self.model.parameters() if rule.restore_best else {}
            self.best = _Best(value, 0, {name: array.copy() for name, array in weights.items()})
        else:
            self.best.waited += 1

    def is_out_of_patience(self) -> bool:
        rule = self.early_stopping
        return rule is not None and self.best is not None and self.best.waited >= rule.patience

    def save(self) -> None:
        """Writes a checkpoint."""
        assert self.folder is not None
        optimizer = self.optimizer.state_dict()
        arrays = {f"model.{name}": array for name, array in self.model.parameters().items()}
        if self.best is not None:
            arrays |= {f"best.{name}": array for name, array in self.best.arrays.items()}
        arrays |= {f"optimizer.{name}": x for name, x in optimizer.items() if isinstance(x, np.ndarray)}
        arrays["history"] = self.history._table()
        values = {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "evaluation_is_due": self.evaluation_is_due,
            "evaluations": self.history._evaluations,
            "best": None if self.best is None else [self.best.value, self.best.waited],
            "optimizer": {name: x for name, x in optimizer.items() if not isinstance(x, np.ndarray)},
            "random": None if self.generator is None else self.generator.bit_generator.state,
        }
        self.folder.save(self.step, TrainingState(arrays, values))
        self.saved_step = self.step

    def restore(self, path: PathLike, state: TrainingState) -> None:
        """Takes everything from a checkpoint, after a check that all of it fits."""
        arrays, values = state
        _require_weights_of(self.model, path, part(arrays, "model."))
        try:
            step, epoch, batch = (int(values[name]) for name in ("step", "epoch", "batch"))
            evaluations = [(int(at), dict(metrics)) for at, metrics in values["evaluations"]]
            best = None
            if values["best"] is not None:
                value, waited = values["best"]
                best = _Best(float(value), int(waited), part(arrays, "best."))
            history = array("d", arrays["history"].reshape(-1).tolist())
            due, random, optimizer = values["evaluation_is_due"], values["random"], dict(values["optimizer"])
            generator = None
            if random is not None:
                generator = np.random.default_rng(0)
                generator.bit_generator.state = random
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"checkpoint {path} is damaged: {error!r}") from error
        if (generator is None) != (self.generator is None):
            raise ValueError(f"rng must be {'None' if generator is None else 'given'}, as it was for {path}")
        try:
            self.optimizer.load_state_dict(optimizer | part(arrays, "optimizer."))
        except (ValueError, TypeError) as error:
            raise ValueError(f"checkpoint {path} must be of this optimizer; {error}") from error
        _load_weights(self.model, part(arrays, "model."))
        self.step, self.epoch, self.batch, self.evaluation_is_due = step, epoch, batch, bool(due)
        self.generator, self.best = generator, best
        self.history._numbers, self.history._evaluations = history, evaluations


def load_checkpoint(path: PathLike, model: Any, *, best: bool = False) -> int:
    """Give a model the weights of a checkpoint that `fit` wrote, and return the number of its step.

    path: a file step-*.safetensors, or a folder, of which the newest counts
    best: take those of the best evaluation instead of the last; early_stopping keeps them

    Raises FileNotFoundError if there is no checkpoint, ValueError if it is damaged or of another model; the
    model is then as it was.

    >>> from blasformer import cross_entropy, nn, optim
    >>> model, batch = nn.Linear(2, 2, rng=0), (np.ones((3, 2), np.float32), np.array([0, 1, 1]))
    >>> history = fit(model, [batch], loss=cross_entropy, optimizer=optim.SGD(model), checkpoint="run1")
    >>> other = nn.Linear(2, 2)
    >>> load_checkpoint("run1", other)
    1
    >>> np.array_equal(other.parameters()["weight"], model.parameters()["weight"])
    True
    """
    arrays, values = read_training_state(path)
    weights = part(arrays, "best." if best else "model.")
    if best and not weights:
        raise ValueError(
            f"checkpoint {path} must hold weights of a best evaluation for best=True, it has none"
        )
    _require_weights_of(model, path, weights)
    _load_weights(model, weights)
    step: int = values["step"]
    return step


def _require_weights_of(model: Any, path: PathLike, arrays: Mapping[str, Array]) -> None:
    wanted = {name: Wanted(array.shape, array.dtype) for name, array in model.parameters().items()}
    try:
        require_fitting(f"checkpoint {path} must be of this {type(model).__name__}", arrays, wanted)
    except TypeError as error:
        raise ValueError(str(error)) from error


def _load_weights(model: Any, arrays: Mapping[str, Array]) -> None:
    if hasattr(model, "load_state_dict"):
        model.load_state_dict(arrays)
    else:
        write_parameters(model, arrays)


def _batches_of(batches: Any, epoch: int, first: int) -> Iterator[Batch]:
    """The batches of an epoch, from the one with that index on."""
    if hasattr(batches, "epoch"):
        return iter(batches.epoch(epoch, first))
    of_epoch: Iterable[Batch] = batches(epoch) if callable(batches) else batches
    return itertools.islice(of_epoch, first, None)


def _grouped(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of so many batches; the last one may have fewer."""
    while group := list(itertools.islice(batches, size)):
        yield group


def _with_last(groups: Iterator[list[Batch]]) -> Iterator[tuple[list[Batch], bool]]:
    """Each group, and whether it is the last."""
    for group in groups:
        for following in groups:
            yield group, False
            group = following
        yield group, True
