"""BERT and RoBERTa on NumPy arrays: published encoders, loaded from their folders, run and trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core
from ._arguments import checked_flag, checked_layers, checked_path, refuse_masked, require_supported
from ._attention import Array, ChosenWeights, LayerWeights, choose_layers
from ._dtypes import float_dtype
from ._model import read_parameters, save_folder
from ._module import add_gradients
from ._random import Rng, initial_seed, seed_or_none
from .io import Checkpoint, PathLike, existing_folder, read_json, some_names
from .nn import Layer

# What config.json may ask for besides, and what it says if it does not.
BERT_SUPPORTED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
# What config.json calls an activation, and what it is called here.
BERT_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}

# What config.json calls the models that are read, and what transformers calls their classes.
BERT_CLASSES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "xlm-roberta": "XLMRoberta",
    "camembert": "Camembert",
}

# Buffers that some versions saved with the weights: the numbers from 0, and zeros.
BERT_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# Parts on top of the encoder in checkpoints for one task: masked words, next sentence, classes, answers.
BERT_HEADS = ("cls.", "lm_head.", "classifier.", "qa_outputs.")
# Names that checkpoints converted from TensorFlow still have.
BERT_OLD_SUFFIXES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class BertConfig:
    """The sizes and choices of a BERT or RoBERTa encoder, under the names of config.json.

    model_type: "bert"; or "roberta", "xlm-roberta" or "camembert", in which positions count from
        pad_token_id + 1, and so many of the position embeddings are not for tokens
    pad_token_id: which token stands for padding; 0 by default, in RoBERTa 1

    Raises TypeError or ValueError that names what it cannot be.

    >>> config = BertConfig(
    ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ... )
    >>> config.layer_norm_eps, config.max_length
    (1e-12, 512)
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    hidden_act: str = "gelu"
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    model_type: str = "bert"
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model_type, str) or self.model_type not in BERT_CLASSES:
            raise ValueError(
                f"model_type must be one of {', '.join(BERT_CLASSES)} for BertModel, got {self.model_type!r}"
            )
        if self.pad_token_id is None:
            object.__setattr__(self, "pad_token_id", 1 if self.is_roberta else 0)
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                if not isinstance(value, int) or isinstance(value, bool):
                    raise TypeError(f"{field.name} must be an integer, got {value!r}")
                if not 0 < value < 2**31:
                    raise ValueError(f"{field.name} must be between 1 and {2**31 - 1}, got {value}")
        checked_layers("num_hidden_layers", self.num_hidden_layers)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads = {self.num_attention_heads}, "
                f"got {self.hidden_size}"
            )
        if not isinstance(self.hidden_act, str) or self.hidden_act not in BERT_ACTIVATIONS:
            raise ValueError(
                f"hidden_act must be one of {', '.join(BERT_ACTIVATIONS)}, got {self.hidden_act!r}"
            )
        eps = self.layer_norm_eps
        if not isinstance(eps, (int, float)) or isinstance(eps, bool) or not 0 < eps < math.inf:
            raise ValueError(f"layer_norm_eps must be a positive number, got {eps!r}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            p = getattr(self, name)
            if not isinstance(p, (int, float)) or isinstance(p, bool) or not 0 <= p <= 1:
                raise ValueError(f"{name} must be a number from 0 to 1, got {p!r}")
        pad = self.pad_token_id
        if not isinstance(pad, int) or isinstance(pad, bool):
            raise TypeError(f"pad_token_id must be an integer, got {pad!r}")
        if self.is_roberta and not 0 <= pad < self.max_position_embeddings - 1:
            raise ValueError(
                f"pad_token_id must be at least 0 and leave positions: at most max_position_embeddings - 2 = "
                f"{self.max_position_embeddings - 2}, got {pad}"
            )

    @property
    def is_roberta(self) -> bool:
        """Whether it is RoBERTa, or one of the models that are like it."""
        return self.model_type != "bert"

    @property
    def first_position(self) -> int:
        """Which position embedding the first token of a sequence has."""
        assert self.pad_token_id is not None
        return self.pad_token_id + 1 if self.is_roberta else 0

    @property
    def max_length(self) -> int:
        """How many tokens a sequence may have."""
        return self.max_position_embeddings - self.first_position

    @classmethod
    def from_file(cls, path: PathLike) -> BertConfig:
        """Reads config.json. Raises a ValueError that names what is missing, wrong or not supported."""
        path = checked_path("path", path)
        values = read_json(path, dict)
        known = {field.name: values[field.name] for field in fields(cls) if field.name in values}
        required = {
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        }
        if missing := required - known.keys():
            raise ValueError(f"{path} lacks {some_names(missing)}")
        try:
            require_supported(values, BERT_SUPPORTED)
            return cls(**known)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from error


class BertOutput(NamedTuple):
    """What a BertModel returns.

    last_hidden_state: (batch, length, hidden_size); zeros where there is no token
    pooler_output: (batch, hidden_size): tanh of a linear map of each sequence's first token, which is what
        next-sentence prediction was trained on; None if the model has no pooler
    weights: a dict from the index of a layer, as it was asked for, to its (batch, heads, length, length)
        attention weights, zeros where there is no token; None if none were asked for
    """

    last_hidden_state: Array
    pooler_output: Array | None
    weights: dict[int, Array] | None


class BertModel(Layer):
    """BERT, the encoder (Devlin et al. 2018, https://arxiv.org/abs/1810.04805); or RoBERTa (Liu et al. 2019,
    https://arxiv.org/abs/1907.11692), XLM-RoBERTa and CamemBERT, whose formula is the same.

        x = LayerNorm(word embedding + position embedding + token type embedding)
        x = LayerNorm(x + attention(x));  x = LayerNorm(x + feed_forward(x))      in each layer
        pooled = tanh(dense(x of the first token))

    Positions count from 0, in RoBERTa from pad_token_id + 1; there the padding token, should it be among the
    tokens, has the position pad_token_id and is not counted.

    Made by `from_pretrained`, or with random weights by `BertModel(config, dtype=..., rng=...)`. `config`
    is its BertConfig, `dtype` what it computes in, `parameters()` its weights under the names of checkpoints.

    Padding costs nothing and changes nothing: only tokens are computed, and a sequence's result is the same
    whatever else is in the batch: up to rounding, and in every bit within blasformer.batch_invariant(). One
    model may be called from many threads at once. What calling it takes and raises says `BertModel.__call__`.

    >>> bert = BertModel.from_pretrained("all-MiniLM-L6-v2")  # the path of a folder
    >>> out = bert(np.array([[101, 7592, 2088, 102]]), return_weights=(-1,))
    >>> out.last_hidden_state.shape, out.pooler_output.shape, out.weights[-1].shape
    ((1, 4, 384), (1, 384), (1, 12, 4, 4))
    """

    _held: _core.BertModel

    def __init__(
        self,
        config: BertConfig,
        *,
        dtype: npt.DTypeLike = np.float32,
        with_pooler: bool = True,
        rng: Rng | None = None,
    ) -> None:
        seed = initial_seed(rng)
        flag = checked_flag("with_pooler", with_pooler)
        self._allocate(checked_config(config), float_dtype(dtype), flag, seed)

    def _allocate(
        self, config: BertConfig, dtype: np.dtype[Any], with_pooler: bool, seed: int | None
    ) -> None:
        """Makes the model; without a seed, but for the numbers in its weights."""
        self._arguments = {"config": config, "dtype": dtype.name, "with_pooler": with_pooler}
        self._held = _core.bert_model(dtype.name, _sizes(config, with_pooler), seed)

    @property
    def config(self) -> BertConfig:
        """The sizes and choices of the model."""
        config: BertConfig = self._arguments["config"]
        return config

    @property
    def with_pooler(self) -> bool:
        """Whether there is a pooler_output."""
        return bool(self._arguments["with_pooler"])

    @classmethod
    def from_pretrained(
        cls,
        folder: PathLike,
        *,
        dtype: npt.DTypeLike | None = None,
        weights_dtype: npt.DTypeLike | None = None,
        strict: bool = True,
    ) -> BertModel:
        """The model in a folder as it is published: config.json and model.safetensors, or its shards.

        dtype: float32 or float64; None computes in float64 if the weights are stored so, else in float32
            (float16 and bfloat16 are widened exactly)
        weights_dtype: "bfloat16" holds the weights of linear layers so, as `hold_weights` does, for inference
            with half the memory
        strict: False ignores tensors that the model does not have. What it has must be there in any case.

        Read are BERT, RoBERTa, XLM-RoBERTa and CamemBERT. The parts that checkpoints for one task have on top
        (cls, lm_head, classifier, qa_outputs) are left out. A model without a pooler has pooler_output None.

        Raises FileNotFoundError for a missing file; ValueError for a damaged one (see `io.Checkpoint`), for
        another kind of model, and for missing, unexpected or misshapen tensors, all of which it names.
        """
        folder = existing_folder(folder)
        config = BertConfig.from_file(folder / "config.json")
        with Checkpoint(folder) as checkpoint:
            stored_names = _bert_names(checkpoint, config)
            if dtype is None:
                dtypes = {checkpoint.dtypes[stored] for stored in stored_names.values()}
                dtype = np.float64 if "float64" in dtypes else np.float32
            model = cls.__new__(cls)
            with_pooler = any(name.startswith("pooler.") for name in stored_names)
            try:
                model._allocate(config, float_dtype(dtype), with_pooler, None)
            except MemoryError:
                raise MemoryError(f"{folder}: not enough memory for the sizes in config.json") from None
            if weights_dtype is not None:
                model.hold_weights(weights_dtype)
            read_parameters(model, checkpoint, stored_names, strict=strict)
        return model

    def save(self, folder: PathLike) -> None:
        """Writes config.json and model.safetensors, which `from_pretrained` and transformers read, into a
        folder, which is made if need be.

        Each file appears as a whole or not at all: what was there stays until the new one is complete.
        Adapters are saved by blasformer.lora; merge them first if they are to be part of the weights.

        Raises OSError if the folder cannot be written to.
        """
        save_folder(self, folder, published_config(self.config, "Model", self.dtype))

    def __repr__(self) -> str:
        return f"BertModel({self.config}, dtype={self.dtype}, with_pooler={self.with_pooler})"

    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        return_weights: LayerWeights = False,
    ) -> BertOutput:
        """Encodes a batch of token sequences.

        input_ids: (batch, length) integers, or (length,) for one sequence: outputs then have no batch axis
        lengths: (batch,) integers: how many tokens, from the left, each sequence has
        attention_mask: (batch, length) of 0 and 1 or bool, as tokenizers give it: 1 = a token. Padding may be
            right, left or in between. Positions count from the first token, so that left padding changes
            nothing either (Hugging Face's BERT counts it unless told otherwise). Not together with lengths.
        token_type_ids: (batch, length) integers: 0 for the first text of a pair, 1 for the second; default 0.
            RoBERTa has one type only.
        return_weights: which attention weights to return: True for those of all layers, the indices of
            layers, as (0, -1), or a WeightSelection for each, as {0: WeightSelection(heads=[3]), -1: True}

        Ids and types where there is no token are not looked at. Sequences without tokens are legal.

        Raises IndexError for ids and types out of range and for layers that do not exist, ValueError for
        shapes that do not fit and for sequences longer than config.max_length, TypeError for what is not
        integer: all before anything is computed.
        """
        config = self.config
        tokens = _packed(config, input_ids, lengths, attention_mask, token_type_ids)
        is_token = tokens.is_token
        asked, of_layers = _asked_layers(config, return_weights, is_token)
        hidden, pooled, packed_weights = self._held.call(*tokens.arguments, of_layers, self.with_pooler)
        weights = _weights_of_layers(packed_weights, asked, is_token, self.dtype)
        return BertOutput(
            _unpacked(hidden, is_token),
            None if pooled is None else pooled.reshape(*is_token.shape[:-1], config.hidden_size),
            weights or None,
        )

    def forward(
        self,
        input_ids: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        rng: Rng | None = None,
    ) -> tuple[BertOutput, BertSaved]:
        """The output and what its gradient needs. Dropout, as the config says, acts if there is an rng."""
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        seed = seed_or_none(rng)
        hidden, pooled, saved = self._held.forward(*tokens.arguments, self.with_pooler, seed)
        shape = (*tokens.is_token.shape[:-1], self.config.hidden_size)
        output = BertOutput(
            _unpacked(hidden, tokens.is_token), None if pooled is None else pooled.reshape(shape), None
        )
        return output, BertSaved(saved, tokens.is_token)

    def backward(  # type: ignore[override]  # there are two outputs, and their gradients may be left out
        self,
        saved: BertSaved,
        d_last_hidden_state: Array | None = None,
        d_pooler_output: Array | None = None,
        *,
        accumulate: Mapping[str, Array] | None = None,
    ) -> tuple[None, dict[str, Array]]:
        """The gradients of a scalar with respect to the parameters that are not frozen, by name.

        saved: what `forward` of this model returned; it is used up, and must be of the present weights
        d_last_hidden_state, d_pooler_output: the gradients with respect to the outputs, of their shapes; None
            is zero. What is given for padding is not looked at.
        accumulate: gradients of an earlier pass, which those of this one are added to, in place

        Returns (None, grads), as ids have no gradient. Layers below the lowest one that learns cost nothing.
        Raises as `nn.Linear.backward`.
        """
        if not isinstance(saved, BertSaved):
            raise TypeError(f"saved must be what forward returned, got {type(saved).__name__}")
        if accumulate is not None:
            self._check_gradients(accumulate)
        width = self.config.hidden_size
        if d_last_hidden_state is None:
            d_hidden = np.zeros((int(saved.is_token.sum()), width), self.dtype)
        else:
            d_last = _array("d_last_hidden_state", d_last_hidden_state)
            if d_last.shape != (*saved.is_token.shape, width):
                raise ValueError(
                    f"d_last_hidden_state must have the shape of last_hidden_state, "
                    f"{(*saved.is_token.shape, width)}, got {d_last.shape}"
                )
            d_hidden = d_last[saved.is_token]
        d_pooled = None
        if d_pooler_output is not None:
            d_pooled = _array("d_pooler_output", d_pooler_output)
            if not self.with_pooler or d_pooled.shape != (*saved.is_token.shape[:-1], width):
                expected = (*saved.is_token.shape[:-1], width) if self.with_pooler else None
                raise ValueError(
                    f"d_pooler_output must have the shape of pooler_output, {expected}, got {d_pooled.shape}"
                )
            d_pooled = d_pooled.reshape(-1, width)
        grads = self._held.gradients(saved.values, d_hidden, d_pooled)
        return None, grads if accumulate is None else add_gradients(accumulate, grads)


