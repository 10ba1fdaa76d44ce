"""Models on NumPy arrays: published ones, and ones to train.

No PyTorch, no network, no conversion step: `BertModel` and `LanguageModel` (GPT-2) read config.json and
model.safetensors as they are published, and `SentenceEncoder` also the tokenizer and the pooling that a
sentence-transformers folder names. Models that are trained here are layers (see `blasformer.nn`) with
`loss_and_gradients`, one call for a forward and a backward pass, and are saved in such folders.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core
from ._attention import Array, ChosenWeights, LayerWeights, choose_layers
from ._language_model import LanguageModel
from ._optional import require_package
from ._progress import progress_bar
from ._random import Rng, draw_seed
from .io import (
    FLOATING,
    Checkpoint,
    PathLike,
    float_dtype,
    path_inside,
    read_json,
    require_regular_file,
    some_names,
)

__all__ = ["BertConfig", "BertModel", "BertOutput", "LanguageModel", "SentenceEncoder"]

# ----------------------------------------------------------------------------------------------------------
# BERT
# ----------------------------------------------------------------------------------------------------------

# What config.json calls an activation, and what it is called here.
BERT_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
MAX_LAYERS = 1000

# Buffers that some versions saved with the weights: the numbers from 0, and zeros.
BERT_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")
# Parts on top of the encoder in checkpoints for one task: masked words, next sentence, classes, answers.
BERT_HEADS = ("cls.", "classifier.", "qa_outputs.")
# Names that checkpoints converted from TensorFlow still have.
BERT_OLD_SUFFIXES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


@dataclass(frozen=True)
class BertConfig:
    """The sizes and choices of a BERT encoder, under the names of config.json.

    >>> config = BertConfig(
    ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ... )
    >>> config.layer_norm_eps
    1e-12
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int":
                if not isinstance(value, int) or isinstance(value, bool):
                    raise TypeError(f"{field.name} must be an integer, got {value!r}")
                if not 0 < value < 2**31:
                    raise ValueError(f"{field.name} must be between 1 and {2**31 - 1}, got {value}")
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(f"num_hidden_layers must be at most {MAX_LAYERS}, got {self.num_hidden_layers}")
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

    @classmethod
    def from_file(cls, path: PathLike) -> BertConfig:
        """Reads config.json. Raises a ValueError that names what is missing, wrong or not supported."""
        path = Path(path)
        values = read_json(path, dict)
        for name, supported in {
            "model_type": "bert",
            "position_embedding_type": "absolute",
            "is_decoder": False,
            "add_cross_attention": False,
        }.items():
            if values.get(name, supported) != supported:
                raise ValueError(f"{path}: {name} must be {supported!r} for BertModel, got {values[name]!r}")
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


