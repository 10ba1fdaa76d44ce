"""Classifiers of sequences and of images on NumPy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._arguments import (
    checked_epsilon,
    checked_flag,
    checked_integer,
    checked_integer_or_none,
    checked_layers,
    checked_loss_numbers,
    checked_name,
    checked_number,
)
from ._attention import Array, LayerWeights, choose_layers
from ._dtypes import float_dtype
from ._model import Model
from ._random import Rng, initial_seed, seed_or_none
from .functional import softmax


class Classifier(Model):
    """A Transformer encoder with a head that tells classes apart: BERT's for texts, ViT's for images.

        x = dropout(embedding(x) + position_embedding)      behind class_token, for pooling="first"
        x = encoder(x)
        logits = head(mean of x over the sequence, or x of the class token)

    Parameters
    ----------
    num_classes : classes are in [0, num_classes)
    max_length : the longest sequence, which has learned positions
    vocab_size, in_features : one of the two: sequences of ids in [0, vocab_size), or of vectors of
        in_features numbers, such as `image_patches` makes of images
    d_model : features, a multiple of nhead
    nhead, num_layers : positive ints
    dim_feedforward : width of the hidden layer; 4 * d_model by default
    dropout : probability with which embeddings, attention weights, hidden elements and what joins the
        residual stream are dropped in training with an rng
    activation : "gelu", "gelu_tanh", "gelu_sigmoid", "relu" or "silu"
    layer_norm_eps : added to the variance by the layer norms
    norm_first : whether the layers are pre-norm, with a norm after the last (ViT), or post-norm (BERT)
    pooling : "mean" of all positions, or "first": a learned class token is put before the sequence
    recompute : whether training keeps only the input of each layer and computes the rest again: a fraction of
        the memory for about a third more time
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from; a fresh one by default

    State: embedding.weight (vocab_size, d_model), or embedding.weight (d_model, in_features) and
    embedding.bias; position_embedding.weight (max_length, d_model); class_token (d_model,) for "first";
    encoder.* as nn.TransformerEncoder; head.weight (num_classes, d_model), head.bias.

    Calling it
    ----------
    x : ids (batch, length) or (length,), or vectors (batch, length, in_features) or (length, in_features)
    lengths : (batch,) integers: how many positions, from the left, each sequence has
    mask : (batch, length) bool: which positions are there; what is not there is not looked at
    return_weights : which attention weights to return: True for those of all layers, the indices of layers,
        as (0, -1), or a WeightSelection for each, as {0: WeightSelection(heads=[3]), -1: True}

    Returns the logits, (batch, num_classes) or (num_classes,), or (logits, weights) with weights a dict from
    the index of a layer, as it was given, to its (batch, nhead, length, length) array, where with
    pooling="first" position 0 is the class token.

    Raises
    ------
    IndexError for ids outside the vocabulary, ValueError for shapes that do not fit and sequences longer than
    max_length, TypeError for arrays of another dtype.

    References
    ----------
    Devlin et al. 2018, "BERT"; Dosovitskiy et al. 2021, "An Image is Worth 16x16 Words".

    Examples
    --------
    >>> from blasformer import optim
    >>> model = Classifier(2, max_length=6, vocab_size=9, d_model=16, nhead=2, num_layers=1, rng=0)
    >>> optimizer = optim.AdamW(model, lr=1e-2)
    >>> ids = np.random.default_rng(0).integers(0, 9, (64, 6))
    >>> classes = (ids == 3).any(-1).astype(int)
    >>> for step in range(40):
    ...     loss, grads = model.loss_and_gradients(ids, classes)
    ...     norm = optimizer.step(grads)
    >>> float((model.predict(ids) == classes).mean())
    1.0
    """

    _held: _core.Classifier
    _model_types = ("blasformer_classifier",)

    def __init__(
        self,
        num_classes: int,
        max_length: int,
        *,
        vocab_size: int | None = None,
        in_features: int | None = None,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        dropout: float = 0.1,
        activation: str = "gelu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = True,
        pooling: str = "mean",
        recompute: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        arguments = {
            "num_classes": num_classes,
            "max_length": max_length,
            "vocab_size": vocab_size,
            "in_features": in_features,
            "d_model": d_model,
            "nhead": nhead,
            "num_layers": num_layers,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "activation": activation,
            "layer_norm_eps": layer_norm_eps,
            "norm_first": norm_first,
            "pooling": pooling,
            "recompute": recompute,
        }
        self._allocate({**self._arguments_of(arguments), "dtype": float_dtype(dtype).name}, initial_seed(rng))

    @classmethod
    def _arguments_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        if (config.get("vocab_size") is None) == (config.get("in_features") is None):
            raise ValueError("one of vocab_size and in_features must be given")
        return {
            "num_classes": checked_integer("num_classes", config["num_classes"]),
            "max_length": checked_integer("max_length", config["max_length"]),
            "vocab_size": checked_integer_or_none("vocab_size", config.get("vocab_size")),
            "in_features": checked_integer_or_none("in_features", config.get("in_features")),
            "d_model": checked_integer("d_model", config["d_model"]),
            "nhead": checked_integer("nhead", config["nhead"]),
            "num_layers": checked_layers("num_layers", config["num_layers"]),
            "dim_feedforward": checked_integer_or_none("dim_feedforward", config["dim_feedforward"]),
            "dropout": checked_number("dropout", config["dropout"]),
            "activation": checked_name("activation", config["activation"]),
            "layer_norm_eps": checked_epsilon("layer_norm_eps", config["layer_norm_eps"]),
            "norm_first": checked_flag("norm_first", config["norm_first"]),
            "pooling": checked_name("pooling", config["pooling"]),
            "recompute": checked_flag("recompute", config["recompute"]),
        }

    def _allocate(self, arguments: dict[str, Any], seed: int | None) -> None:
        self._arguments = arguments
        given = dict(arguments)
        vocab_size, in_features = given.pop("vocab_size"), given.pop("in_features")
        reads_ids = vocab_size is not None
        if given["dim_feedforward"] is None:
            given["dim_feedforward"] = checked_integer("dim_feedforward", 4 * given["d_model"])
        self._held = _core.classifier(
            **given, reads_ids=reads_ids, inputs=vocab_size if reads_ids else in_features, seed=seed
        )

    def __call__(
        self,
        x: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: Array | None = None,
        return_weights: LayerWeights = False,
    ) -> Any:
        if return_weights is False:
            return self._held.call(x, lengths, mask, [])[0]
        arguments, shape = self._arguments, np.shape(x)
        axis = -1 if arguments["vocab_size"] is not None else -2
        length = shape[axis] if len(shape) >= -axis else 0
        length += arguments["pooling"] == "first"
        asked = choose_layers(return_weights, arguments["num_layers"], arguments["nhead"], length)
        logits, weights = self._held.call(x, lengths, mask, list(asked.values()))
        return logits, {name: weights[index] for name, (index, _) in asked.items()}

    def predict_proba(
        self, x: ArrayLike, *, lengths: ArrayLike | None = None, mask: Array | None = None
    ) -> Array:
        """The probabilities of the classes, (batch, num_classes) or (num_classes,): softmax of the logits.

        >>> model = Classifier(3, max_length=6, vocab_size=9, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> model.predict_proba([[1, 2, 3, 0]], lengths=[3]).sum().round(3)
        np.float32(1.0)
        """
        return softmax(self(x, lengths=lengths, mask=mask))

    def predict(self, x: ArrayLike, *, lengths: ArrayLike | None = None, mask: Array | None = None) -> Array:
        """The most probable class of each sequence, (batch,): integers.

        >>> model = Classifier(3, max_length=6, vocab_size=9, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> model.predict([[1, 2, 3], [4, 5, 6]]).shape
        (2,)
        """
        logits: Array = self(x, lengths=lengths, mask=mask)
        return np.asarray(logits.argmax(-1))

    def forward(
        self,
        x: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: Array | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The logits and what their gradient needs. Dropout acts if there is an rng."""
        return self._held.forward(x, lengths, mask, seed_or_none(rng))

    def loss(
        self,
        x: ArrayLike,
        targets: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: Array | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        class_weight: Array | None = None,
        ignore_index: int = -100,
    ) -> float:
        """The mean cross-entropy of the targets, without dropout. Arguments as for `loss_and_gradients`.

        >>> model = Classifier(3, max_length=6, vocab_size=9, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> model.loss([[1, 2, 3], [4, 5, 6]], [0, 2]) > 0
        True
        """
        smoothing, ignored = checked_loss_numbers(label_smoothing, ignore_index)
        return self._held.loss(x, targets, lengths, mask, divisor, smoothing, class_weight, ignored)

    def loss_and_gradients(
        self,
        x: ArrayLike,
        targets: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: Array | None = None,
        rng: Rng | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        class_weight: Array | None = None,
        ignore_index: int = -100,
        accumulate: Mapping[str, Array] | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """The forward and backward pass of a step: (loss, {name: gradient} of what is not frozen).

        x, lengths, mask: as for calling the model
        targets: (batch,) integers: the class of each sequence, or ignore_index where it does not count
        rng: numpy.random.Generator or int that dropout is drawn from; without it nothing is dropped
        divisor: what the sum of the losses is divided by: the number of targets that count by default, with
            class_weight the sum of their weights, which makes it their mean. For one step of several calls
            give each of them that of all (`target_count`), and add up with accumulate.
        label_smoothing: share of the target's probability that is spread over all classes
        class_weight: (num_classes,) of the model's dtype: how much each class counts
        accumulate: gradients of an earlier call, which those of this one are added to, in place

        Frozen layers below the last trained parameter keep nothing and are not gone through. If no target
        counts the loss is 0.0 and the gradients are 0.

        Raises IndexError, ValueError or TypeError for what does not fit; nothing is changed then.

        >>> model = Classifier(3, max_length=6, vocab_size=9, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> loss, grads = model.loss_and_gradients([[1, 2, 3], [4, 5, 6]], [0, 2], rng=1)
        >>> grads["head.bias"].shape
        (3,)
        """
        seed = seed_or_none(rng)

        smoothing, ignored = checked_loss_numbers(label_smoothing, ignore_index)

        def compute(arrays: dict[str, Array] | None) -> tuple[float, dict[str, Array]]:
            return self._held.loss_and_gradients(
                x,
                targets,
                lengths,
                mask,
                divisor,
                smoothing,
                class_weight,
                ignored,
                seed,
                arrays,
            )

        return self._accumulated(compute, accumulate)

    def target_count(
        self,
        x: ArrayLike,
        targets: ArrayLike,
        *,
        lengths: ArrayLike | None = None,
        mask: Array | None = None,
        class_weight: Array | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> float:
        """How many targets count, or the sum of their class weights: what `loss` divides by. Arguments as for
        `loss_and_gradients`, of which label_smoothing changes nothing.

        >>> model = Classifier(3, max_length=6, vocab_size=9, d_model=16, nhead=2, num_layers=1, rng=0)
        >>> model.target_count([[1, 2, 3], [4, 5, 6]], [0, -100])
        1.0
        """
        return self._held.target_weight(targets, class_weight, checked_integer("ignore_index", ignore_index))


def image_patches(images: Array, patch_size: int | tuple[int, int]) -> Array:
    """Cuts images into patches, as sequences for `Classifier`: row by row, from the left.

    images: (N, H, W) or (N, H, W, channels), of any dtype
    patch_size: height and width of a patch, which divide H and W; an int for squares

    Returns (N, patches, patch_dim): the pixels of a patch row by row, the channels of a pixel side by side.

    Raises ValueError for shapes that do not fit, TypeError for what is no array.

    >>> images = np.arange(16).reshape(1, 4, 4)
    >>> image_patches(images, 2)[0]
    array([[ 0,  1,  4,  5],
           [ 2,  3,  6,  7],
           [ 8,  9, 12, 13],
           [10, 11, 14, 15]])
    """
    if not isinstance(images, np.ndarray):
        raise TypeError(f"images must be a NumPy array, got {type(images).__name__}")
    if images.ndim not in (3, 4):
        raise ValueError(f"images must have the shape (N, H, W) or (N, H, W, channels), got {images.shape}")
    sides = patch_size if isinstance(patch_size, tuple) else (patch_size, patch_size)
    if len(sides) != 2:
        raise ValueError(f"patch_size must be an integer or two, got {patch_size!r}")
    height, width = (checked_integer("patch_size", side) for side in sides)
    count, rows, columns = images.shape[:3]
    if height < 1 or width < 1 or rows % height or columns % width:
        raise ValueError(
            f"patch_size must divide the height and the width of images {images.shape}, got {patch_size!r}"
        )
    channels = images.shape[3] if images.ndim == 4 else 1
    patches = images.reshape(count, rows // height, height, columns // width, width, channels)
    shape = (count, (rows // height) * (columns // width), height * width * channels)
    cut: Array = patches.transpose(0, 1, 3, 2, 4, 5).reshape(shape)
    return cut