class BertSaved(NamedTuple):
    """What BertModel.forward keeps for its backward."""

    values: _core.Saved
    is_token: npt.NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes + self.is_token.nbytes

    def __repr__(self) -> str:
        return f"BertSaved({self.values!r}, of tokens {self.is_token.shape})"


class _Packed(NamedTuple):
    """Tokens without the padding between them."""

    is_token: npt.NDArray[np.bool_]
    arguments: tuple[Array, Array, Array, list[int]]  # ids, positions, types, starts


def _packed(
    config: BertConfig,
    input_ids: npt.ArrayLike,
    lengths: npt.ArrayLike | None,
    attention_mask: npt.ArrayLike | None,
    token_type_ids: npt.ArrayLike | None,
) -> _Packed:
    ids = _integers("input_ids", input_ids)
    if ids.ndim not in (1, 2):
        raise ValueError(f"input_ids must have the shape (batch, length) or (length,), got {ids.shape}")
    is_token = _tokens(ids.shape, lengths, attention_mask)
    types = np.zeros_like(ids) if token_type_ids is None else _integers("token_type_ids", token_type_ids)
    if types.shape != ids.shape:
        raise ValueError(f"token_type_ids must have the shape of input_ids {ids.shape}, got {types.shape}")
    _require_range("input_ids", ids, is_token, config.vocab_size)
    _require_range("token_type_ids", types, is_token, config.type_vocab_size)
    positions = _positions(config, ids, is_token)
    if positions.size and positions.max() >= config.max_position_embeddings:
        raise ValueError(
            f"input_ids must have at most {config.max_length} positions "
            f"({_max_length_text(config)}), got a sequence of {positions.max() - config.first_position + 1}"
        )
    counts = np.atleast_1d(is_token.sum(-1))
    return _Packed(is_token, (ids[is_token], positions, types[is_token], starts_of(counts)))