class BertModel:
    """BERT, the encoder (Devlin et al. 2018, https://arxiv.org/abs/1810.04805).

        x = LayerNorm(word embedding + position embedding + token type embedding)
        x = LayerNorm(x + attention(x));  x = LayerNorm(x + feed_forward(x))      in each layer
        pooled = tanh(dense(x of the first token))

    Made by `from_pretrained`, or with random weights by `BertModel(config, dtype=..., rng=...)`. `config`
    is its BertConfig, `dtype` what it computes in, `parameters()` its weights under the names of checkpoints.

    Padding costs nothing and changes nothing: only tokens are computed, and a sequence's result is the same
    up to rounding whatever else is in the batch. One model may be called from many threads at once.

    >>> bert = BertModel.from_pretrained("all-MiniLM-L6-v2")  # the path of a folder
    >>> out = bert(np.array([[101, 7592, 2088, 102]]), return_weights=(-1,))
    >>> out.last_hidden_state.shape, out.pooler_output.shape, out.weights[-1].shape
    ((1, 4, 384), (1, 384), (1, 12, 4, 4))
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        dtype: npt.DTypeLike = np.float32,
        with_pooler: bool = True,
        rng: Rng | None = None,
    ) -> None:
        self._allocate(config, float_dtype(dtype), with_pooler)
        self._core.initialise(draw_seed(np.random.default_rng() if rng is None else rng))

    def _allocate(self, config: BertConfig, dtype: np.dtype[Any], with_pooler: bool) -> None:
        """Makes the model but for the numbers in its weights."""
        self.config = config
        self.dtype = dtype
        self.with_pooler = with_pooler
        self._core = _core.BertModel(
            str(dtype),
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            max_position_embeddings=config.max_position_embeddings,
            type_vocab_size=config.type_vocab_size,
            activation=BERT_ACTIVATIONS[config.hidden_act],
            layer_norm_eps=config.layer_norm_eps,
            with_pooler=with_pooler,
        )

    @classmethod
    def from_pretrained(
        cls, folder: PathLike, *, dtype: npt.DTypeLike | None = None, strict: bool = True
    ) -> BertModel:
        """The model in a folder as it is published: config.json and model.safetensors, or its shards.

        dtype: float32 or float64; None computes in float64 if the weights are stored so, else in float32
            (float16 and bfloat16 are widened exactly)
        strict: False ignores tensors that the model does not have. What it has must be there in any case.

        The parts that checkpoints for one task have on top (cls, classifier, qa_outputs) are left out. A
        model without a pooler has pooler_output None.

        Raises FileNotFoundError for a missing file; ValueError for a damaged one (see `io.Checkpoint`), for
        another kind of model, and for missing, unexpected or misshapen tensors, all of which it names.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder")
        config = BertConfig.from_file(folder / "config.json")
        with Checkpoint(folder) as checkpoint:
            stored_names = _bert_names(checkpoint)
            if dtype is None:
                dtypes = {checkpoint.dtypes[stored] for stored in stored_names.values()}
                dtype = np.float64 if "float64" in dtypes else np.float32
            model = cls.__new__(cls)
            try:
                model._allocate(
                    config, float_dtype(dtype), any(name.startswith("pooler.") for name in stored_names)
                )
            except MemoryError:
                raise MemoryError(f"{folder}: not enough memory for the sizes in config.json") from None
            parameters = model._core.parameters(writeable=True)
            expected = {name: array.shape for name, array in parameters.items()}
            _require_match(expected, checkpoint, stored_names, strict)
            for name, array in parameters.items():
                array[...] = checkpoint.read(stored_names[name], model.dtype)
        return model

    def parameters(self) -> dict[str, Array]:
        """The weights under the names of published checkpoints: read-only views of the live arrays."""
        return self._core.parameters(writeable=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored_bert, (self.config, self.dtype, self.with_pooler, self.parameters())

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
            nothing either (Hugging Face counts it unless told otherwise). Not together with lengths.
        token_type_ids: (batch, length) integers: 0 for the first text of a pair, 1 for the second; default 0
        return_weights: which attention weights to return: True for those of all layers, the indices of
            layers, as (0, -1), or a WeightSelection for each, as {0: WeightSelection(heads=[3]), -1: True}

        Ids and types where there is no token are not looked at. Sequences without tokens are legal.

        Raises IndexError for ids and types out of range and for layers that do not exist, ValueError for
        shapes that do not fit and for sequences longer than max_position_embeddings, TypeError for what is
        not integer: all before anything is computed.
        """
        config = self.config
        ids = _integers("input_ids", input_ids)
        if ids.ndim not in (1, 2):
            raise ValueError(f"input_ids must have the shape (batch, length) or (length,), got {ids.shape}")
        is_token = _tokens(ids.shape, lengths, attention_mask)
        types = np.zeros_like(ids) if token_type_ids is None else _integers("token_type_ids", token_type_ids)
        if types.shape != ids.shape:
            raise ValueError(
                f"token_type_ids must have the shape of input_ids {ids.shape}, got {types.shape}"
            )
        _require_range("input_ids", ids, is_token, config.vocab_size)
        _require_range("token_type_ids", types, is_token, config.type_vocab_size)
        asked = choose_layers(
            return_weights, config.num_hidden_layers, config.num_attention_heads, ids.shape[-1]
        )

        positions = _positions(is_token)
        if positions.size and positions.max() >= config.max_position_embeddings:
            raise ValueError(
                f"input_ids must have at most {config.max_position_embeddings} positions "
                f"(max_position_embeddings), got a sequence of {positions.max() + 1}"
            )

        of_layers = [(layer, heads, mean) for layer, (heads, _, mean) in asked.values()]
        lengths_of_tokens = np.atleast_1d(is_token.sum(-1))
        hidden, pooled, packed_weights = self._run(
            ids[is_token], positions, types[is_token], lengths_of_tokens, of_layers, self.with_pooler
        )
        weights = {
            name: _unpacked_weights(packed_weights[layer], is_token, chosen, self.dtype)
            for name, (layer, chosen) in asked.items()
        }
        return BertOutput(
            _unpacked(hidden, is_token),
            None if pooled is None else pooled.reshape(*ids.shape[:-1], config.hidden_size),
            weights or None,
        )

    def _run(
        self,
        ids: Array,
        positions: Array,
        types: Array,
        lengths: Array,
        weights_of: Sequence[tuple[int, list[int], bool]],
        with_pooled: bool,
    ) -> tuple[Array, Array | None, dict[int, list[Array]]]:
        """(last hidden states, pooled, weights) of sequences whose tokens follow one another.

        weights_of: which weights to return: (layer, heads, whether the mean of the heads)
        """
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return self._core.forward(ids, positions, types, starts.tolist(), weights_of, with_pooled)


def _restored_bert(
    config: BertConfig, dtype: np.dtype[Any], with_pooler: bool, weights: dict[str, Array]
) -> BertModel:
    model = BertModel.__new__(BertModel)
    model._allocate(config, dtype, with_pooler)
    for name, array in model._core.parameters(writeable=True).items():
        array[...] = weights[name]
    return model


def _bert_names(checkpoint: Checkpoint) -> dict[str, str]:
    """The names of BertModel's parameters, and what they are called in this checkpoint."""
    stored_names = list(checkpoint.shapes)
    prefix = "bert." if any(name.startswith("bert.") for name in stored_names) else ""
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


def _require_match(
    expected: dict[str, tuple[int, ...]], checkpoint: Checkpoint, stored_names: dict[str, str], strict: bool
) -> None:
    """Names all that is missing, unexpected, of another shape or no weights at all, at once."""
    found = {name: checkpoint.shapes[stored] for name, stored in stored_names.items()}
    common = expected.keys() & found.keys()
    faults = {
        "missing": expected.keys() - found.keys(),
        "unexpected": found.keys() - expected.keys() if strict else set(),
        "misshapen": {f"{n} {found[n]} instead of {expected[n]}" for n in common if found[n] != expected[n]},
        "not floating point": {n for n in common if checkpoint.dtypes[stored_names[n]] not in FLOATING},
    }
    text = "; ".join(f"{fault}: {some_names(names)}" for fault, names in faults.items() if names)
    if text:
        raise ValueError(f"{checkpoint.path}: the tensors are not those of the model; {text}")


def _array(name: str, values: npt.ArrayLike) -> Array:
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


def _positions(is_token: npt.NDArray[np.bool_]) -> Array:
    """Of every token, counted from the first token of its sequence."""
    sequences = np.atleast_2d(is_token)
    length = sequences.shape[-1]
    columns = np.arange(length)
    first = np.where(sequences, columns, length).min(-1, initial=length)
    positions: Array = columns - first[:, None]
    return positions[sequences]


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


# ----------------------------------------------------------------------------------------------------------
# Sentences
# ----------------------------------------------------------------------------------------------------------

POOLINGS = ("cls", "mean", "max")
# The switches of older pooling configurations, and the modes they stand for.
POOLING_SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


class SentenceEncoder:
    """Sentences to vectors, as a sentence-transformers folder describes it (Reimers and Gurevych 2019).

    Made by `from_pretrained`, or of its parts. Tokenizer, BertModel, pooling over the tokens ("mean", "max",
    or "cls", the first of them), and length 1 if the folder says so.

    `bert` is the BertModel, `tokenizer` the tokenizers.Tokenizer, `embedding_dim` the length of a vector,
    `max_seq_length` how many tokens of a sentence are read. Needs `pip install "blasformer[text]"`.

    >>> encoder = SentenceEncoder.from_pretrained("all-MiniLM-L6-v2")  # the path of a folder
    >>> vectors = encoder.encode(["The economy grew.", "A feline rests.", "GDP is rising."])
    >>> vectors.shape, (vectors @ encoder.encode("A cat sits on the mat.")).argmax()
    ((3, 384), np.int64(1))
    """

    def __init__(
        self,
        bert: BertModel,
        tokenizer: Any,
        *,
        pooling: str = "mean",
        normalize: bool = False,
        max_seq_length: int | None = None,
        lower_case: bool = False,
        prompt: str = "",
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, got {pooling!r}")
        positions = bert.config.max_position_embeddings
        specials = tokenizer.num_special_tokens_to_add(False)
        self.max_seq_length = positions if max_seq_length is None else min(max_seq_length, positions)
        if self.max_seq_length <= specials:
            raise ValueError(
                f"max_seq_length must be more than the {specials} special tokens, got {self.max_seq_length}"
            )
        if tokenizer.get_vocab_size() > bert.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_vocab_size()} tokens, "
                f"more than the {bert.config.vocab_size} of the model"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_seq_length)
        self.bert = bert
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.normalize = normalize
        self.lower_case = lower_case
        self.prompt = prompt

    def __repr__(self) -> str:
        return (
            f"SentenceEncoder({self.bert}, pooling={self.pooling!r}, normalize={self.normalize}, "
            f"max_seq_length={self.max_seq_length})"
        )

    @property
    def embedding_dim(self) -> int:
        return self.bert.config.hidden_size

    @classmethod
    def from_pretrained(
        cls, folder: PathLike, *, dtype: npt.DTypeLike | None = None, strict: bool = True
    ) -> SentenceEncoder:
        """The encoder in a folder as sentence-transformers publishes it.

        Read are modules.json and the configurations it names (pooling "cls", "mean" or "max"; Normalize),
        sentence_bert_config.json (max_seq_length), config_sentence_transformers.json (a default prompt),
        tokenizer.json, and the model. dtype, strict: as in BertModel.from_pretrained.

        Raises FileNotFoundError for a missing file and ValueError for one that is damaged or describes what
        is not supported (other poolings, modules and models), naming the file.
        """
        folder = Path(folder)
        modules = _sentence_modules(folder)
        settings_file = modules["Transformer"] / "sentence_bert_config.json"
        settings = read_json(settings_file, dict) if settings_file.exists() else {}
        max_seq_length = settings.get("max_seq_length")
        if max_seq_length is not None and (type(max_seq_length) is not int or max_seq_length < 1):
            raise ValueError(
                f"{settings_file}: max_seq_length must be a positive integer, got {max_seq_length!r}"
            )
        bert = BertModel.from_pretrained(modules["Transformer"], dtype=dtype, strict=strict)
        prompt = _default_prompt(folder / "config_sentence_transformers.json")
        return cls(
            bert,
            _load_tokenizer(modules["Transformer"] / "tokenizer.json"),
            pooling=_pooling(modules["Pooling"] / "config.json", bert.config.hidden_size, prompt),
            normalize="Normalize" in modules,
            max_seq_length=max_seq_length,
            lower_case=bool(settings.get("do_lower_case", False)),
            prompt=prompt,
        )

    def encode(
        self,
        sentences: str | Iterable[str],
        *,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool | None = None,
    ) -> Array:
        """A vector for each sentence: (n, embedding_dim) in the given order, or (embedding_dim,) for one str.

        batch_size: sentences per call of the model; they are sorted by length inside. It bounds memory and
            changes no result.
        show_progress_bar: None shows one in terminals and notebooks when the work takes longer than 2 seconds
            (and tqdm is installed)
        normalize_embeddings: True for vectors of length 1, False for vectors as pooled; None does what the
            folder says

        What is longer than max_seq_length tokens is cut off. An empty string is a sentence like any other.
        """
        texts = [self.prompt + text for text in _texts(sentences)]
        if self.lower_case:
            texts = [text.lower() for text in texts]
        size = _batch_size(batch_size)
        embeddings = np.empty((len(texts), self.embedding_dim), self.bert.dtype)
        longest_first = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        with progress_bar(
            len(texts),
            show_progress_bar,
            argument="show_progress_bar",
            description="Encoding",
            unit="sentence",
        ) as progress:
            for start in range(0, len(texts), size):
                batch = longest_first[start : start + size]
                embeddings[batch] = self._embed([texts[i] for i in batch])
                progress(len(batch))
        normalize = self.normalize if normalize_embeddings is None else normalize_embeddings
        if normalize:
            embeddings = _unit_length(embeddings)
        return embeddings[0] if isinstance(sentences, str) else embeddings

    def _embed(self, texts: list[str]) -> Array:
        """The pooled vectors of one batch, (n, embedding_dim)."""
        encodings = self.tokenizer.encode_batch_fast(texts)
        lengths = np.array([len(encoding) for encoding in encodings], np.int64)
        ids = np.array([token for encoding in encodings for token in encoding.ids], np.int64)
        types = np.array([kind for encoding in encodings for kind in encoding.type_ids], np.int64)
        positions = np.array([place for length in lengths for place in range(length)], np.int64)
        hidden, _, _ = self.bert._run(ids, positions, types, lengths, [], False)
        return _pooled(self.pooling, hidden, lengths)


