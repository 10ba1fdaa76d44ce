"""Encoder-decoder models on NumPy arrays, which turn one sequence of tokens into another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _core
from ._arguments import (
    checked_epsilon,
    checked_flag,
    checked_integer,
    checked_integer_or_none,
    checked_integers,
    checked_layers,
    checked_loss_numbers,
    checked_name,
    checked_number,
    refuse_masked,
)
from ._attention import Array, LayerWeights, choose_layers
from ._dtypes import float_dtype
from ._generation import BeamSearch, padded, sequences_of
from ._model import Model
from ._progress import progress_bar
from ._random import Rng, initial_seed, seed_or_none
from .data import pad


class Seq2Seq(Model):
    """An encoder-decoder Transformer that turns one sequence of tokens, or of vectors, into tokens.

        memory = encoder(dropout(sqrt(d_model) * source_embedding[source_ids] + positions)), or of
            dropout(source_projection(source_ids) + positions) for a source of vectors
        x = decoder(dropout(sqrt(d_model) * target_embedding[bos_id, *target_ids] + positions), memory)
        logits = x @ target_embedding.T

    Targets are what you have and what you get: the token that the decoder begins with and the one that ends a
    target are put there, and taken off, here.

    Parameters
    ----------
    source_vocab_size, target_vocab_size : ids are in [0, vocab_size); source_vocab_size None for a source of
        vectors
    source_features : for a source of vectors, such as frames of sound or image patches, how many numbers each
        has
    bos_id, eos_id : target ids that the decoder begins with, and that ends a target
    d_model : features, a multiple of nhead
    nhead, num_encoder_layers, num_decoder_layers : positive ints
    dim_feedforward : width of the hidden layers
    dropout : probability with which embeddings, attention weights, hidden elements and what joins the
        residual stream are dropped in training with an rng
    activation : "relu", "gelu", "gelu_tanh", "gelu_sigmoid" or "silu"
    layer_norm_eps : added to the variance by the layer norms
    norm_first : whether the layers are pre-norm, or post-norm as in 2017
    positions : "sinusoidal", or "learned" up to max_length
    max_length : the longest sequence for learned positions, the first token of the decoder included
    shared : whether source and target have one vocabulary, and one embedding
    tied : whether logits are computed with the weights of the target's embedding; otherwise with
        output.weight and output.bias
    recompute : whether training keeps only the inputs of each layer and computes the rest again: a fraction
        of the memory for about a third more time
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from; a fresh one by default

    State: source_embedding.weight (source_vocab_size, d_model) if not shared, or source_projection.weight
    (d_model, source_features) and source_projection.bias; target_embedding.weight (target_vocab_size,
    d_model); source_positions.weight and target_positions.weight (max_length, d_model) if learned;
    transformer.*, the state of torch.nn.Transformer and nn.Transformer: encoder.layers.0.*, ...,
    encoder.norm.*, decoder.layers.0.*, ..., decoder.norm.*; output.* if not tied.

    Calling it
    ----------
    source_ids : (batch, source_length) or (source_length,) integers; or vectors, (batch, source_length,
        source_features) or (source_length, source_features), of the model's dtype
    target_ids : (batch, length) or (length,) integers, without bos_id and eos_id
    source_lengths, target_lengths : (batch,) integers: how many ids, from the left, each sequence has; what
        follows is not looked at
    return_weights : which weights of the decoder's attention to the source to return: True for those of all
        decoder layers, the indices of layers, as (0, -1), or a WeightSelection for each, as
        {0: WeightSelection(heads=[3]), -1: True}

    Returns the logits (batch, length + 1, target_vocab_size): row i is what is predicted at the place of
    target_ids[i], given those before it, and row length what is predicted behind the last. Or (logits,
    weights) with weights a dict from the index of a layer, as it was given, to its (batch, nhead, length + 1,
    source_length) array.

    Raises
    ------
    IndexError for ids outside the vocabularies, ValueError for shapes that do not fit and sequences longer
    than learned positions, TypeError for what is not integer.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need".

    Examples
    --------
    >>> from blasformer import optim
    >>> model = Seq2Seq(10, 12, bos_id=10, eos_id=11, d_model=32, nhead=2, num_encoder_layers=1,
    ...                 num_decoder_layers=1, dim_feedforward=64, norm_first=True, dropout=0.0, rng=0)
    >>> optimizer = optim.AdamW(model, lr=5e-3)
    >>> source = np.random.default_rng(0).integers(0, 10, (64, 4))
    >>> for step in range(150):
    ...     loss, grads = model.loss_and_gradients(source, source[:, ::-1])
    ...     norm = optimizer.step(grads)
    >>> source[0], model.generate(source[0], max_new_tokens=6)
    (array([8, 6, 5, 2]), array([2, 5, 6, 8]))
    """

    _held: _core.Seq2Seq
    _model_types = ("blasformer_seq2seq",)

    def __init__(
        self,
        source_vocab_size: int | None,
        target_vocab_size: int,
        *,
        source_features: int | None = None,
        bos_id: int,
        eos_id: int,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        positions: str = "sinusoidal",
        max_length: int = 512,
        shared: bool = False,
        tied: bool = True,
        recompute: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        arguments = {
            "source_vocab_size": source_vocab_size,
            "source_features": source_features,
            "target_vocab_size": target_vocab_size,
            "bos_id": bos_id,
            "eos_id": eos_id,
            "d_model": d_model,
            "nhead": nhead,
            "num_encoder_layers": num_encoder_layers,
            "num_decoder_layers": num_decoder_layers,
            "dim_feedforward": dim_feedforward,
            "dropout": dropout,
            "activation": activation,
            "layer_norm_eps": layer_norm_eps,
            "norm_first": norm_first,
            "positions": positions,
            "max_length": max_length,
            "shared": shared,
            "tied": tied,
            "recompute": recompute,
        }
        self._allocate({**self._arguments_of(arguments), "dtype": float_dtype(dtype).name}, initial_seed(rng))

    @classmethod
    def _arguments_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        integers = (
            "target_vocab_size",
            "bos_id",
            "eos_id",
            "d_model",
            "nhead",
            "dim_feedforward",
            "max_length",
        )
        layers = ("num_encoder_layers", "num_decoder_layers")
        source = {name: config.get(name) for name in ("source_vocab_size", "source_features")}
        return {
            **{name: checked_integer_or_none(name, size) for name, size in source.items()},
            **{name: checked_integer(name, config[name]) for name in integers},
            **{name: checked_layers(name, config[name]) for name in layers},
            "dropout": checked_number("dropout", config["dropout"]),
            "layer_norm_eps": checked_epsilon("layer_norm_eps", config["layer_norm_eps"]),
            **{name: checked_name(name, config[name]) for name in ("activation", "positions")},
            **{
                name: checked_flag(name, config[name])
                for name in ("norm_first", "shared", "tied", "recompute")
            },
        }

    def _allocate(self, arguments: dict[str, Any], seed: int | None) -> None:
        self._arguments = arguments
        self._held = _core.seq2seq(**arguments, seed=seed)

    def __call__(
        self,
        source_ids: ArrayLike,
        target_ids: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        return_weights: LayerWeights = False,
    ) -> Any:
        if return_weights is False:
            return self._held.call(source_ids, target_ids, source_lengths, target_lengths, [])[0]
        length = np.shape(target_ids)[-1] + 1 if np.ndim(target_ids) else 0
        layers, heads = self._arguments["num_decoder_layers"], self._arguments["nhead"]
        asked = choose_layers(return_weights, layers, heads, length)
        logits, weights = self._held.call(
            source_ids, target_ids, source_lengths, target_lengths, list(asked.values())
        )
        return logits, {name: weights[index] for name, (index, _) in asked.items()}

    def forward(
        self,
        source_ids: ArrayLike,
        target_ids: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The logits and what their gradient needs. Dropout acts if there is an rng.

        For training by the loss of the targets `loss_and_gradients` does all of it in one call.
        """
        return self._held.forward(source_ids, target_ids, source_lengths, target_lengths, seed_or_none(rng))

    def loss(
        self,
        source_ids: ArrayLike,
        target_ids: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> float:
        """The mean cross-entropy of the targets, without dropout. Arguments as for `loss_and_gradients`.

        >>> model = Seq2Seq(10, 12, bos_id=10, eos_id=11, d_model=16, nhead=2, rng=0)
        >>> model.loss([[1, 2, 3]], [[3, 2, 1]]) > 0
        True
        """
        return self._held.loss(
            source_ids,
            target_ids,
            source_lengths,
            target_lengths,
            divisor,
            *checked_loss_numbers(label_smoothing, ignore_index),
        )

    def loss_and_gradients(
        self,
        source_ids: ArrayLike,
        target_ids: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        rng: Rng | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        accumulate: Mapping[str, Array] | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """The forward and backward pass of a step: (loss, {name: gradient} of what is not frozen).

        source_ids, target_ids, source_lengths, target_lengths: as for calling the model. Each target token is
            predicted from the source and the target tokens before it, and eos_id from all of them: teacher
            forcing.
        rng: numpy.random.Generator or int that dropout is drawn from; without it nothing is dropped
        divisor: what the sum of the losses is divided by: the number of targets that count, eos_id included,
            by default, which makes it their mean. For one step of several calls give each of them the number
            of all (`target_count`), and add up with accumulate.
        label_smoothing: share of the target's probability that is spread over all tokens
        ignore_index: an id of targets that do not count
        accumulate: gradients of an earlier call, which those of this one are added to, in place

        Only what the gradient needs is kept, the logits exist for some rows at a time, and layers below the
        last trained parameter are not kept or gone through at all.

        Raises IndexError, ValueError or TypeError for what does not fit; nothing is changed then.

        >>> model = Seq2Seq(10, 12, bos_id=10, eos_id=11, d_model=16, nhead=2, rng=0)
        >>> loss, grads = model.loss_and_gradients([[1, 2, 3]], [[3, 2]], rng=1)
        >>> grads["source_embedding.weight"].shape
        (10, 16)
        """
        seed = seed_or_none(rng)

        def compute(arrays: dict[str, Array] | None) -> tuple[float, dict[str, Array]]:
            return self._held.loss_and_gradients(
                source_ids,
                target_ids,
                source_lengths,
                target_lengths,
                divisor,
                *checked_loss_numbers(label_smoothing, ignore_index),
                seed,
                arrays,
            )

        return self._accumulated(compute, accumulate)

    def target_count(
        self,
        source_ids: ArrayLike,
        target_ids: ArrayLike,
        *,
        source_lengths: ArrayLike | None = None,
        target_lengths: ArrayLike | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> int:
        """How many targets count: what `loss` divides by. Arguments as for `loss_and_gradients`, of which
        label_smoothing changes nothing.

        >>> model = Seq2Seq(10, 12, bos_id=10, eos_id=11, d_model=16, nhead=2, rng=0)
        >>> model.target_count([[1, 2, 3], [4, 5, 6]], [[3, 2, 0], [1, 0, 0]], target_lengths=[2, 1])
        5
        """
        return int(
            self._held.target_count(
                source_ids,
                target_ids,
                source_lengths,
                target_lengths,
                checked_integer("ignore_index", ignore_index),
            )
        )

    def generate(
        self,
        source_ids: ArrayLike | Sequence[ArrayLike],
        max_new_tokens: int,
        *,
        source_lengths: ArrayLike | None = None,
        beams: int = 1,
        length_penalty: float = 1.0,
        return_weights: LayerWeights = False,
        progress: bool | None = None,
    ) -> Any:
        """The most probable target of each source, greedily or by beam search.

        source_ids: (length,) or (batch, length) integers, or a list of sequences of different lengths; or of
            vectors, (length, source_features) each
        max_new_tokens: how many tokens a target has at most, eos_id included
        source_lengths: (batch,) integers: how many ids, from the left, each source has
        beams: how many unfinished targets to follow side by side; 1 takes the most probable token each time
        length_penalty: among finished targets (and unfinished ones of max_new_tokens tokens) the best has the
            highest log(probability) / tokens**length_penalty, with eos_id among the tokens: 0 prefers short
            targets, 1 takes the mean of the tokens
        return_weights: which weights of the decoder's attention to the source to return, as for calling the
            model
        progress: whether to show a bar; None does in terminals and notebooks if it takes longer than 2
            seconds

        Returns the targets, int64, without eos_id: an array for one source, a list of arrays for several; or
        (targets, weights) with weights a dict from the index of a layer to (batch, nhead, length + 1,
        source_length), for the longest target and source. Row i belongs to token i, and the one behind the
        last to eos_id.

        Keys and values of the source and of earlier tokens are kept. Sources do not influence each other.

        Raises IndexError, ValueError or TypeError for what does not fit, and ValueError if logits are NaN.

        >>> model = Seq2Seq(10, 12, bos_id=10, eos_id=11, d_model=16, nhead=2, rng=0)
        >>> targets = model.generate([[1, 2, 3], [4]], max_new_tokens=5, beams=4)
        >>> len(targets)
        2
        """
        ids, lengths, single = self._sources(source_ids, source_lengths)
        count = checked_integer("max_new_tokens", max_new_tokens)
        if count < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {count}")
        if self._arguments["positions"] == "learned" and count > self._arguments["max_length"]:
            raise ValueError(
                f"max_new_tokens must be at most max_length = {self._arguments['max_length']}, got {count}"
            )
        search = BeamSearch(
            len(ids),
            checked_integer("beams", beams),
            count,
            checked_number("length_penalty", length_penalty),
            self._arguments["eos_id"],
        )
        with progress_bar(
            count, progress, argument="progress", description="Generating", unit="token"
        ) as advance:
            cache = self._held.encode(ids, lengths, count)
            last = np.full(len(ids), self._arguments["bos_id"], np.int64)
            while search.active:
                places, targets, last = search.step(cache.add(last))
                cache.choose(places, targets)
                advance(1)
        found = search.best()
        if return_weights is False:
            return found[0] if single else found
        target_ids, target_lengths = padded(found)
        _, weights = self(
            ids,
            target_ids,
            source_lengths=lengths,
            target_lengths=target_lengths,
            return_weights=return_weights,
        )
        if single:
            return found[0], {name: array[0] for name, array in weights.items()}
        return found, weights

    def _sources(self, sources: Any, lengths: ArrayLike | None) -> tuple[Array, Array | None, bool]:
        """Sources, (batch, length) or (batch, length, features), their lengths, and whether there was only
        one, without an axis for the batch."""
        if self._arguments["source_features"] is None:
            vocab_size = self._arguments["source_vocab_size"]
            rows, single = sequences_of("source_ids", sources, lengths, vocab_size, "source_lengths")
            return *padded(rows), single
        features = self._arguments["source_features"]
        if isinstance(sources, np.ndarray):
            if sources.ndim not in (2, 3):
                raise ValueError(
                    f"source_ids must have the shape (batch, length, {features}) or (length, {features}), "
                    f"got {sources.shape}"
                )
            counts = None if lengths is None else np.atleast_1d(checked_integers("source_lengths", lengths))
            return (sources, counts, False) if sources.ndim == 3 else (sources[None], counts, True)
        if lengths is not None:
            raise ValueError("source_lengths must not be given for a list of sources, which have theirs")
        sources = list(sources)
        for source in sources:
            refuse_masked("source_ids", source)
        vectors = [np.asarray(source) for source in sources]
        for source in vectors:
            if source.shape[1:] != (features,) or source.dtype != self.dtype:
                raise ValueError(
                    f"source_ids must be {self.dtype} arrays (length, {features}), "
                    f"got {source.dtype} {source.shape}"
                )
        if not vectors:
            return np.zeros((0, 0, features), self.dtype), None, False
        return *pad(vectors), False