def _max_length_text(config: BertConfig) -> str:
    return "max_position_embeddings" + (" - pad_token_id - 1" if config.is_roberta else "")


def starts_of(lengths: Array) -> list[int]:
    """Where each sequence begins among the tokens of all, and where the last one ends."""
    return [0, *np.cumsum(lengths, dtype=np.int64).tolist()]


def checked_config(config: BertConfig) -> BertConfig:
    if not isinstance(config, BertConfig):
        raise TypeError(f"config must be a BertConfig, got {type(config).__name__}")
    return config


def _sizes(config: BertConfig, with_pooler: bool) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "type_vocab_size": config.type_vocab_size,
        "activation": BERT_ACTIVATIONS[config.hidden_act],
        "layer_norm_eps": config.layer_norm_eps,
        "with_pooler": with_pooler,
        "hidden_dropout": config.hidden_dropout_prob,
        "attention_dropout": config.attention_probs_dropout_prob,
    }


def published_config(config: BertConfig, kind: str, dtype: np.dtype[Any]) -> dict[str, Any]:
    """What config.json says of a model that transformers calls Bert<kind>, Roberta<kind>, ..."""
    return {
        "architectures": [BERT_CLASSES[config.model_type] + kind],
        **vars(config),
        "torch_dtype": dtype.name,
    }