def _texts(sentences: str | Iterable[str]) -> list[str]:
    """The sentences as a list, all of which are text."""
    if isinstance(sentences, str):
        sentences = [sentences]
    if isinstance(sentences, (bytes, bytearray)) or not isinstance(sentences, Iterable):
        raise TypeError(f"sentences must be a str or several of them, got {type(sentences).__name__}")
    texts = list(sentences)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"sentences[{i}] must be a str, got {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"sentences[{i}] must be valid Unicode, got {error.object[error.start]!r}"
            ) from error
    return texts


def _batch_size(batch_size: int) -> int:
    try:
        size = operator.index(batch_size)
    except TypeError:
        raise TypeError(f"batch_size must be an integer, got {type(batch_size).__name__}") from None
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    return size


def _pooled(pooling: str, hidden: Array, lengths: Array) -> Array:
    """(total, features) -> (sequences, features); zeros for a sequence without tokens."""
    result = np.zeros((len(lengths), hidden.shape[-1]), hidden.dtype)
    occupied = lengths > 0
    starts = (np.cumsum(lengths) - lengths)[occupied]
    if pooling == "cls":
        result[occupied] = hidden[starts]
    elif pooling == "max":
        result[occupied] = np.maximum.reduceat(hidden, starts) if len(starts) else 0
    else:
        sums = np.add.reduceat(hidden, starts, dtype=np.float64) if len(starts) else 0
        result[occupied] = sums / lengths[occupied, None]
    return result


