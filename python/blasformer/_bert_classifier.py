"""BERT and RoBERTa for sequence classification: fine-tuned as a whole, in part, or by adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _core
from ._arguments import checked_integer, checked_loss_numbers, checked_name, checked_number_or_none
from ._attention import Array
from ._bert import (
    BertConfig,
    _bert_names,
    _integers,
    _packed,
    _sizes,
    checked_config,
    published_config,
)
from ._dtypes import float_dtype
from ._model import read_parameters, save_folder
from ._module import add_gradients
from ._random import Rng, initial_seed, seed_or_none
from .functional import softmax
from .io import Checkpoint, PathLike, existing_folder, read_json
from .nn import Layer

POOLINGS = ("pooler", "mean")
CLASSIFIER = ("classifier.weight", "classifier.bias")
POOLER = ("bert.pooler.dense.weight", "bert.pooler.dense.bias")
# The beginnings of our names, and what transformers has instead in RoBERTa; the longer ones first.
ROBERTA_NAMES = {
    "bert.pooler.dense.": "classifier.dense.",
    "bert.": "roberta.",
    "classifier.": "classifier.out_proj.",
}


class BertForSequenceClassification(Layer):
    """A class for each sequence of tokens: BERT or RoBERTa, and a linear layer on what it says of it.

        features = tanh(dense(x of the first token)), or the mean of x over the tokens
        logits = dropout(features) @ classifier.weight.T + classifier.bias

    Parameters
    ----------
    config : the BertConfig of the encoder
    num_labels : how many classes there are; 1 for a score, as rerankers have: it can be computed, but has no
        cross-entropy to be trained by
    pooling : "pooler", what BERT was pretrained with, as in transformers; or "mean", as sentence encoders
        such as all-MiniLM-L6-v2 were
    classifier_dropout : probability with which features are dropped in training; that of hidden states by
        default
    labels : names of the classes; LABEL_0, LABEL_1, ... by default, as in transformers
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from; a fresh one by default

    State: bert.* as BertModel, classifier.weight (num_labels, hidden_size), classifier.bias: the names that
    transformers gives them. (Its RoBERTa has others, which are in the files of `save`: roberta.* for bert.*,
    classifier.dense.* for bert.pooler.dense.*, classifier.out_proj.* for classifier.*.)

    Calling it
    ----------
    input_ids, lengths, attention_mask, token_type_ids : as for BertModel

    Returns the logits, (batch, num_labels), or (num_labels,) for one sequence without a batch axis.

    Raises
    ------
    IndexError for ids and types out of range, ValueError for shapes that do not fit and for sequences that
    are too long, TypeError for what is not integer.

    References
    ----------
    Devlin et al. 2018, "BERT", section 4.1; Liu et al. 2019, "RoBERTa"; Reimers and Gurevych 2019,
    "Sentence-BERT".

    Examples
    --------
    >>> from blasformer import optim
    >>> config = BertConfig(
    ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ... )
    >>> model = BertForSequenceClassification(config, num_labels=3, rng=0)
    >>> optimizer = optim.AdamW(model, lr=1e-3)
    >>> loss, grads = model.loss_and_gradients([[1, 2, 3], [4, 5, 0]], [0, 2], lengths=[3, 2], rng=1)
    >>> norm = optimizer.step(grads)
    >>> model([[1, 2, 3], [4, 5, 0]], lengths=[3, 2]).shape
    (2, 3)
    """

    _held: _core.BertClassifier

    def __init__(
        self,
        config: BertConfig,
        num_labels: int,
        pooling: str = "pooler",
        classifier_dropout: float | None = None,
        *,
        labels: Sequence[str] | None = None,
        dtype: npt.DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        count = checked_integer("num_labels", num_labels)
        if count < 1:
            raise ValueError(f"num_labels must be positive, got {count}")
        if checked_name("pooling", pooling) not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        if labels is not None and not isinstance(labels, Iterable):
            raise TypeError(f"labels must be names, got {type(labels).__name__}")
        names = None if labels is None else tuple(checked_name("labels", name) for name in labels)
        if names is not None:
            if isinstance(labels, str) or len(names) != count or len(set(names)) != count:
                raise ValueError(f"labels must be {count} different names, got {labels!r}")
            names = None if names == _default_labels(count) else names
        self._arguments = {
            "config": checked_config(config),
            "num_labels": count,
            "pooling": pooling,
            "classifier_dropout": checked_number_or_none("classifier_dropout", classifier_dropout),
            "labels": names,
            "dtype": float_dtype(dtype).name,
        }
        dropout = config.hidden_dropout_prob if classifier_dropout is None else classifier_dropout
        self._held = _core.bert_classifier(
            float_dtype(dtype).name,
            _sizes(config, pooling == "pooler"),
            count,
            pooling == "mean",
            dropout,
            initial_seed(rng),
        )

    @property
    def config(self) -> BertConfig:
        """The sizes and choices of the encoder."""
        config: BertConfig = self._arguments["config"]
        return config

    @property
    def num_labels(self) -> int:
        """How many classes there are."""
        return int(self._arguments["num_labels"])

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes: `model.labels[model(ids)[0].argmax()]`."""
        names: tuple[str, ...] | None = self._arguments["labels"]
        return _default_labels(self.num_labels) if names is None else names

    @classmethod
    def from_pretrained(
        cls,
        folder: PathLike,
        num_labels: int | None = None,
        pooling: str | None = None,
        *,
        dtype: npt.DTypeLike | None = None,
        rng: Rng | None = None,
    ) -> BertForSequenceClassification:
        """The model in a folder that `save` or transformers wrote, with the names of its classes; or the
        encoder in a folder, with a new classifier on top.

        num_labels: how many classes; None: as many as the folder's classifier has. If it has none, or another
            number, the classifier starts anew.
        pooling: "pooler" or "mean"; None: what `save` noted, else "pooler"
        dtype: float32 or float64; None computes in float64 if the weights are stored so, else in float32
        rng: what a new classifier is drawn from

        Raises what BertModel.from_pretrained raises, and ValueError for a folder without a classifier if
        num_labels is None.
        """
        folder = existing_folder(folder)
        config = BertConfig.from_file(folder / "config.json")
        noted = read_json(folder / "config.json", dict)
        chosen = str(noted.get("blasformer_pooling", "pooler")) if pooling is None else pooling
        with Checkpoint(folder) as checkpoint:
            stored_names = _classifier_names(checkpoint, config)
            shape = checkpoint.shapes[stored_names[CLASSIFIER[0]]] if CLASSIFIER[0] in stored_names else ()
            classes = shape[0] if shape else None
            if num_labels is None:
                if classes is None:
                    raise ValueError(f"num_labels must be given: {folder} has no classifier")
                num_labels = classes
            new = [] if classes == num_labels else list(CLASSIFIER)
            if chosen == "mean":  # where the pooler has nothing to say
                stored_names = {name: stored for name, stored in stored_names.items() if name not in POOLER}
            elif config.is_roberta and not any(name in stored_names for name in POOLER):
                new += POOLER
            stored_names = {name: stored for name, stored in stored_names.items() if name not in new}
            if dtype is None:
                dtypes = {checkpoint.dtypes[stored] for stored in stored_names.values()}
                dtype = np.float64 if "float64" in dtypes else np.float32
            dropout = noted.get("classifier_dropout")
            try:
                labels = None if new else _labels_in(noted, num_labels)
                model = cls(config, num_labels, chosen, dropout, labels=labels, dtype=dtype, rng=rng)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{folder}: {error}") from error
            read_parameters(model, checkpoint, stored_names, new=new)
        return model

    def save(self, folder: PathLike) -> None:
        """Write config.json and model.safetensors, which `from_pretrained` and transformers read.

        Each file appears as a whole or not at all. Adapters are saved by blasformer.lora; merge them first if
        they are to be part of the weights. Raises OSError if the folder cannot be written to.
        """
        config = published_config(self.config, "ForSequenceClassification", self.dtype) | {
            "classifier_dropout": self._arguments["classifier_dropout"],
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
            "blasformer_pooling": self._arguments["pooling"],
        }
        save_folder(self, folder, config)

    def _stored_name(self, name: str) -> str:
        return _published_name(self.config, name)

    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
    ) -> Array:
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        logits = self._held.call(*tokens.arguments)
        return logits.reshape(*tokens.is_token.shape[:-1], self.num_labels)

    def predict_proba(self, input_ids: npt.ArrayLike, **tokens: Any) -> Array:
        """The probability of each class, (batch, num_labels). Arguments as for the call."""
        self._require_classes()
        return softmax(self(input_ids, **tokens))

    def forward(
        self,
        input_ids: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The logits, (batch, num_labels), and what their gradient needs. Dropout acts if there is an rng."""
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        return self._held.forward(*tokens.arguments, seed_or_none(rng))

    def loss(
        self,
        input_ids: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> float:
        """The mean cross-entropy of the labels, without dropout. Arguments as for `loss_and_gradients`."""
        self._require_classes()
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        return self._held.loss(
            *tokens.arguments, _labels(labels), divisor, *checked_loss_numbers(label_smoothing, ignore_index)
        )

    def loss_and_gradients(
        self,
        input_ids: npt.ArrayLike,
        labels: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        rng: Rng | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        accumulate: Mapping[str, Array] | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """The cross-entropy of the labels and its gradients: a training step's work in one call.

        input_ids, lengths, attention_mask, token_type_ids: as for the call
        labels: (batch,) integers in [0, num_labels), or ignore_index for sequences that do not count
        rng: for dropout; None drops nothing
        divisor: what the sum of the losses is divided by; by default the number of labels that count. A step
            made of several batches divides each by the number of labels of all of them.
        accumulate: gradients of an earlier batch, which those of this one are added to, in place

        Returns (loss, {name: gradient}) for the parameters that are not frozen. Raises IndexError for labels
        out of range, ValueError for a model of a single score, and what the call raises.
        """
        self._require_classes()
        if accumulate is not None:
            self._check_gradients(accumulate)
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        loss, grads = self._held.loss_and_gradients(
            *tokens.arguments,
            _labels(labels),
            divisor,
            *checked_loss_numbers(label_smoothing, ignore_index),
            seed_or_none(rng),
        )
        return loss, grads if accumulate is None else add_gradients(accumulate, grads)

    def _require_classes(self) -> None:
        if self.num_labels < 2:
            raise ValueError("num_labels must be at least 2 for probabilities and losses, got 1")

    def target_count(
        self, input_ids: npt.ArrayLike, labels: npt.ArrayLike, *, ignore_index: int = -100, **tokens: Any
    ) -> int:
        """How many labels count: what `loss` divides by. Arguments as for `loss_and_gradients`."""
        return int(np.count_nonzero(_labels(labels) != ignore_index))


def _published_name(config: BertConfig, name: str) -> str:
    """What transformers calls a parameter."""
    for ours, published in ROBERTA_NAMES.items():
        if config.is_roberta and name.startswith(ours):
            return published + name.removeprefix(ours)
    return name


def _classifier_names(checkpoint: Checkpoint, config: BertConfig) -> dict[str, str]:
    """The names of the parameters, and what they are called in this checkpoint."""
    names = {f"bert.{name}": stored for name, stored in _bert_names(checkpoint, config).items()}
    if config.is_roberta:  # the pooler, if there is one, is not what its classifier was trained on
        names = {name: stored for name, stored in names.items() if name not in POOLER}
    own = {name: _published_name(config, name) for name in (*CLASSIFIER, *POOLER)}
    return names | {name: stored for name, stored in own.items() if stored in checkpoint.shapes}


def _default_labels(count: int) -> tuple[str, ...]:
    return tuple(f"LABEL_{i}" for i in range(count))


def _labels_in(config: Mapping[str, Any], count: int) -> list[str] | None:
    """The names of so many classes in config.json, if there are as many."""
    names = config.get("id2label")
    if names is None:
        return None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise TypeError(f"id2label must be an object of names, or null, got {names!r}")
    found = [names[str(i)] for i in range(count) if str(i) in names]
    return found if len(set(found)) == count else None


def _labels(labels: npt.ArrayLike) -> Array:
    return np.atleast_1d(_integers("labels", labels))