def _bert_names(checkpoint: Checkpoint, config: BertConfig) -> dict[str, str]:
    """The names of BertModel's parameters, and what they are called in this checkpoint."""
    stored_names = list(checkpoint.shapes)
    own = "roberta." if config.is_roberta else "bert."
    prefix = own if any(name.startswith(own) for name in stored_names) else ""
    names: dict[str, str] = {}
    for stored in stored_names:
        if prefix and stored.startswith(BERT_HEADS):
            continue
        name = stored.removeprefix(prefix)
        for old, new in BERT_OLD_SUFFIXES.items():
            if name.endswith(old):
                name = name.removesuffix(old) + new
        if name in names:
            raise ValueError(f"{checkpoint.path} holds {name} twice: as {names[name]} and as {stored}")
        if name not in BERT_BUFFERS:
            names[name] = stored
    return names


def _array(name: str, values: npt.ArrayLike) -> Array:
    refuse_masked(name, values)
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be rectangular: pad it, and give lengths or attention_mask") from error


def _integers(name: str, values: npt.ArrayLike) -> Array:
    array = _array(name, values)
    if array.size == 0 and not isinstance(values, np.ndarray):
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    return array


def _tokens(
    shape: tuple[int, ...], lengths: npt.ArrayLike | None, attention_mask: npt.ArrayLike | None
) -> npt.NDArray[np.bool_]:
    """Where there is a token."""
    if lengths is not None and attention_mask is not None:
        raise ValueError("lengths and attention_mask must not both be given: each says where the tokens are")
    if lengths is not None:
        counts = _integers("lengths", lengths)
        if counts.shape != shape[:-1]:
            raise ValueError(
                f"lengths must have the shape {shape[:-1]} to fit input_ids {shape}, got {counts.shape}"
            )
        if counts.size and (counts.min() < 0 or counts.max() > shape[-1]):
            wrong = counts.min() if counts.min() < 0 else counts.max()
            raise ValueError(
                f"lengths must be between 0 and the {shape[-1]} columns of input_ids, got {wrong}"
            )
        return np.arange(shape[-1]) < counts[..., None]
    if attention_mask is None:
        return np.ones(shape, np.bool_)
    mask = _array("attention_mask", attention_mask)
    if mask.shape != shape:
        raise ValueError(f"attention_mask must have the shape of input_ids {shape}, got {mask.shape}")
    if mask.dtype.kind not in "biu" and mask.size:
        raise TypeError(f"attention_mask must be bool, or integers 0 and 1, got {mask.dtype}")
    if mask.size and (mask.min() < 0 or mask.max() > 1):
        raise ValueError(f"attention_mask must hold 0 and 1 only, got {mask[(mask != 0) & (mask != 1)][0]}")
    return mask.astype(np.bool_)