def _unit_length(vectors: Array) -> Array:
    """Rows of Euclidean length 1; a row of zeros stays."""
    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    return (vectors / np.where(norms > 0, norms, 1)).astype(vectors.dtype)


def _sentence_modules(folder: Path) -> dict[str, Path]:
    """Where modules.json says that the Transformer, the Pooling and the Normalize module lie."""
    file = folder / "modules.json"
    if not file.exists():
        raise FileNotFoundError(
            f"{folder} holds no modules.json, which would name the pooling. Of a plain BERT folder, make "
            "SentenceEncoder(BertModel.from_pretrained(folder), tokenizer, pooling=...)"
        )
    modules: dict[str, Path] = {}
    for module in read_json(file, list):
        if not isinstance(module, dict) or not all(
            isinstance(module.get(key), str) for key in ("type", "path")
        ):
            raise ValueError(f"{file}: each module must have a type and a path, got {module!r}")
        kind = module["type"].rpartition(".")[2]
        # Normalize has nothing to store: its folder is often missing.
        modules[kind] = path_inside(folder, module["path"], file) if kind != "Normalize" else folder
    if list(modules) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise ValueError(
            f"{file}: modules must be Transformer, Pooling and perhaps Normalize, got {', '.join(modules)}"
        )
    return modules


