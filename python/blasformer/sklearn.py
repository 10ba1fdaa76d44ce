"""Estimators with scikit-learn's interface, for its pipelines, grid searches and cross-validations.

Needs `pip install "blasformer[sklearn]"`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

try:
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.class_weight import compute_class_weight
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        "blasformer.sklearn needs the package scikit-learn: pip install 'blasformer[sklearn]'"
    ) from error

from ._attention import Array
from .models import Classifier
from .optim import AdamW, biases_and_norms, cosine_schedule
from .train import fit

__all__ = ["TransformerClassifier"]

ROWS_AT_A_TIME = 1024  # of predictions, which bounds their memory


class TransformerClassifier(ClassifierMixin, BaseEstimator):
    """A Transformer encoder as a classifier of rows: `models.Classifier` with scikit-learn's interface.

    A row of X is read as a sequence: each run of features_per_token features is a token, with a learned
    position that says which features they are.

    Parameters
    ----------
    features_per_token : how many features make a token: 1 for tables; for images, cut and ordered by
        `models.image_patches`, the pixels of a patch. Rows are filled up with zeros to whole tokens.
    d_model, nhead, num_layers, dim_feedforward, dropout, norm_first, pooling : as for models.Classifier
    standardize : whether features are shifted and scaled to mean 0 and variance 1 over the training data
    epochs : how often to go through the training data
    batch_size : rows per step
    lr : the highest learning rate; it rises to it during the first tenth of the steps, and then falls to zero
        as a cosine
    weight_decay : of AdamW, for matrices
    label_smoothing : share of a target's probability that is spread over all classes
    class_weight : None, "balanced", or {class: weight}: how much each class counts
    clip_norm : gradients are scaled down to this norm, if it is larger
    random_state : int, numpy.random.RandomState or None, that initial weights, the order of rows and dropout
        are drawn from
    verbose : whether to show a progress bar

    Attributes
    ----------
    classes_ : the classes, sorted
    n_features_in_ : how many features X had
    model_ : the models.Classifier, float32 if X was, else float64
    mean_, scale_ : what features are standardized with
    loss_curve_ : the loss of every step

    Raises
    ------
    What scikit-learn raises for X and y; when fitted, TypeError or ValueError for parameters that make no
    model; NotFittedError before that.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.model_selection import cross_val_score
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = TransformerClassifier(d_model=16, num_layers=1, random_state=0)
    >>> bool(cross_val_score(classifier, X, y, cv=3).mean() > 0.9)
    True
    """

    def __init__(
        self,
        *,
        features_per_token: int = 1,
        d_model: int = 32,
        nhead: int = 4,
        num_layers: int = 2,
        dim_feedforward: int | None = None,
        dropout: float = 0.1,
        norm_first: bool = True,
        pooling: str = "mean",
        standardize: bool = True,
        epochs: int = 100,
        batch_size: int = 32,
        lr: float = 3e-3,
        weight_decay: float = 0.01,
        label_smoothing: float = 0.0,
        class_weight: Mapping[Any, float] | str | None = None,
        clip_norm: float | None = 1.0,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.features_per_token = features_per_token
        self.d_model = d_model
        self.nhead = nhead
        self.num_layers = num_layers
        self.dim_feedforward = dim_feedforward
        self.dropout = dropout
        self.norm_first = norm_first
        self.pooling = pooling
        self.standardize = standardize
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.clip_norm = clip_norm
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: ArrayLike, y: ArrayLike) -> TransformerClassifier:
        """Train on rows X (n, features) and their classes y (n,).

        Raises ValueError for what scikit-learn refuses: NaN, Inf, sparse or empty X, continuous y; and for
        parameters that make no sense.
        """
        checked: tuple[Array, Array] = validate_data(self, X, y, dtype=[np.float64, np.float32])
        rows, classes = checked
        check_classification_targets(classes)
        for name in ("features_per_token", "epochs", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        random_state = check_random_state(self.random_state)
        rng = np.random.default_rng(random_state.randint(0, 2**31, 4))
        self.classes_, targets = np.unique(classes, return_inverse=True)
        self.mean_ = rows.mean(0) if self.standardize else np.zeros(rows.shape[1], rows.dtype)
        spread = rows.std(0) if self.standardize else np.ones(rows.shape[1], rows.dtype)
        self.scale_ = np.where(spread > 0, spread, 1).astype(rows.dtype)

        tokens = self._tokens(rows)
        weight = compute_class_weight(self.class_weight, classes=self.classes_, y=classes).astype(rows.dtype)
        self.model_ = Classifier(
            len(self.classes_),
            tokens.shape[1],
            in_features=self.features_per_token,
            d_model=self.d_model,
            nhead=self.nhead,
            num_layers=self.num_layers,
            dim_feedforward=self.dim_feedforward,
            dropout=self.dropout,
            norm_first=self.norm_first,
            pooling=self.pooling,
            dtype=rows.dtype,
            rng=rng,
        )
        orders = int(rng.integers(0, 2**32))

        def batches(epoch: int) -> Iterator[dict[str, Any]]:
            order = np.random.default_rng([orders, epoch]).permutation(len(tokens))
            for first in range(0, len(order), self.batch_size):
                chosen = order[first : first + self.batch_size]
                yield {
                    "x": tokens[chosen],
                    "targets": targets[chosen],
                    "class_weight": weight,
                    "label_smoothing": self.label_smoothing,
                }

        steps = self.epochs * -(-len(tokens) // self.batch_size)
        optimizer = AdamW(
            self.model_,
            lr=self.lr,
            weight_decay=self.weight_decay,
            groups=[{"match": biases_and_norms, "weight_decay": 0.0}],
            clip_norm=self.clip_norm,
        )
        history = fit(
            self.model_,
            batches,
            optimizer=optimizer,
            epochs=self.epochs,
            schedule=cosine_schedule(self.lr, steps=steps, warmup=steps // 10),
            rng=rng,
            progress=bool(self.verbose),
        )
        self.loss_curve_ = history.loss
        return self

    def predict_proba(self, X: ArrayLike) -> Array:
        """The probability of each class, (n, classes), for rows X (n, features)."""
        tokens = self._new_tokens(X)
        parts = [
            self.model_.predict_proba(tokens[first : first + ROWS_AT_A_TIME])
            for first in range(0, len(tokens), ROWS_AT_A_TIME)
        ]
        return np.concatenate(parts)

    def predict(self, X: ArrayLike) -> Array:
        """The most probable class of each row of X (n, features)."""
        check_is_fitted(self)
        chosen: Array = self.classes_[self.predict_proba(X).argmax(1)]
        return chosen

    def _new_tokens(self, X: ArrayLike) -> Array:
        check_is_fitted(self)
        rows: Array = validate_data(self, X, dtype=self.model_.dtype, reset=False)
        return self._tokens(rows)

    def _tokens(self, rows: Array) -> Array:
        """(n, features) -> (n, tokens, features_per_token), standardized."""
        n, features = rows.shape
        count = -(-features // self.features_per_token)
        tokens = np.zeros((n, count * self.features_per_token), rows.dtype)
        tokens[:, :features] = (rows - self.mean_.astype(rows.dtype)) / self.scale_.astype(rows.dtype)
        return tokens.reshape(n, count, self.features_per_token)