def _positions(config: BertConfig, ids: Array, is_token: npt.NDArray[np.bool_]) -> Array:
    """Of every token, counted from the first token of its sequence."""
    sequences = np.atleast_2d(is_token)
    counted = np.logical_or.accumulate(sequences, axis=-1)
    if config.is_roberta:
        counted &= ~(sequences & (np.atleast_2d(ids) == config.pad_token_id))
    positions: Array = np.cumsum(counted, axis=-1, dtype=np.int64) - 1 + config.first_position
    return np.where(counted, positions, config.first_position - 1)[sequences]


def _require_range(name: str, ids: Array, is_token: Array, count: int) -> None:
    wrong = is_token & ((ids < 0) | (ids >= count))
    if wrong.any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise IndexError(f"{name} must lie in [0, {count - 1}], got {ids[place]} at {list(place)}")


def _unpacked(rows: Array, is_token: Array) -> Array:
    """(total, features) -> (batch, length, features), zeros where there is no token."""
    if is_token.all():
        return rows.reshape(*is_token.shape, rows.shape[-1])
    result = np.zeros((*is_token.shape, rows.shape[-1]), rows.dtype)
    result[is_token] = rows
    return result


Asked = dict[int, tuple[int, ChosenWeights]]


def _asked_layers(
    config: BertConfig, return_weights: LayerWeights, is_token: Array
) -> tuple[Asked, list[tuple[int, list[int], bool]]]:
    """The layers whose weights somebody wants, and what the core is to compute for them."""
    asked = choose_layers(
        return_weights, config.num_hidden_layers, config.num_attention_heads, is_token.shape[-1]
    )
    return asked, [(layer, heads, mean) for layer, (heads, _, mean) in asked.values()]


