"""BERT and RoBERTa for question answering: where in a passage an answer begins and ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _core
from ._arguments import checked_integer, checked_loss_numbers
from ._attention import Array, LayerWeights
from ._bert import (
    BertConfig,
    _array,
    _asked_layers,
    _bert_names,
    _integers,
    _Packed,
    _packed,
    _sizes,
    _weights_of_layers,
    checked_config,
    published_config,
    starts_of,
)
from ._bert_classifier import _published_name
from ._dtypes import float_dtype
from ._model import read_parameters, save_folder
from ._module import add_gradients
from ._random import Rng, initial_seed, seed_or_none
from .functional import log_softmax
from .io import Checkpoint, PathLike, existing_folder
from .nn import Layer

HEAD = ("qa_outputs.weight", "qa_outputs.bias")


class Answers(NamedTuple):
    """The best answer of each sequence: its first and its last token, and the probability of this pair."""

    start: Array
    end: Array
    probability: Array


class BertForQuestionAnswering(Layer):
    """Where an answer begins and ends: BERT or RoBERTa, and a linear layer that gives each token two numbers.

        logits = x @ qa_outputs.weight.T + qa_outputs.bias
        P(begins with token i) = softmax(logits[:, 0])[i], P(ends with token j) = softmax(logits[:, 1])[j]

    Parameters
    ----------
    config : the BertConfig of the encoder
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from; a fresh one by default

    State: bert.* as BertModel without a pooler, qa_outputs.weight (2, hidden_size), qa_outputs.bias: the
    names that transformers gives them (in its RoBERTa, and in the files of `save`, roberta.* for bert.*).

    Calling it
    ----------
    input_ids, lengths, attention_mask, token_type_ids : as for BertModel; question and passage are one
        sequence, `[CLS] question [SEP] passage [SEP]`
    candidates : (batch, length) bool, the tokens that an answer may begin and end with, such as those of the
        passage, token_type_ids == 1; all by default
    return_weights : which attention weights to return, as for BertModel

    Returns the logits, (batch, 2, length): of beginning with each token, and of ending with it. They are -inf
    where there is no token, or no candidate. With return_weights (logits, weights), weights a dict from the
    index of a layer, as it was given, to its (batch, heads, length, length).

    Raises
    ------
    IndexError for ids and types out of range, ValueError for shapes that do not fit and for sequences that
    are too long, TypeError for what is not integer.

    References
    ----------
    Devlin et al. 2018, "BERT", section 4.2; Rajpurkar et al. 2016, "SQuAD".

    Examples
    --------
    >>> from blasformer import optim
    >>> config = BertConfig(
    ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    ... )
    >>> model = BertForQuestionAnswering(config, rng=0)
    >>> optimizer = optim.AdamW(model, lr=1e-3)
    >>> ids, types = np.array([[1, 2, 3, 4, 5]]), np.array([[0, 0, 1, 1, 1]])
    >>> loss, grads = model.loss_and_gradients(ids, [2], [3], token_type_ids=types, candidates=types == 1)
    >>> norm = optimizer.step(grads)
    >>> model(ids, token_type_ids=types).shape
    (1, 2, 5)
    """

    _held: _core.BertQuestionAnswering

    def __init__(
        self, config: BertConfig, *, dtype: npt.DTypeLike = np.float32, rng: Rng | None = None
    ) -> None:
        self._arguments = {"config": checked_config(config), "dtype": float_dtype(dtype).name}
        self._held = _core.bert_question_answering(
            float_dtype(dtype).name,
            _sizes(config, False),
            initial_seed(rng),
        )

    @property
    def config(self) -> BertConfig:
        """The sizes and choices of the encoder."""
        config: BertConfig = self._arguments["config"]
        return config

    @classmethod
    def from_pretrained(
        cls, folder: PathLike, *, dtype: npt.DTypeLike | None = None, rng: Rng | None = None
    ) -> BertForQuestionAnswering:
        """The model in a folder that `save` or transformers wrote; or the encoder in a folder, with a new
        linear layer on top, which has not learnt anything yet.

        dtype: float32 or float64; None computes in float64 if the weights are stored so, else in float32
        rng: what a new linear layer is drawn from

        Raises what BertModel.from_pretrained raises.
        """
        folder = existing_folder(folder)
        config = BertConfig.from_file(folder / "config.json")
        with Checkpoint(folder) as checkpoint:
            encoder = _bert_names(checkpoint, config).items()
            stored = {
                f"bert.{name}": name_there for name, name_there in encoder if not name.startswith("pooler.")
            }
            stored |= {name: name for name in HEAD if name in checkpoint.shapes}
            if dtype is None:
                dtypes = {checkpoint.dtypes[name] for name in stored.values()}
                dtype = np.float64 if "float64" in dtypes else np.float32
            model = cls(config, dtype=dtype, rng=rng)
            new = () if any(name in stored for name in HEAD) else HEAD
            read_parameters(model, checkpoint, stored, new=new)
        return model

    def save(self, folder: PathLike) -> None:
        """Write config.json and model.safetensors, which `from_pretrained` and transformers read.

        Each file appears as a whole or not at all. Adapters are saved by blasformer.lora; merge them first if
        they are to be part of the weights. Raises OSError if the folder cannot be written to.
        """
        save_folder(self, folder, published_config(self.config, "ForQuestionAnswering", self.dtype))

    def _stored_name(self, name: str) -> str:
        return _published_name(self.config, name)

    def __call__(
        self,
        input_ids: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        candidates: npt.ArrayLike | None = None,
        return_weights: LayerWeights = False,
    ) -> Any:
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        allowed = _allowed(tokens, candidates)
        asked, of_layers = _asked_layers(self.config, return_weights, tokens.is_token)
        rows, packed_weights = self._held.call(*tokens.arguments, of_layers)
        logits = _unpacked(rows, tokens.is_token, allowed)
        if return_weights is False:
            return logits
        return logits, _weights_of_layers(packed_weights, asked, tokens.is_token, self.dtype)

    def answers(
        self,
        input_ids: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        candidates: npt.ArrayLike | None = None,
        longest: int = 30,
    ) -> Answers:
        """The most probable answer of each sequence among those that end where they begin or later.

        input_ids, lengths, attention_mask, token_type_ids, candidates: as for the call
        longest: how many tokens an answer has at most

        Returns Answers(start, end, probability): its first and last token, counted in the columns of
        input_ids (-1 for a sequence without candidates), and P(start) * P(end), each (batch,), or numbers for
        one sequence without a batch axis.

        >>> config = BertConfig(
        ...     vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
        ... )
        >>> answers = BertForQuestionAnswering(config, rng=0).answers([[1, 2, 3, 4], [5, 6, 7, 8]], longest=2)
        >>> bool(np.all((answers.start <= answers.end) & (answers.end < answers.start + 2)))
        True
        """
        count = checked_integer("longest", longest)
        if count < 1:
            raise ValueError(f"longest must be at least 1, got {count}")
        logits = self(
            input_ids,
            lengths=lengths,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            candidates=candidates,
        )
        length = logits.shape[-1]
        distances = np.arange(length) - np.arange(length)[:, None]
        impossible = (distances < 0) | (distances >= count)
        sequences = logits if logits.ndim == 3 else logits[None]
        found = [_best_pair(of_one, impossible) for of_one in sequences]
        pairs = np.array([pair for pair, _ in found], np.int64).reshape(-1, 2)
        probability = np.array([probability for _, probability in found])
        start, end = pairs.T.reshape(2, *logits.shape[:-2])
        return Answers(start[()], end[()], probability.reshape(logits.shape[:-2])[()])

    def forward(
        self,
        input_ids: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        candidates: npt.ArrayLike | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, QuestionAnsweringSaved]:
        """The logits, (batch, 2, length), and what their gradient needs. Dropout acts if there is an rng."""
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        allowed = _allowed(tokens, candidates)
        logits, saved = self._held.forward(*tokens.arguments, seed_or_none(rng))
        return _unpacked(logits, tokens.is_token, allowed), QuestionAnsweringSaved(
            saved, tokens.is_token, allowed
        )

    def backward(  # type: ignore[override]  # what is saved says where the tokens were
        self,
        saved: QuestionAnsweringSaved,
        d_output: Array,
        *,
        accumulate: Mapping[str, Array] | None = None,
    ) -> tuple[None, dict[str, Array]]:
        """(None, grads): ids have no gradient. What d_output says where logits are -inf is not looked at."""
        if not isinstance(saved, QuestionAnsweringSaved):
            raise TypeError(f"saved must be what forward returned, got {type(saved).__name__}")
        d_logits = _array("d_output", d_output)
        shape = (*saved.is_token.shape[:-1], 2, saved.is_token.shape[-1])
        if d_logits.shape != shape:
            raise ValueError(f"d_output must have the shape of the output, {shape}, got {d_logits.shape}")
        d_rows = np.where(saved.allowed[..., None], d_logits.swapaxes(-1, -2), d_logits.dtype.type(0))
        _, grads = super().backward(saved.values, d_rows[saved.is_token], accumulate=accumulate)
        return None, grads

    def loss(
        self,
        input_ids: npt.ArrayLike,
        start_positions: npt.ArrayLike,
        end_positions: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        candidates: npt.ArrayLike | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
    ) -> float:
        """The mean cross-entropy of beginnings and ends, without dropout. Arguments as for
        `loss_and_gradients`."""
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        spans = _spans(tokens, candidates, start_positions, end_positions, ignore_index)
        return self._held.loss(
            *tokens.arguments, *spans, divisor, *checked_loss_numbers(label_smoothing, ignore_index)
        )

    def loss_and_gradients(
        self,
        input_ids: npt.ArrayLike,
        start_positions: npt.ArrayLike,
        end_positions: npt.ArrayLike,
        *,
        lengths: npt.ArrayLike | None = None,
        attention_mask: npt.ArrayLike | None = None,
        token_type_ids: npt.ArrayLike | None = None,
        candidates: npt.ArrayLike | None = None,
        rng: Rng | None = None,
        divisor: float | None = None,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        accumulate: Mapping[str, Array] | None = None,
    ) -> tuple[float, dict[str, Array]]:
        """The cross-entropy of answers and its gradients: a training step's work in one call.

        input_ids, lengths, attention_mask, token_type_ids, candidates: as for the call
        start_positions, end_positions: (batch,) integers, the columns of the first and of the last token of
            each answer, which must be candidates; ignore_index for those that do not count
        rng: for dropout; None drops nothing
        divisor: what the sum of the losses is divided by; by default the number of beginnings and ends that
            count. A step made of several batches divides each by the number of all of them.
        accumulate: gradients of an earlier batch, which those of this one are added to, in place

        Returns (loss, {name: gradient}) for the parameters that are not frozen. Raises IndexError for columns
        that there are not, ValueError for tokens that are no candidates, and what the call raises.
        """
        if accumulate is not None:
            self._check_gradients(accumulate)
        tokens = _packed(self.config, input_ids, lengths, attention_mask, token_type_ids)
        spans = _spans(tokens, candidates, start_positions, end_positions, ignore_index)
        loss, grads = self._held.loss_and_gradients(
            *tokens.arguments,
            *spans,
            divisor,
            *checked_loss_numbers(label_smoothing, ignore_index),
            seed_or_none(rng),
        )
        return loss, grads if accumulate is None else add_gradients(accumulate, grads)

    def target_count(
        self,
        input_ids: npt.ArrayLike,
        start_positions: npt.ArrayLike,
        end_positions: npt.ArrayLike,
        *,
        ignore_index: int = -100,
        **tokens: Any,
    ) -> int:
        """How many beginnings and ends count: what `loss` divides by. Arguments as for
        `loss_and_gradients`."""
        both = _integers("start_positions", start_positions), _integers("end_positions", end_positions)
        return sum(int(np.count_nonzero(positions != ignore_index)) for positions in both)


class QuestionAnsweringSaved(NamedTuple):
    """What BertForQuestionAnswering.forward keeps for its backward."""

    values: _core.Saved
    is_token: npt.NDArray[np.bool_]
    allowed: npt.NDArray[np.bool_]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes + self.is_token.nbytes + self.allowed.nbytes

    def __repr__(self) -> str:
        return f"QuestionAnsweringSaved({self.values!r}, of tokens {self.is_token.shape})"


def _allowed(tokens: _Packed, candidates: npt.ArrayLike | None) -> npt.NDArray[np.bool_]:
    """The tokens that an answer may begin and end with."""
    if candidates is None:
        return tokens.is_token
    chosen = _array("candidates", candidates)
    if chosen.dtype != np.bool_:
        raise TypeError(f"candidates must be bool, got {chosen.dtype}")
    if chosen.shape != tokens.is_token.shape:
        raise ValueError(
            f"candidates must have the shape of input_ids {tokens.is_token.shape}, got {chosen.shape}"
        )
    allowed: npt.NDArray[np.bool_] = chosen & tokens.is_token
    return allowed


def _unpacked(rows: Array, is_token: Array, allowed: Array) -> Array:
    """(total, 2) -> (batch, 2, length), -inf where no answer may begin and end."""
    logits = np.full((*is_token.shape, 2), -np.inf, rows.dtype)
    logits[is_token] = rows
    logits[~allowed] = -np.inf
    return np.ascontiguousarray(logits.swapaxes(-1, -2))


def _spans(
    tokens: _Packed,
    candidates: npt.ArrayLike | None,
    start_positions: npt.ArrayLike,
    end_positions: npt.ArrayLike,
    ignore_index: int,
) -> tuple[Array, list[int], Array]:
    """The candidates among the tokens of all sequences, where those of each sequence begin, and which of them
    are wanted."""
    ignore_index = checked_integer("ignore_index", ignore_index)
    allowed = np.atleast_2d(_allowed(tokens, candidates))
    batch, length = allowed.shape
    numbers = np.cumsum(allowed, axis=-1) - 1
    targets = np.full((batch, 2), ignore_index, np.int64)
    for column, (name, given) in enumerate(
        (("start_positions", start_positions), ("end_positions", end_positions))
    ):
        positions = np.atleast_1d(_integers(name, given))
        if positions.shape != (batch,):
            raise ValueError(f"{name} must have the shape ({batch},) of the sequences, got {positions.shape}")
        for row in np.flatnonzero(positions != ignore_index):
            position = int(positions[row])
            if not 0 <= position < length:
                raise IndexError(f"{name} must lie in [0, {length}), or be {ignore_index}, got {position}")
            if not allowed[row, position]:
                raise ValueError(
                    f"{name} must be candidates, got {position}, which is none in sequence {row}"
                )
            targets[row, column] = numbers[row, position]
    packed = np.flatnonzero(allowed[np.atleast_2d(tokens.is_token)])
    return packed, starts_of(allowed.sum(-1)), targets.ravel()


def _best_pair(logits: Array, impossible: Array) -> tuple[tuple[int, int], float]:
    """The best beginning and end, and their probability: of (2, length)."""
    if not np.any(logits > -np.inf):
        return (-1, -1), 0.0
    start, end = log_softmax(logits)
    both = start[:, None] + end
    both[impossible] = -np.inf
    i, j = divmod(int(both.argmax()), len(end))
    return (i, j), float(np.exp(both[i, j]))