def _pooling(file: Path, hidden_size: int, prompt: str) -> str:
    """The one pooling that a configuration asks for."""
    config = read_json(file, dict)
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for switch, mode in POOLING_SWITCHES.items() if config.get(switch)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLINGS:
        raise ValueError(f"{file}: the pooling must be one of {', '.join(POOLINGS)}, got {modes!r}")
    size = config.get("embedding_dimension", config.get("word_embedding_dimension", hidden_size))
    if size != hidden_size:
        raise ValueError(f"{file}: the dimension must be the model's hidden_size {hidden_size}, got {size!r}")
    if prompt and not config.get("include_prompt", True):
        raise ValueError(f"{file}: include_prompt must be true for a model with a default prompt, got false")
    return str(modes[0])


def _default_prompt(file: Path) -> str:
    """What is put before each sentence: mostly nothing."""
    config = read_json(file, dict) if file.exists() else {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    if not isinstance(prompts, dict) or not isinstance(prompts.get(name), str):
        raise ValueError(f"{file}: default_prompt_name must be one of its prompts, got {name!r}")
    return str(prompts[name])


def _load_tokenizer(file: Path) -> Any:
    require_regular_file(file)
    tokenizers = require_package("tokenizers", extra="text", purpose="SentenceEncoder")
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more specific
        raise ValueError(f"{file} is not a valid tokenizer: {error}") from error