def _weights_of_layers(
    packed: dict[int, list[Array]], asked: Asked, is_token: Array, dtype: np.dtype[Any]
) -> dict[int, Array]:
    """The weights of these layers, by the index of the layer as it was given."""
    return {
        name: _unpacked_weights(packed[layer], is_token, chosen, dtype)
        for name, (layer, chosen) in asked.items()
    }


def _unpacked_weights(
    weights: list[Array], is_token: Array, chosen: ChosenWeights, dtype: np.dtype[Any]
) -> Array:
    """The weights of each sequence's tokens -> (batch, heads, rows, length), zeros in between."""
    heads, rows, mean = chosen
    sequences = np.atleast_2d(is_token)
    length = sequences.shape[-1]
    result = np.zeros((len(sequences), 1 if mean else len(heads), length, length), dtype)
    occupied = [i for i, row in enumerate(sequences) if row.any()]
    for i, of_tokens in zip(occupied, weights, strict=True):
        (places,) = sequences[i].nonzero()
        result[i][:, places[:, None], places] = of_tokens
    if rows != list(range(length)):
        result = result[..., rows, :]
    batch_and_heads = is_token.shape[:-1] if mean else (*is_token.shape[:-1], len(heads))
    return result.reshape(*batch_and_heads, len(rows), length)
