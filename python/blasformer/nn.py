"""Layers: parameters and the formulas they serve, with the names, shapes and initial values of torch.nn.

Arrays are (batch, length, features) or (length, features), always batch first. Masks: True = may attend.

`layer(x)` is inference: nothing is dropped out, nothing is kept. `layer(x, out=array)` writes the result into
an array of its shape and of the layer's dtype, with any strides, and returns that array; it may be an input,
or share memory with one. `y, saved = layer.forward(x, rng=rng)` is training: dropout acts if there is an rng,
and `saved` is a value that holds what the gradient needs; the layer stays as it was. `d_x, grads =
layer.backward(saved, d_y)` are the gradients of a scalar with respect to x and to every parameter, where d_y
is that with respect to y. A layer computes in its own dtype, float32 or float64, and refuses arrays of
another. Weights change only through `edit`, `load_state_dict` and optimisers; calls that are running in other
threads then finish with the weights they began with, so one layer may be used from many threads at once.

Layers that you write yourself need three methods, which `Module` describes; `Sequential` composes them with
these, `blasformer.optim` and `blasformer.train` train them, `blasformer.testing` checks their gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from . import _core
from ._arguments import (
    checked_epsilon,
    checked_flag,
    checked_integer,
    checked_integer_or_none,
    checked_integers,
    checked_layers,
    checked_name,
    checked_number,
)
from ._attention import Array, Causal, LayerWeights, WeightSelection, choose_layers, choose_weights
from ._composite import Composite, require_module
from ._dtypes import bfloat16, dtype_name, float_dtype
from ._module import SETTING, Module, add_gradients, infer, matching, refuse_stray_weight
from ._random import Rng, draw_seed, initial_seed, seed_or_none
from ._sequential import Sequential
from ._state_dicts import (
    IncompatibleKeys,
    Wanted,
    array_kind,
    is_array_of,
    require_mapping,
    select_fitting,
)

__all__ = [
    "DecoderCache",
    "DecoderWeights",
    "Dropout",
    "Embedding",
    "FeedForward",
    "GatedFeedForward",
    "IncompatibleKeys",
    "LayerNorm",
    "Linear",
    "Module",
    "MultiheadAttention",
    "PositionalEncoding",
    "RMSNorm",
    "RotaryPositions",
    "Sequential",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "TransformerWeights",
]


class Layer:
    """What all layers have in common: their parameters."""

    _held: _core.Layer  # the layer in C++
    _arguments: dict[str, Any]  # of the constructor, but for rng
    _lora: dict[str, Any] | None = None  # what blasformer.lora has added

    if TYPE_CHECKING:  # every layer has these, with arguments of its own

        def __call__(self, *inputs: Any, **arguments: Any) -> Any: ...
        def forward(self, *inputs: Any, **arguments: Any) -> tuple[Any, Any]: ...

    def __setattr__(self, name: str, value: Any) -> None:
        if "_held" in vars(self) and not hasattr(type(self), name):
            for parameter in self._held.parameters():
                if f"{parameter}.".startswith(f"{name}."):
                    raise AttributeError(f"{parameter} must be set by {SETTING}, got an attribute {name}")
            if name in self._arguments:
                raise AttributeError(
                    f"{name} must be given to {type(self).__name__}(), got an attribute, which is never read"
                )
            refuse_stray_weight(self, name, value)
        super().__setattr__(name, value)

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: what the layer computes in, and what it takes."""
        dtype: str = self._arguments["dtype"]
        return np.dtype(dtype)

    def parameters(self) -> dict[str, Array]:
        """The live weights by name: read-only views, no copies, that show every change of the weights.

        (Only a change made while other threads compute with the layer goes to new memory: views taken before
        it keep the values from before.)
        """
        return self._held.parameters()

    @property
    def packed_nbytes(self) -> int:
        """Bytes of the copies of weights that inference keeps, in the order in which the kernels read them.

        The first inference pass after weights change makes them, as large as the weights it multiplies by;
        training does without.

        >>> layer = Linear(256, 64, rng=0)
        >>> layer.packed_nbytes
        0
        >>> y = layer(np.ones((100, 256), np.float32))
        >>> layer.packed_nbytes in (0, 256 * 64 * 4)  # 0 where OpenBLAS multiplies: on CPUs without AVX2
        True
        >>> layer.release_packed()
        >>> layer.packed_nbytes
        0
        """
        return self._held.packed_nbytes()

    def release_packed(self) -> None:
        """Gives the memory of packed copies of weights back, until the next inference pass."""
        self._held.release_packed()

    @property
    def weights_dtype(self) -> np.dtype[Any]:
        """What linear layers hold their weights in: the layer's dtype, or bfloat16 after hold_weights."""
        if not self._held.holds_bfloat16():
            return self.dtype
        return bfloat16("holding weights in bfloat16")

    def hold_weights(self, dtype: DTypeLike) -> None:
        """Hold the weights of linear layers in bfloat16, for inference with half the memory, or as before.

        dtype: "bfloat16" rounds each weight to the nearest bfloat16 number; "float32" widens them again,
            which is exact but does not bring back what rounding took

        Concerned are the matrices that linear layers, attention and feed-forward multiply by, in all parts of
        a layer or model. Biases, norms, embeddings (with an output that shares theirs) and low-rank adapters
        stay as they are, as do activations: y = x bfloat16(weight)^T + bias, added up in float32, is what
        the layer gives for rounded weights in float32, bit for bit. Products are as fast, and those of
        one row or two, as when a model writes text, up to twice as fast: they read half the memory. Packed
        copies (packed_nbytes) take half the memory too, or less; products of 512 rows and more make none, but
        on bfloat16 tiles.

        parameters() and state_dict() have such weights as arrays of ml_dtypes.bfloat16, load_state_dict and
        edit want them so, and files are written with them. Training raises RuntimeError, as does merging
        adapters: weights in float32 come before.

        Raises TypeError for another dtype, and for layers of float64; ImportError without ml_dtypes.

        >>> layer = Linear(256, 64, rng=0)
        >>> layer.hold_weights("bfloat16")
        >>> layer(np.ones((2, 256), np.float32)).dtype, layer.parameters()["weight"].dtype
        (dtype('float32'), dtype(bfloat16))
        """
        name = dtype_name(dtype)
        if name not in ("bfloat16", self.dtype.name):
            raise TypeError(
                f"dtype must be bfloat16 or {self.dtype}, in which the layer computes, got {name}"
            )
        if name == "bfloat16":
            bfloat16("holding weights in bfloat16")
        self._held.hold_bfloat16(name == "bfloat16")

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter, by name."""
        return {name: array.copy() for name, array in self._held.parameters().items()}

    def load_state_dict(self, arrays: Mapping[str, Array], strict: bool = True) -> IncompatibleKeys:
        """Replace the parameters by copies of `arrays`, named as in parameters(): all of them, or on an error
        none.

        arrays: of the parameters' dtypes and shapes, in NumPy, or as tensors that NumPy can read: the state
            dict of a PyTorch layer on the CPU
        strict: False passes over names that are missing or unexpected; they are returned.

        Raises ValueError that lists everything that does not fit: missing, unexpected, wrong shape, wrong
        type; TypeError if only types are wrong.
        """
        return self._load(arrays, strict, None)

    def _load(
        self, arrays: Mapping[str, Array], strict: bool, expected_version: int | None
    ) -> IncompatibleKeys:
        wanted = {name: Wanted(array.shape, array.dtype) for name, array in self.parameters().items()}
        subject = f"arrays must be a state dict of {type(self).__name__}"
        given, incompatible = select_fitting(subject, arrays, wanted, strict)
        self._held.load(given, expected_version)
        return incompatible

    @contextmanager
    def edit(self) -> Iterator[dict[str, Array]]:
        """Change weights: `with layer.edit() as p: p["weight"] *= 0.5`.

        Yields copies of the parameters, to be written into or replaced. At the end of the block they become
        the weights, all at once, and writing to them afterwards is an error. A block that raises changes
        nothing. Raises RuntimeError if the weights were changed elsewhere meanwhile, and what load_state_dict
        raises if an array no longer fits.

        >>> layer = LayerNorm(3)
        >>> with layer.edit() as p:
        ...     p["weight"] *= 0.5
        >>> layer.parameters()["weight"]
        array([0.5, 0.5, 0.5], dtype=float32)
        """
        version = self._held.version()
        arrays = self.state_dict()
        copies = list(arrays.values())
        try:
            yield arrays
        finally:
            for array in copies:
                array.flags.writeable = False
        self._load(arrays, True, version)

    def backward(
        self, saved: _core.Saved, d_output: Array, *, accumulate: Mapping[str, Array] | None = None
    ) -> tuple[Any, dict[str, Array]]:
        """The gradients of a scalar with respect to the inputs and the parameters, given that with respect to
        the output.

        saved: what `forward` of this layer returned; it is used up, and must be of the present weights
        d_output: of the output's shape and the layer's dtype
        accumulate: gradients of an earlier pass, which those of this one are added to, in place

        Returns (d_input, grads): an array like the input (a tuple of arrays for several inputs, None for ids
        and for inputs that were not given), and the gradient of each parameter that is not frozen, by name.
        Raises RuntimeError if saved was used already or the weights have changed, ValueError or TypeError for
        what does not fit; nothing is changed then.

        >>> layer = Linear(3, 2, rng=0)
        >>> y, saved = layer.forward(np.ones((5, 3), np.float32))
        >>> d_x, grads = layer.backward(saved, np.ones_like(y))
        >>> d_x.shape, grads["bias"]
        ((5, 3), array([5., 5.], dtype=float32))
        """
        if not isinstance(saved, _core.Saved):
            raise TypeError(f"saved must be what forward returned, got {type(saved).__name__}")
        if accumulate is not None:
            self._check_gradients(accumulate)
        d_input, grads = self._held.backward(saved, d_output)
        return d_input, grads if accumulate is None else add_gradients(accumulate, grads)

    def _check_gradients(self, gradients: Mapping[str, Array]) -> None:
        require_mapping("accumulate", gradients)
        frozen = self.frozen
        wanted = {name: array for name, array in self.parameters().items() if name not in frozen}
        if set(gradients) != set(wanted):
            different = ", ".join(sorted(map(str, set(gradients) ^ set(wanted))))
            raise ValueError(
                f"accumulate must have the names of the trainable parameters; differing: {different}"
            )
        for name, array in gradients.items():
            dtype = wanted[name].dtype
            if not is_array_of(dtype, array):
                raise TypeError(
                    f"accumulate[{name!r}] must be a NumPy array of {dtype}, got {array_kind(array)}"
                )
            if array.shape != wanted[name].shape or not array.flags.writeable:
                raise ValueError(
                    f"accumulate[{name!r}] must be writeable and have the shape {wanted[name].shape}, "
                    f"got {'a read-only array of ' if not array.flags.writeable else ''}{array.shape}"
                )

    def freeze(self, *patterns: str) -> None:
        """Exclude parameters from training: backward computes no gradients for them, and keeps no memory.

        patterns: names, or shell-style patterns of names such as "self_attn.*"; without any, all parameters.
        Raises ValueError for a pattern that matches nothing.
        """
        self._held.set_frozen(self._held.frozen() | self._matching(patterns))

    def unfreeze(self, *patterns: str) -> None:
        """Include parameters in training again: the opposite of `freeze`."""
        self._held.set_frozen(self._held.frozen() - self._matching(patterns))

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the parameters that are not trained."""
        return frozenset(self._held.frozen())

    def _matching(self, patterns: tuple[str, ...]) -> set[str]:
        return matching(self._held.parameters(), patterns)

    def __reduce__(self) -> tuple[Any, ...]:
        held = self._held.holds_bfloat16()
        added = {name: x for name, x in vars(self).items() if name not in ("_held", "_arguments", "_lora")}
        made = (type(self), self._arguments, self.state_dict(), self.frozen, self._lora, held)
        return _restore, made, added

    def _stored_name(self, name: str) -> str:
        """What a parameter is called in files."""
        return name

    def _is_stored_transposed(self, name: str) -> bool:
        """Whether files hold that parameter as (in_features, out_features)."""
        return False

    def _described(self) -> str:
        shown = {name: value for name, value in self._arguments.items() if value is not None}
        described = (
            f"{name}={value._described() if isinstance(value, Layer) else repr(value)}"
            for name, value in shown.items()
        )
        return f"{type(self).__name__}({', '.join(described)})"

    def __repr__(self) -> str:
        count = sum(array.size for array in self._held.parameters().values())
        return f"{self._described()}  # {count:,} parameters"


def _restore(
    cls: type[Layer],
    arguments: dict[str, Any],
    arrays: dict[str, Array],
    frozen: frozenset[str],
    adapters: dict[str, Any] | None,
    in_bfloat16: bool = False,
) -> Layer:
    layer = cls(**arguments)
    if adapters is not None:
        scale = adapters["alpha"] / adapters["rank"]
        layer._held.adapt(set(adapters["names"]), adapters["rank"], scale, adapters["dropout"], 0)
        if adapters["merged"]:  # what is new adds nothing, and what is loaded has it in it
            layer._held.merge_adapters(True)
        layer._lora = dict(adapters)
    if in_bfloat16:
        layer.hold_weights("bfloat16")
    layer.load_state_dict(arrays)
    layer._held.set_frozen(set(frozen))
    return layer


def _require_float_weights(name: str, layer: Layer) -> None:
    if layer._held.holds_bfloat16():
        raise ValueError(f"{name} must hold its weights in {layer.dtype} to be stacked, got bfloat16")


def _axes(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    is_one = isinstance(normalized_shape, bytes) or not isinstance(normalized_shape, Sequence)
    extents: Any = (normalized_shape,) if is_one else normalized_shape
    return tuple(checked_integer("normalized_shape", extent) for extent in extents)


class _PlainLayer(Layer):
    """One array in, one array out."""

    _held: _core.PlainLayer

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        return self._held.call(x, out)

    def forward(self, x: Array, *, rng: Rng | None = None) -> tuple[Array, _core.Saved]:
        """The output and what its gradient needs, as a value of its own. Dropout acts if there is an rng."""
        return self._held.forward(x, seed_or_none(rng))


class Linear(_PlainLayer):
    """y = x @ weight.T + bias.

    Parameters
    ----------
    in_features, out_features : positive ints
    bias : whether a bias is added
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from, uniformly in +-1 /
        sqrt(in_features); a fresh one by default

    Takes x (..., in_features) and returns (..., out_features). State: weight (out_features, in_features),
    bias (out_features,).

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    Examples
    --------
    >>> layer = Linear(3, 4, rng=0)
    >>> y = layer(np.ones((2, 3), np.float32))
    >>> y.shape
    (2, 4)
    >>> layer(np.zeros((2, 3), np.float32), out=y) is y
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        self._arguments = {
            "in_features": checked_integer("in_features", in_features),
            "out_features": checked_integer("out_features", out_features),
            "bias": checked_flag("bias", bias),
            "dtype": float_dtype(dtype).name,
        }
        self._held = _core.linear_layer(**self._arguments, seed=initial_seed(rng))


class Embedding(_PlainLayer):
    """y = weight[ids].

    Parameters
    ----------
    num_embeddings, embedding_dim : positive ints
    padding_idx : the id whose vector starts as zero and has no gradient; a negative one counts from the end
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from, normal with variance 1; a
        fresh one by default

    Takes ids (...), of any integer type, and returns (..., embedding_dim). State: weight (num_embeddings,
    embedding_dim).

    Raises
    ------
    TypeError for ids that are no integers, IndexError for ids outside [0, num_embeddings).

    Examples
    --------
    >>> Embedding(10, 4, rng=0)(np.array([[1, 2, 9]])).shape
    (1, 3, 4)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        count = checked_integer("num_embeddings", num_embeddings)
        padding = checked_integer_or_none("padding_idx", padding_idx)
        self._arguments = {
            "num_embeddings": count,
            "embedding_dim": checked_integer("embedding_dim", embedding_dim),
            "padding_idx": padding + count if padding is not None and -count <= padding < 0 else padding,
            "dtype": float_dtype(dtype).name,
        }
        self._held = _core.embedding_layer(**self._arguments, seed=initial_seed(rng))

    def __call__(self, ids: Array | Sequence[Any], *, out: Array | None = None) -> Array:
        return self._held.call(ids, out)

    def forward(self, ids: Array | Sequence[Any], *, rng: Rng | None = None) -> tuple[Array, _core.Saved]:
        """The output and what its gradient needs, as a value of its own. Nothing is ever dropped here."""
        return self._held.forward(ids, seed_or_none(rng))


class LayerNorm(_PlainLayer):
    """y = (x - mean) / sqrt(variance + eps) * weight + bias, over the last axes of x; the variance divides by
    n.

    Parameters
    ----------
    normalized_shape : int or tuple, the extents of the last axes
    eps : added to the variance
    elementwise_affine : whether there is a weight, and with `bias` a bias
    bias : whether a bias is added
    dtype : float32 or float64

    Takes x (..., *normalized_shape) and returns the same shape. State: weight and bias, of normalized_shape,
    at first ones and zeros.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    References
    ----------
    Ba, Kiros and Hinton 2016, "Layer Normalization".

    Examples
    --------
    >>> LayerNorm(2)(np.array([[1, 3]], np.float32)).round(3)
    array([[-1.,  1.]], dtype=float32)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._arguments = {
            "normalized_shape": _axes(normalized_shape),
            "eps": checked_epsilon("eps", eps),
            "elementwise_affine": checked_flag("elementwise_affine", elementwise_affine),
            "bias": checked_flag("bias", bias),
            "dtype": float_dtype(dtype).name,
        }
        self._held = _core.layer_norm_layer(**self._arguments)


class RMSNorm(_PlainLayer):
    """y = x / sqrt(mean(x**2) + eps) * weight, over the last axes of x.

    Parameters
    ----------
    normalized_shape : int or tuple, the extents of the last axes
    eps : added to the mean square; by default the distance from 1 to the next number of dtype, as in PyTorch
    elementwise_affine : whether there is a weight
    dtype : float32 or float64

    Takes x (..., *normalized_shape) and returns the same shape. State: weight, of normalized_shape, at first
    ones.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    References
    ----------
    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".

    Examples
    --------
    >>> RMSNorm(2)(np.array([[1, 7]], np.float32))
    array([[0.2, 1.4]], dtype=float32)
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._arguments = {
            "normalized_shape": _axes(normalized_shape),
            "eps": None if eps is None else checked_epsilon("eps", eps),
            "elementwise_affine": checked_flag("elementwise_affine", elementwise_affine),
            "dtype": float_dtype(dtype).name,
        }
        default = {"eps": float(np.finfo(self.dtype).eps)} if eps is None else {}
        self._held = _core.rms_norm_layer(**self._arguments | default)


class FeedForward(_PlainLayer):
    """y = linear2(dropout(activation(linear1(x)))), for each position by itself.

    Parameters
    ----------
    d_model, dim_feedforward : positive ints
    dropout : probability with which an element of the hidden layer is dropped in `forward` with an rng
    activation : "relu", "gelu", "gelu_tanh", "gelu_sigmoid" or "silu"
    bias : whether the linear layers have one
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from; a fresh one by default

    Takes x (..., d_model) and returns the same shape. State: linear1.weight (dim_feedforward, d_model),
    linear1.bias, linear2.weight (d_model, dim_feedforward), linear2.bias.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", section 3.3.

    Examples
    --------
    >>> FeedForward(8, 32, activation="gelu", rng=0)(np.ones((2, 3, 8), np.float32)).shape
    (2, 3, 8)
    """

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        self._arguments = {
            "d_model": checked_integer("d_model", d_model),
            "dim_feedforward": checked_integer("dim_feedforward", dim_feedforward),
            "dropout": checked_number("dropout", dropout),
            "activation": checked_name("activation", activation),
            "bias": checked_flag("bias", bias),
            "dtype": float_dtype(dtype).name,
        }
        self._held = _core.feed_forward_layer(**self._arguments, seed=initial_seed(rng))


class GatedFeedForward(_PlainLayer):
    """y = down_proj(dropout(activation(gate_proj(x)) * up_proj(x))), for each position by itself.

    SwiGLU with activation="silu", GEGLU with "gelu", ReGLU with "relu".

    Parameters
    ----------
    d_model, dim_feedforward : positive ints; with 2/3 of the width of a FeedForward it has as many weights
    dropout : probability with which an element of the hidden layer is dropped in `forward` with an rng
    activation : "relu", "gelu", "gelu_tanh", "gelu_sigmoid" or "silu"
    bias : whether the linear layers have one
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from; a fresh one by default

    Takes x (..., d_model) and returns the same shape. State, named as in Llama: gate_proj.weight and
    up_proj.weight (dim_feedforward, d_model), down_proj.weight (d_model, dim_feedforward), and their biases.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    References
    ----------
    Shazeer 2020, "GLU Variants Improve Transformer".

    Examples
    --------
    >>> GatedFeedForward(8, 21, bias=False, rng=0)(np.ones((2, 3, 8), np.float32)).shape
    (2, 3, 8)
    """

    def __init__(
        self,
        d_model: int,
        dim_feedforward: int,
        dropout: float = 0.0,
        activation: str = "silu",
        bias: bool = True,
        *,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        self._arguments = {
            "d_model": checked_integer("d_model", d_model),
            "dim_feedforward": checked_integer("dim_feedforward", dim_feedforward),
            "dropout": checked_number("dropout", dropout),
            "activation": checked_name("activation", activation),
            "bias": checked_flag("bias", bias),
            "dtype": float_dtype(dtype).name,
        }
        self._held = _core.gated_feed_forward_layer(**self._arguments, seed=initial_seed(rng))


class Dropout(_PlainLayer):
    """Each element of x times 1 / (1 - p), or 0 with probability p; x itself where there is no rng.

    Parameters
    ----------
    p : probability with which an element is dropped
    dtype : float32 or float64

    Takes x of any shape and returns the same shape: `forward` with an rng drops elements, `forward` without
    one and the call `layer(x)` return a copy of x. There are no parameters.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for a p outside [0, 1].

    References
    ----------
    Srivastava et al. 2014, "Dropout: A Simple Way to Prevent Neural Networks from Overfitting".

    Examples
    --------
    >>> y, saved = Dropout(0.5).forward(np.ones(6, np.float32), rng=1)
    >>> y
    array([2., 0., 2., 2., 2., 2.], dtype=float32)
    """

    def __init__(self, p: float = 0.5, *, dtype: DTypeLike = np.float32) -> None:
        self._arguments = {"p": checked_number("p", p), "dtype": float_dtype(dtype).name}
        self._held = _core.dropout_layer(**self._arguments)


@dataclass(frozen=True, kw_only=True)
class RotaryPositions:
    """Rotary positions inside attention: queries and keys turn by angles that grow with their positions.

    The product of a query and a key, their score, then depends on their distance alone.
    Pair i of the first `dims` features of each head turns by position * base**(-2 i / dims), as in
    rotary_embedding. A query's position is that among the keys, as masks count it: query_offset + i, or what
    causal="lower_right" says, or i.

    interleaved: which features are a pair: True for (2 i, 2 i + 1), as in GPT-J and the first Llama; False
        for (i, i + dims / 2), as in GPT-NeoX and the Llama of transformers
    base: of the frequencies
    dims: how many features turn, an even number; by default all of a head

    The layer it is given to raises TypeError or ValueError for what these cannot be.

    Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding".

    >>> RotaryPositions(interleaved=False)
    RotaryPositions(interleaved=False, base=10000.0, dims=None)
    """

    interleaved: bool
    base: float = 10000.0
    dims: int | None = None


def _rotary(rotary: RotaryPositions | None) -> tuple[bool, float, int | None] | None:
    if rotary is None:
        return None
    if not isinstance(rotary, RotaryPositions):
        raise TypeError(f"rotary must be a RotaryPositions or None, got {type(rotary).__name__}")
    dims = None if rotary.dims is None else checked_integer("dims of rotary", rotary.dims)
    return (
        checked_flag("interleaved of rotary", rotary.interleaved),
        checked_number("base of rotary", rotary.base),
        dims,
    )


class MultiheadAttention(Layer):
    """concat over heads of softmax(q @ k.T / sqrt(head_dim)) @ v, times the output projection.

    q, k and v are linear in query, key and value; head h has features h * head_dim to (h + 1) * head_dim of
    them.

    Parameters
    ----------
    embed_dim : features of the query and of the output, a multiple of num_heads
    num_heads : positive int
    dropout : probability with which an attention weight is dropped in `forward` with an rng
    bias : whether the projections have one
    kdim, vdim : features of key and of value; embed_dim by default
    num_kv_heads : heads of k and v, a divisor of num_heads that each serve num_heads / num_kv_heads heads of
        q (Ainslie et al. 2023); num_heads by default
    rotary : RotaryPositions of projected queries and keys; none by default
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from, as in PyTorch; a fresh one by
        default

    State, with kv_dim = num_kv_heads * head_dim: in_proj_weight (embed_dim + 2 * kv_dim, embed_dim), the rows
    of q, k and v one below the other; if kdim or vdim is not embed_dim instead q_proj_weight (embed_dim,
    embed_dim), k_proj_weight (kv_dim, kdim) and v_proj_weight (kv_dim, vdim); in_proj_bias (embed_dim + 2 *
    kv_dim,); out_proj.weight (embed_dim, embed_dim); out_proj.bias.

    Calling it
    ----------
    query : (batch, length, embed_dim) or (length, embed_dim)
    key : (batch, key_length, kdim); by default the query
    value : (batch, key_length, vdim); by default the key
    mask, bias, causal, query_offset, window, query_lengths, key_lengths, query_segments, key_segments,
        alibi_slopes : as in scaled_dot_product_attention; mask: True = may attend
    return_weights : True, or a WeightSelection: also return the weights of each head, before dropout
    out : array of the layer's dtype to write the output into, as the module says; a new one by default

    Returns an array of query's shape, or (output, weights) with weights (batch, num_heads, length,
    key_length).

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", section 3.2.2.

    Examples
    --------
    >>> attention = MultiheadAttention(8, 2, rng=0)
    >>> y, weights = attention(np.ones((1, 3, 8), np.float32), causal=True, return_weights=True)
    >>> y.shape, weights[0, 1, 1]
    ((1, 3, 8), array([0.5, 0.5, 0. ], dtype=float32))
    """

    _held: _core.MultiheadAttentionLayer

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        num_kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        arguments = self._arguments = {
            "embed_dim": checked_integer("embed_dim", embed_dim, least=1),
            "num_heads": checked_integer("num_heads", num_heads),
            "dropout": checked_number("dropout", dropout),
            "bias": checked_flag("bias", bias),
            "kdim": None if kdim is None else checked_integer("kdim", kdim),
            "vdim": None if vdim is None else checked_integer("vdim", vdim),
            "num_kv_heads": None if num_kv_heads is None else checked_integer("num_kv_heads", num_kv_heads),
            "rotary": rotary,
            "dtype": float_dtype(dtype).name,
        }
        defaults = {
            "kdim": arguments["embed_dim"],
            "vdim": arguments["embed_dim"],
            "num_kv_heads": arguments["num_heads"],
        }
        given = {name: value for name, value in arguments.items() if value is not None}
        given["rotary"] = _rotary(rotary)
        self._held = _core.multihead_attention_layer(**defaults | given, seed=initial_seed(rng))

    def __call__(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        query_offset: int | Array | None = None,
        window: tuple[int | None, int | None] | None = None,
        query_lengths: Array | Sequence[int] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        key_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        return_weights: bool | WeightSelection = False,
        out: Array | None = None,
    ) -> Any:
        chosen = None
        if return_weights is not False:
            chosen = choose_weights(return_weights, self._arguments["num_heads"], _length(query))
        output, weights = self._held.call(
            query,
            key,
            value,
            (
                mask,
                bias,
                causal,
                query_offset,
                window,
                query_lengths,
                key_lengths,
                query_segments,
                key_segments,
                alibi_slopes,
            ),
            chosen,
            out,
        )
        return output if chosen is None else (output, weights)

    def forward(
        self,
        query: Array,
        key: Array | None = None,
        value: Array | None = None,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        query_offset: int | Array | None = None,
        window: tuple[int | None, int | None] | None = None,
        query_lengths: Array | Sequence[int] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        key_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The output and what its gradient needs. Dropout acts if there is an rng.

        The saved value holds copies of query, key and value, and refers to masks and bias, which must not
        change before its use.
        """
        masks = (
            mask,
            bias,
            causal,
            query_offset,
            window,
            query_lengths,
            key_lengths,
            query_segments,
            key_segments,
            alibi_slopes,
        )
        return self._held.forward(query, key, value, masks, seed_or_none(rng))


def _length(x: Array) -> int:
    return int(x.shape[-2]) if isinstance(x, np.ndarray) and x.ndim >= 2 else 0


class PositionalEncoding(Layer):
    """y = dropout(scale * x + encoding[positions]): tells the elements of a sequence where they stand.

    Parameters
    ----------
    d_model : features, an even number unless the encoding is learned
    dropout : probability with which an element of the sum is dropped in `forward` with an rng
    max_len : number of positions, which a learned encoding needs; the others have no end
    kind : "interleaved": features 2 i and 2 i + 1 are sin and cos of position * 10000**(-2 i / d_model), as
        in 2017; "concatenated": first all sines, then all cosines, as in Whisper; "learned": rows of a
        matrix, as in BERT, GPT-2 and ViT. See also sinusoidal_positions.
    scale : factor of x; sqrt(d_model) for embeddings in 2017, section 3.4
    dtype : float32 or float64
    rng : numpy.random.Generator or int that learned rows are drawn from, normal with standard deviation 0.02;
        a fresh one by default

    State of a learned encoding: weight (max_len, d_model). The others have none.

    Calling it
    ----------
    x : (batch, length, d_model) or (length, d_model)
    first : position of x[..., 0, :], for sequences that continue
    positions : ints (length,) or (batch, length) in place of first, first + 1, ..., for sequences that are
        packed into one row or padded in front
    out : array of the layer's dtype to write the output into, as the module says; a new one by default

    Returns an array of x's shape.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit, IndexError for positions
    outside [0, max_len) of a learned encoding.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", section 3.5; Gehring et al. 2017, "Convolutional
    Sequence to Sequence Learning".

    Examples
    --------
    >>> PositionalEncoding(4)(np.zeros((2, 4), np.float32)).round(2)
    array([[0.  , 1.  , 0.  , 1.  ],
           [0.84, 0.54, 0.01, 1.  ]], dtype=float32)
    """

    _held: _core.PositionalLayer

    def __init__(
        self,
        d_model: int,
        dropout: float = 0.0,
        max_len: int | None = None,
        *,
        kind: str = "interleaved",
        scale: float = 1.0,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        self._arguments = {
            "d_model": checked_integer("d_model", d_model),
            "dropout": checked_number("dropout", dropout),
            "max_len": None if max_len is None else checked_integer("max_len", max_len, least=1),
            "kind": checked_name("kind", kind),
            "scale": checked_number("scale", scale),
            "dtype": float_dtype(dtype).name,
        }
        self._held = _core.positional_encoding_layer(**self._arguments, seed=initial_seed(rng))

    def __call__(
        self,
        x: Array,
        *,
        first: int = 0,
        positions: Array | Sequence[Any] | None = None,
        out: Array | None = None,
    ) -> Array:
        return self._held.call(x, _positions(x, first, positions), out)

    def forward(
        self,
        x: Array,
        *,
        first: int = 0,
        positions: Array | Sequence[Any] | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The output and what its gradient needs. Dropout acts if there is an rng."""
        return self._held.forward(x, _positions(x, first, positions), seed_or_none(rng))


def _positions(x: Array, first: int, positions: Array | Sequence[Any] | None) -> Array | Sequence[Any]:
    start = checked_integer("first", first)
    if positions is None:
        length = _length(x)
        if start + length > 2**63:
            raise ValueError(f"first must be at most {2**63 - length}, got {start}")
        return np.arange(length) + start
    if start != 0:
        raise ValueError(f"first must not be given together with positions, got {start}")
    return positions


class _SelfAttendingLayer(Layer):
    """Attends to its own input."""

    _held: _core.SelfAttendingLayer

    def forward(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        window: tuple[int | None, int | None] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The output and what its gradient needs. Dropout acts if there is an rng.

        The saved value holds a copy of x, and refers to masks and bias, which must not change before its use.
        """
        masks = (mask, bias, causal, None, window, None, key_lengths, query_segments, None, alibi_slopes)
        return self._held.forward(x, masks, seed_or_none(rng))


def _layer_arguments(
    *,
    d_model: int,
    nhead: int,
    dim_feedforward: int,
    dropout: float,
    activation: str,
    layer_norm_eps: float,
    norm_first: bool,
    bias: bool,
    num_kv_heads: int | None,
    rotary: RotaryPositions | None,
    norm: str,
    gated: bool,
    recompute: bool,
    dtype: DTypeLike,
) -> dict[str, Any]:
    """What encoder and decoder layers are made from, checked."""
    return {
        "d_model": checked_integer("d_model", d_model),
        "nhead": checked_integer("nhead", nhead),
        "dim_feedforward": checked_integer("dim_feedforward", dim_feedforward),
        "dropout": checked_number("dropout", dropout),
        "activation": checked_name("activation", activation),
        "layer_norm_eps": checked_epsilon("layer_norm_eps", layer_norm_eps),
        "norm_first": checked_flag("norm_first", norm_first),
        "bias": checked_flag("bias", bias),
        "num_kv_heads": None if num_kv_heads is None else checked_integer("num_kv_heads", num_kv_heads),
        "rotary": rotary,
        "norm": checked_name("norm", norm),
        "gated": checked_flag("gated", gated),
        "recompute": checked_flag("recompute", recompute),
        "dtype": float_dtype(dtype).name,
    }


def _layer_sizes(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same for the core: with what None stands for."""
    given = {name: value for name, value in arguments.items() if value is not None}
    return {"num_kv_heads": arguments["nhead"]} | given | {"rotary": _rotary(arguments["rotary"])}


def _last_norm(layer: Layer, norm: LayerNorm | RMSNorm | None, name: str) -> _core.PlainLayer | None:
    """The norm at the end of a stack of layers, which is of their kind and dtype."""
    if norm is None:
        return None
    kind = {"layer": LayerNorm, "rms": RMSNorm}[layer._arguments["norm"]]
    if not isinstance(norm, kind):
        raise TypeError(f"norm must be a {kind.__name__} or None, got {type(norm).__name__}")
    if norm.dtype != layer.dtype:
        raise TypeError(f"norm must have the dtype of {name}, {layer.dtype}, got {norm.dtype}")
    return norm._held


class TransformerEncoderLayer(_SelfAttendingLayer):
    """Self-attention, then a feed-forward network, each with a residual connection and a norm.

    x = norm1(x + self_attn(x)); x = norm2(x + feed_forward(x)), or with norm_first
    x = x + self_attn(norm1(x)); x = x + feed_forward(norm2(x)).

    Parameters
    ----------
    d_model : features, a multiple of nhead
    nhead : number of heads
    dim_feedforward : width of the hidden layer
    dropout : probability with which attention weights, hidden elements and what joins the residual stream are
        dropped in `forward` with an rng
    activation : "relu", "gelu", "gelu_tanh", "gelu_sigmoid" or "silu"
    layer_norm_eps : added to the variance by the norms, or to the mean square
    norm_first : whether the norms come before the sublayers (pre-norm) or after the residual connections
        (post-norm)
    bias : whether linear layers and layer norms have one
    num_kv_heads : heads of keys and values, a divisor of nhead; nhead by default
    rotary : RotaryPositions of self-attention; none by default
    norm : "layer" for LayerNorm, or "rms" for RMSNorm, which has no bias
    gated : whether the feed-forward network is a GatedFeedForward, SwiGLU with activation="silu"
    recompute : whether `forward` keeps the input alone and `backward` computes the rest again: a fraction of
        the memory for about a third more time
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from, as in PyTorch; a fresh one by
        default

    State: self_attn.* as MultiheadAttention, linear1.*, linear2.* as FeedForward (or gate_proj.*, up_proj.*,
    down_proj.* as GatedFeedForward), norm1.*, norm2.* as LayerNorm or RMSNorm.

    Calling it
    ----------
    x : (batch, length, d_model) or (length, d_model)
    mask, bias, causal, window, key_lengths, query_segments, alibi_slopes : as in
        scaled_dot_product_attention, where keys are the positions of x themselves; mask: True = may attend
    return_weights : True, or a WeightSelection: also return the attention weights of each head
    out : array of the layer's dtype to write the output into, as the module says; a new one by default

    Returns an array of x's shape, or (output, weights) with weights (batch, nhead, length, length). With
    key_lengths, positions beyond the length influence no other, and hold no meaningful output themselves.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", section 3.1; Xiong et al. 2020, "On Layer Normalization
    in the Transformer Architecture".

    Examples
    --------
    >>> layer = TransformerEncoderLayer(8, 2, dim_feedforward=32, rng=0)
    >>> layer(np.ones((2, 5, 8), np.float32), key_lengths=[5, 3]).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        *,
        norm_first: bool = False,
        bias: bool = True,
        num_kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
        norm: str = "layer",
        gated: bool = False,
        recompute: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        self._arguments = _layer_arguments(
            d_model=d_model,
            nhead=nhead,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
            norm_first=norm_first,
            bias=bias,
            num_kv_heads=num_kv_heads,
            rotary=rotary,
            norm=norm,
            gated=gated,
            recompute=recompute,
            dtype=dtype,
        )
        self._held = _core.encoder_layer(**_layer_sizes(self._arguments), seed=initial_seed(rng))

    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        window: tuple[int | None, int | None] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        return_weights: bool | WeightSelection = False,
        out: Array | None = None,
    ) -> Any:
        chosen = None
        if return_weights is not False:
            chosen = choose_weights(return_weights, self._arguments["nhead"], _length(x))
        masks = (mask, bias, causal, None, window, None, key_lengths, query_segments, None, alibi_slopes)
        output, weights = self._held.call(x, masks, [] if chosen is None else [(0, chosen)], out)
        return output if chosen is None else (output, weights[0])


class TransformerEncoder(_SelfAttendingLayer):
    """num_layers encoder layers in turn, then a layer norm if one is given.

    Parameters
    ----------
    encoder_layer : the TransformerEncoderLayer that each layer is a copy of
    num_layers : positive int
    norm : the LayerNorm that the last one is a copy of, over d_model features (an RMSNorm if that is the norm
        of encoder_layer); pre-norm encoders need one
    rng : numpy.random.Generator or int that the initial weights of all layers are drawn from; without it
        every layer starts with the weights of encoder_layer, as in PyTorch

    State: layers.0.*, layers.1.*, ... as TransformerEncoderLayer, and norm.* as LayerNorm.

    Calling it
    ----------
    x : (batch, length, d_model) or (length, d_model)
    mask, bias, causal, window, key_lengths, query_segments, alibi_slopes : as for TransformerEncoderLayer,
        the same for every layer
    return_weights : which attention weights to return: True for those of all layers, the indices of layers,
        as (0, -1), or a WeightSelection for each, as {0: WeightSelection(heads=[3]), -1: True}
    out : array of the layer's dtype to write the output into, as the module says; a new one by default

    Returns an array of x's shape, or (output, weights) with weights a dict from the index of a layer, as it
    was given, to its (batch, nhead, length, length) array.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit, IndexError for layers that
    do not exist.

    Examples
    --------
    >>> layer = TransformerEncoderLayer(8, 2, dim_feedforward=32, norm_first=True)
    >>> encoder = TransformerEncoder(layer, num_layers=3, norm=LayerNorm(8), rng=0)
    >>> y, weights = encoder(np.ones((2, 5, 8), np.float32), causal=True, return_weights=(-1,))
    >>> y.shape, weights[-1].shape
    ((2, 5, 8), (2, 2, 5, 5))
    """

    def __init__(
        self,
        encoder_layer: TransformerEncoderLayer,
        num_layers: int,
        norm: LayerNorm | RMSNorm | None = None,
        *,
        rng: Rng | None = None,
    ) -> None:
        if not isinstance(encoder_layer, TransformerEncoderLayer):
            raise TypeError(
                f"encoder_layer must be a TransformerEncoderLayer, got {type(encoder_layer).__name__}"
            )
        self._arguments = {
            "encoder_layer": encoder_layer,
            "num_layers": checked_layers("num_layers", num_layers),
            "norm": norm,
        }
        _require_float_weights("encoder_layer", encoder_layer)
        self._held = encoder_layer._held.stack(
            self._arguments["num_layers"], _last_norm(encoder_layer, norm, "encoder_layer"), seed_or_none(rng)
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: what the layers compute in, and what they take."""
        layer: TransformerEncoderLayer = self._arguments["encoder_layer"]
        return layer.dtype

    def __call__(
        self,
        x: Array,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        window: tuple[int | None, int | None] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        return_weights: LayerWeights = False,
        out: Array | None = None,
    ) -> Any:
        masks = (mask, bias, causal, None, window, None, key_lengths, query_segments, None, alibi_slopes)
        if return_weights is False:
            return self._held.call(x, masks, [], out)[0]
        heads = self._arguments["encoder_layer"]._arguments["nhead"]
        asked = choose_layers(return_weights, self._arguments["num_layers"], heads, _length(x))
        output, weights = self._held.call(x, masks, list(asked.values()), out)
        return output, {name: weights[index] for name, (index, _) in asked.items()}


class DecoderWeights(NamedTuple):
    """The attention weights of a decoder layer: of the target to itself, and of the target to the memory."""

    self_attn: Array
    multihead_attn: Array


class DecoderCache:
    """Targets that grow position by position, and all that their next positions need: what `new_cache` of a
    decoder returns.

    The keys and values of the memory were computed when it was made, those of earlier positions are kept: a
    step computes the new positions alone. The weights are those of that time.

    >>> layer = TransformerDecoderLayer(8, 2, 32, rng=0)
    >>> target, memory = np.ones((2, 5, 8), np.float32), np.ones((2, 7, 8), np.float32)
    >>> cache = layer.new_cache(memory, capacity=5)
    >>> steps = [cache.add(target[:, i : i + 1]) for i in range(5)]
    >>> y = layer(target, memory, causal=True)
    >>> bool(np.allclose(np.concatenate(steps, axis=1), y, atol=1e-5))
    True
    """

    def __init__(self, held: _core.GrowingTargets) -> None:
        self._held = held

    def add(self, target: Array, *, lengths: Array | Sequence[int] | None = None) -> Array:
        """What the decoder makes of the next positions of each target, which attend to all before them.

        target: (batch, length, d_model)
        lengths: (batch,) ints: how many of these positions each target has, from the left; by default all.
            What is behind them is left out, and has no meaningful output.

        Returns (batch, length, d_model). Raises TypeError for arrays of another dtype, ValueError for shapes
        that do not fit and for more positions than there is room for; the cache stays as it is then.
        """
        return self._held.add(target, lengths)

    def choose(self, rows: Array | Sequence[int]) -> None:
        """Go on with these targets, each with its memory: row i of what follows continues row rows[i].

        A row may be named several times, as in beam search, or not at all. Raises IndexError for rows that
        there are not.

        >>> cache = TransformerDecoderLayer(8, 2, 32).new_cache(np.ones((2, 7, 8), np.float32), capacity=5)
        >>> cache.choose([0, 0, 0, 1])
        >>> cache.add(np.ones((4, 1, 8), np.float32)).shape
        (4, 1, 8)
        """
        chosen = checked_integers("rows", rows)
        if chosen.ndim != 1:
            raise ValueError(f"rows must have one dimension, got {chosen.ndim}")
        self._held.choose([checked_integer("rows", row) for row in chosen])

    @property
    def lengths(self) -> Array:
        """(batch,) int64: how many positions each target has so far."""
        return self._held.lengths()

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values, those of positions to come included."""
        return self._held.nbytes()

    def __reduce__(self) -> Any:
        raise TypeError("DecoderCache must stay one, got a copy: choose continues a target in several ways")

    def __repr__(self) -> str:
        lengths = np.array2string(self.lengths, separator=", ", threshold=20)
        return f"DecoderCache(lengths={lengths}, nbytes={self.nbytes})"


class _DecodingLayer(Layer):
    """Attends to its own input and to a memory."""

    _held: _core.DecodingLayer

    def new_cache(
        self, memory: Array, capacity: int, *, memory_key_lengths: Array | Sequence[int] | None = None
    ) -> DecoderCache:
        """Begin a target for each memory, which grows step by step: what causal=True makes of it as a whole.

        memory: (batch, memory_length, d_model)
        capacity: the most positions that a target will have
        memory_key_lengths: (batch,) ints, the valid prefix of each memory

        Raises TypeError for arrays of another dtype, ValueError for what does not fit.
        """
        return DecoderCache(
            self._held.new_cache(memory, memory_key_lengths, checked_integer("capacity", capacity))
        )

    def forward(
        self,
        target: Array,
        memory: Array,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        window: tuple[int | None, int | None] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        memory_mask: Array | None = None,
        memory_key_lengths: Array | Sequence[int] | None = None,
        memory_key_segments: Array | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The output and what its gradient needs. Dropout acts if there is an rng.

        The saved value holds copies of target and memory, and refers to masks and bias, which must not change
        before its use. `backward` returns ((d_target, d_memory), grads).
        """
        masks = (mask, bias, causal, None, window, None, key_lengths, query_segments, None, alibi_slopes)
        memory_masks = (memory_mask, memory_key_lengths, memory_key_segments)
        return self._held.forward(target, memory, masks, memory_masks, seed_or_none(rng))


class TransformerDecoderLayer(_DecodingLayer):
    """Self-attention, attention to a memory, a feed-forward network, each with a residual path and a norm.

    x = norm1(target + self_attn(target)); x = norm2(x + multihead_attn(x, memory));
    x = norm3(x + feed_forward(x)), or with norm_first x = target + self_attn(norm1(target));
    x = x + multihead_attn(norm2(x), memory); x = x + feed_forward(norm3(x)).

    Parameters
    ----------
    d_model : features, a multiple of nhead
    nhead : number of heads
    dim_feedforward : width of the hidden layer
    dropout : probability with which attention weights, hidden elements and what joins the residual stream are
        dropped in `forward` with an rng
    activation : "relu", "gelu", "gelu_tanh", "gelu_sigmoid" or "silu"
    layer_norm_eps : added to the variance by the norms, or to the mean square
    norm_first : whether the norms come before the sublayers (pre-norm) or after the residual connections
        (post-norm)
    bias : whether linear layers and layer norms have one
    num_kv_heads : heads of keys and values, a divisor of nhead; nhead by default
    rotary : RotaryPositions of self-attention; none by default
    norm : "layer" for LayerNorm, or "rms" for RMSNorm, which has no bias
    gated : whether the feed-forward network is a GatedFeedForward, SwiGLU with activation="silu"
    recompute : whether `forward` keeps the inputs alone and `backward` computes the rest again: a fraction of
        the memory for about a third more time
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from, as in PyTorch; a fresh one by
        default

    State: self_attn.* and multihead_attn.* as MultiheadAttention, linear1.*, linear2.* as FeedForward (or
    gate_proj.*, up_proj.*, down_proj.* as GatedFeedForward), norm1.*, norm2.*, norm3.* as LayerNorm or
    RMSNorm.

    Calling it
    ----------
    target : (batch, length, d_model) or (length, d_model)
    memory : (batch, memory_length, d_model), such as the output of an encoder
    mask, bias, causal, window, key_lengths, query_segments, alibi_slopes : of self-attention, as in
        scaled_dot_product_attention, where keys are the positions of target themselves; mask: True = may
        attend
    memory_mask, memory_key_lengths, memory_key_segments : likewise, where keys are the positions of memory;
        with query_segments, a position sees the memory whose segment is equal to its own
    return_weights : True, or a WeightSelection: also return the attention weights of each head
    out : array of the layer's dtype to write the output into, as the module says; a new one by default

    Returns an array of target's shape, or (output, DecoderWeights(self_attn, multihead_attn)) with weights
    (batch, nhead, length, length) and (batch, nhead, length, memory_length).

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", section 3.1; Xiong et al. 2020, "On Layer Normalization
    in the Transformer Architecture".

    Examples
    --------
    >>> layer = TransformerDecoderLayer(8, 2, dim_feedforward=32, rng=0)
    >>> target, memory = np.ones((2, 5, 8), np.float32), np.ones((2, 7, 8), np.float32)
    >>> y, weights = layer(target, memory, causal=True, memory_key_lengths=[7, 3], return_weights=True)
    >>> y.shape, weights.multihead_attn.shape
    ((2, 5, 8), (2, 2, 5, 7))
    """

    def __init__(
        self,
        d_model: int,
        nhead: int,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        layer_norm_eps: float = 1e-5,
        *,
        norm_first: bool = False,
        bias: bool = True,
        num_kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
        norm: str = "layer",
        gated: bool = False,
        recompute: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        self._arguments = _layer_arguments(
            d_model=d_model,
            nhead=nhead,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
            norm_first=norm_first,
            bias=bias,
            num_kv_heads=num_kv_heads,
            rotary=rotary,
            norm=norm,
            gated=gated,
            recompute=recompute,
            dtype=dtype,
        )
        self._held = _core.decoder_layer(**_layer_sizes(self._arguments), seed=initial_seed(rng))

    def __call__(
        self,
        target: Array,
        memory: Array,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        window: tuple[int | None, int | None] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        memory_mask: Array | None = None,
        memory_key_lengths: Array | Sequence[int] | None = None,
        memory_key_segments: Array | None = None,
        return_weights: bool | WeightSelection = False,
        out: Array | None = None,
    ) -> Any:
        chosen = None
        if return_weights is not False:
            chosen = choose_weights(return_weights, self._arguments["nhead"], _length(target))
        masks = (mask, bias, causal, None, window, None, key_lengths, query_segments, None, alibi_slopes)
        memory_masks = (memory_mask, memory_key_lengths, memory_key_segments)
        selections = [] if chosen is None else [(0, chosen)]
        output, weights = self._held.call(target, memory, masks, memory_masks, selections, out)
        return output if chosen is None else (output, DecoderWeights(*weights[0]))


class TransformerDecoder(_DecodingLayer):
    """num_layers decoder layers in turn, all attending to the same memory, then a norm if one is given.

    Parameters
    ----------
    decoder_layer : the TransformerDecoderLayer that each layer is a copy of
    num_layers : positive int
    norm : the LayerNorm that the last one is a copy of, over d_model features (an RMSNorm if that is the norm
        of decoder_layer); pre-norm decoders need one
    rng : numpy.random.Generator or int that the initial weights of all layers are drawn from; without it
        every layer starts with the weights of decoder_layer, as in PyTorch

    State: layers.0.*, layers.1.*, ... as TransformerDecoderLayer, and norm.* as the norm.

    Calling it
    ----------
    target, memory, mask, bias, causal, window, key_lengths, query_segments, alibi_slopes, memory_mask,
        memory_key_lengths, memory_key_segments : as for TransformerDecoderLayer, the same for every layer
    return_weights : which attention weights to return: True for those of all layers, the indices of layers,
        as (0, -1), or a WeightSelection for each, as {0: WeightSelection(heads=[3]), -1: True}
    out : array of the layer's dtype to write the output into, as the module says; a new one by default

    Returns an array of target's shape, or (output, weights) with weights a dict from the index of a layer, as
    it was given, to its DecoderWeights.

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit, IndexError for layers that
    do not exist.

    Examples
    --------
    >>> layer = TransformerDecoderLayer(8, 2, dim_feedforward=32, norm_first=True)
    >>> decoder = TransformerDecoder(layer, num_layers=3, norm=LayerNorm(8), rng=0)
    >>> decoder(np.ones((2, 5, 8), np.float32), np.ones((2, 7, 8), np.float32), causal=True).shape
    (2, 5, 8)
    """

    def __init__(
        self,
        decoder_layer: TransformerDecoderLayer,
        num_layers: int,
        norm: LayerNorm | RMSNorm | None = None,
        *,
        rng: Rng | None = None,
    ) -> None:
        if not isinstance(decoder_layer, TransformerDecoderLayer):
            raise TypeError(
                f"decoder_layer must be a TransformerDecoderLayer, got {type(decoder_layer).__name__}"
            )
        self._arguments = {
            "decoder_layer": decoder_layer,
            "num_layers": checked_layers("num_layers", num_layers),
            "norm": norm,
        }
        _require_float_weights("decoder_layer", decoder_layer)
        self._held = decoder_layer._held.stack(
            self._arguments["num_layers"], _last_norm(decoder_layer, norm, "decoder_layer"), seed_or_none(rng)
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: what the layers compute in, and what they take."""
        layer: TransformerDecoderLayer = self._arguments["decoder_layer"]
        return layer.dtype

    def __call__(
        self,
        target: Array,
        memory: Array,
        *,
        mask: Array | None = None,
        bias: Array | None = None,
        causal: Causal = False,
        window: tuple[int | None, int | None] | None = None,
        key_lengths: Array | Sequence[int] | None = None,
        query_segments: Array | None = None,
        alibi_slopes: Array | None = None,
        memory_mask: Array | None = None,
        memory_key_lengths: Array | Sequence[int] | None = None,
        memory_key_segments: Array | None = None,
        return_weights: LayerWeights = False,
        out: Array | None = None,
    ) -> Any:
        masks = (mask, bias, causal, None, window, None, key_lengths, query_segments, None, alibi_slopes)
        memory_masks = (memory_mask, memory_key_lengths, memory_key_segments)
        if return_weights is False:
            return self._held.call(target, memory, masks, memory_masks, [], out)[0]
        heads = self._arguments["decoder_layer"]._arguments["nhead"]
        asked = choose_layers(return_weights, self._arguments["num_layers"], heads, _length(target))
        output, weights = self._held.call(target, memory, masks, memory_masks, list(asked.values()), out)
        return output, {name: DecoderWeights(*weights[index]) for name, (index, _) in asked.items()}


class TransformerWeights(NamedTuple):
    """The attention weights of chosen layers of a Transformer, by the index of the layer, as it was given."""

    encoder: dict[int, Array]
    decoder: dict[int, DecoderWeights]


class Transformer(Layer):
    """decoder(target, encoder(source)): layers that read a source, and layers that write a target.

    Parameters
    ----------
    d_model : features, a multiple of nhead
    nhead : number of heads
    num_encoder_layers, num_decoder_layers : positive ints
    dim_feedforward : width of the hidden layers
    dropout : probability with which attention weights, hidden elements and what joins the residual stream are
        dropped in `forward` with an rng
    activation : "relu", "gelu", "gelu_tanh", "gelu_sigmoid" or "silu"
    layer_norm_eps, norm_first, bias, num_kv_heads, rotary, norm, gated, recompute : as for
        TransformerEncoderLayer and TransformerDecoderLayer
    custom_encoder, custom_decoder : layers to take in place of those that all these arguments describe, ours
        or yours (see Module), which become part of this one as they are. They are called as
        encoder(source, mask=source_mask, key_lengths=source_lengths) and decoder(target, memory,
        mask=target_mask, causal=causal, key_lengths=target_lengths, memory_mask=memory_mask,
        memory_key_lengths=source_lengths), with those of these arguments that the call gives
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from, as in PyTorch; a fresh one by
        default

    State: encoder.* as TransformerEncoder and decoder.* as TransformerDecoder, each with a last norm; or the
    names of a custom one behind these.

    Calling it
    ----------
    source : (batch, length, d_model) or (length, d_model)
    target : (batch, target_length, d_model)
    source_lengths : (batch,) ints, the valid prefix of each source, for the encoder and for the decoder that
        looks it up
    target_lengths : (batch,) ints, the valid prefix of each target
    causal : whether each position of the target attends to itself and to those before it alone
    source_mask, target_mask, memory_mask : bool, who may attend to whom within the source, within the target,
        and from the target to the source, as in scaled_dot_product_attention; True = may attend
    return_weights : which attention weights to return: True for those of all layers, the indices of layers,
        as (0, -1)
    out : array of the layer's dtype to write the output into, as the module says; a new one by default

    Returns an array of target's shape, or (output, TransformerWeights(encoder, decoder)).

    Raises
    ------
    TypeError for arrays of another dtype, ValueError for shapes that do not fit, IndexError for layers that
    do not exist.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need".

    Examples
    --------
    >>> model = Transformer(8, 2, num_encoder_layers=2, num_decoder_layers=1, dim_feedforward=32, rng=0)
    >>> source, target = np.ones((2, 7, 8), np.float32), np.ones((2, 5, 8), np.float32)
    >>> y = model(source, target, source_lengths=[7, 3], causal=True)
    >>> y.shape
    (2, 5, 8)

    Word by word, the source is read once, and so is each word:

    >>> memory = model.encode(source, source_lengths=[7, 3])
    >>> cache = model.new_cache(memory, capacity=5, source_lengths=[7, 3])
    >>> first = cache.add(target[:, :1])
    >>> bool(np.allclose(first, y[:, :1], atol=1e-5))
    True

    An encoder of another kind:

    >>> encoder = Sequential(Linear(3, 8, rng=0), TransformerEncoderLayer(8, 2, 32, norm="rms", gated=True))
    >>> model = Transformer(8, 2, num_decoder_layers=1, custom_encoder=encoder)
    >>> model(np.ones((2, 7, 3), np.float32), target, causal=True).shape
    (2, 5, 8)
    """

    _held: _core.TransformerLayer

    def __new__(cls, *_: Any, **arguments: Any) -> Transformer:
        custom = (arguments.get(f"custom_{half}") for half in ("encoder", "decoder"))
        composed = cls is Transformer and any(half is not None for half in custom)
        return super().__new__(ComposedTransformer if composed else cls)

    def __init__(
        self,
        d_model: int = 512,
        nhead: int = 8,
        num_encoder_layers: int = 6,
        num_decoder_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str = "relu",
        *,
        layer_norm_eps: float = 1e-5,
        norm_first: bool = False,
        bias: bool = True,
        num_kv_heads: int | None = None,
        rotary: RotaryPositions | None = None,
        norm: str = "layer",
        gated: bool = False,
        recompute: bool = False,
        custom_encoder: Module | None = None,
        custom_decoder: Module | None = None,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        self._arguments = {
            "num_encoder_layers": checked_layers("num_encoder_layers", num_encoder_layers),
            "num_decoder_layers": checked_layers("num_decoder_layers", num_decoder_layers),
        } | _layer_arguments(
            d_model=d_model,
            nhead=nhead,
            dim_feedforward=dim_feedforward,
            dropout=dropout,
            activation=activation,
            layer_norm_eps=layer_norm_eps,
            norm_first=norm_first,
            bias=bias,
            num_kv_heads=num_kv_heads,
            rotary=rotary,
            norm=norm,
            gated=gated,
            recompute=recompute,
            dtype=dtype,
        )
        self._hold(custom_encoder, custom_decoder, rng)

    def _hold(self, encoder: Module | None, decoder: Module | None, rng: Rng | None) -> None:
        if encoder is not None or decoder is not None:
            raise TypeError(
                f"custom_encoder and custom_decoder must be given to Transformer, not {type(self).__name__}"
            )
        self._held = _core.transformer(**_layer_sizes(self._arguments), seed=initial_seed(rng))

    def __call__(
        self,
        source: Array,
        target: Array,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        target_lengths: Array | Sequence[int] | None = None,
        causal: bool = False,
        source_mask: Array | None = None,
        target_mask: Array | None = None,
        memory_mask: Array | None = None,
        return_weights: LayerWeights = False,
        out: Array | None = None,
    ) -> Any:
        masks = (source_mask, source_lengths, target_mask, target_lengths, causal, memory_mask)
        heads = self._arguments["nhead"]
        of_encoder, of_decoder = (
            {}
            if return_weights is False
            else choose_layers(return_weights, self._arguments[f"num_{half}_layers"], heads, _length(x))
            for half, x in (("encoder", source), ("decoder", target))
        )
        output, encoder, decoder = self._held.call(
            source, target, masks, list(of_encoder.values()), list(of_decoder.values()), out
        )
        if return_weights is False:
            return output
        return output, TransformerWeights(
            {name: encoder[index] for name, (index, _) in of_encoder.items()},
            {name: DecoderWeights(*decoder[index]) for name, (index, _) in of_decoder.items()},
        )

    def forward(
        self,
        source: Array,
        target: Array,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        target_lengths: Array | Sequence[int] | None = None,
        causal: bool = False,
        source_mask: Array | None = None,
        target_mask: Array | None = None,
        memory_mask: Array | None = None,
        rng: Rng | None = None,
    ) -> tuple[Array, _core.Saved]:
        """The output and what its gradient needs. Dropout acts if there is an rng.

        The saved value holds copies of source and target, and refers to masks, which must not change before
        its use. `backward` returns ((d_source, d_target), grads).
        """
        masks = (source_mask, source_lengths, target_mask, target_lengths, causal, memory_mask)
        return self._held.forward(source, target, masks, seed_or_none(rng))

    def encode(
        self,
        source: Array,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        source_mask: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """The memory of a source: the first half of a call, (batch, length, d_model)."""
        return self._held.encode(source, (source_mask, source_lengths, None, None, False, None), out)

    def decode(
        self,
        target: Array,
        memory: Array,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        target_lengths: Array | Sequence[int] | None = None,
        causal: bool = False,
        target_mask: Array | None = None,
        memory_mask: Array | None = None,
        out: Array | None = None,
    ) -> Array:
        """The output for a target and a memory that `encode` returned: the second half of a call."""
        masks = (None, source_lengths, target_mask, target_lengths, causal, memory_mask)
        return self._held.decode(target, memory, masks, out)

    def new_cache(
        self, memory: Array, capacity: int, *, source_lengths: Array | Sequence[int] | None = None
    ) -> DecoderCache:
        """Begin a target for each memory, which grows step by step, as `new_cache` of a decoder does."""
        return DecoderCache(
            self._held.new_cache(memory, source_lengths, checked_integer("capacity", capacity))
        )


class _SavedHalves(NamedTuple):
    """What both halves keep for backward."""

    encoder: Any
    decoder: Any

    @property
    def nbytes(self) -> int:
        """Bytes held, as far as the halves say."""
        return sum(getattr(saved, "nbytes", 0) for saved in self)

    def __repr__(self) -> str:
        return f"Saved(encoder={self.encoder!r}, decoder={self.decoder!r})"


class ComposedTransformer(Composite, Transformer):
    """A Transformer of halves that are layers of their own: what `custom_encoder` and `custom_decoder` make.

    `encoder` and `decoder` are these layers.
    """

    encoder: Any
    decoder: Any

    def _hold(self, encoder: Module | None, decoder: Module | None, rng: Rng | None) -> None:
        for name, half in (("custom_encoder", encoder), ("custom_decoder", decoder)):
            if half is not None:
                require_module(name, half)
        generator = np.random.default_rng(initial_seed(rng))
        self.encoder = encoder
        self.decoder = decoder
        if encoder is None:
            self.encoder = self._made(TransformerEncoder, TransformerEncoderLayer, "encoder", generator)
        if decoder is None:
            self.decoder = self._made(TransformerDecoder, TransformerDecoderLayer, "decoder", generator)

    def _made(self, stack: Any, layer: Any, name: str, generator: np.random.Generator) -> Any:
        """The half that the arguments describe: its matrices as Glorot and Bengio 2010, the rest as its
        layers."""
        arguments = dict(self._arguments)
        counts = {half: arguments.pop(f"num_{half}_layers") for half in ("encoder", "decoder")}
        d_model, eps, dtype = (arguments[name] for name in ("d_model", "layer_norm_eps", "dtype"))
        norm = (
            RMSNorm(d_model, eps, dtype=dtype)
            if arguments["norm"] == "rms"
            else LayerNorm(d_model, eps, bias=arguments["bias"], dtype=dtype)
        )
        half = stack(layer(**arguments), counts[name], norm, rng=generator)
        with half.edit() as parameters:
            for array in parameters.values():
                if array.ndim > 1:
                    bound = (6 / sum(array.shape)) ** 0.5
                    array[...] = generator.uniform(-bound, bound, array.shape)
        return half

    def _parts(self) -> dict[str, Any]:
        return {"encoder": self.encoder, "decoder": self.decoder}

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float64: that of the parameters."""
        return np.result_type(*self.parameters().values())

    @property
    def packed_nbytes(self) -> int:
        """Bytes of the copies of weights that inference keeps."""
        return sum(getattr(leaf, "packed_nbytes", 0) for _, leaf in self._leaves())

    def release_packed(self) -> None:
        """Gives the memory of packed copies of weights back, until the next inference pass."""
        for _, leaf in self._leaves():
            if hasattr(leaf, "release_packed"):
                leaf.release_packed()

    def __call__(
        self,
        source: Any,
        target: Any,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        target_lengths: Array | Sequence[int] | None = None,
        causal: bool = False,
        source_mask: Array | None = None,
        target_mask: Array | None = None,
        memory_mask: Array | None = None,
        return_weights: LayerWeights = False,
        out: Array | None = None,
    ) -> Any:
        weights = {} if return_weights is False else {"return_weights": return_weights}
        memory = infer(
            self.encoder, source, **_given(mask=source_mask, key_lengths=source_lengths), **weights
        )
        memory, of_encoder = (memory, {}) if return_weights is False else memory
        masks = _decoder_masks(source_lengths, target_lengths, causal, target_mask, memory_mask)
        y = infer(self.decoder, target, memory, **masks, **weights, **_given(out=out))
        if return_weights is False:
            return y
        output, of_decoder = y
        return output, TransformerWeights(of_encoder, of_decoder)

    def encode(
        self,
        source: Any,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        source_mask: Array | None = None,
        out: Array | None = None,
    ) -> Any:
        """The memory of a source: the first half of a call."""
        return infer(self.encoder, source, **_given(mask=source_mask, key_lengths=source_lengths, out=out))

    def decode(
        self,
        target: Any,
        memory: Any,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        target_lengths: Array | Sequence[int] | None = None,
        causal: bool = False,
        target_mask: Array | None = None,
        memory_mask: Array | None = None,
        out: Array | None = None,
    ) -> Any:
        """The output for a target and a memory that `encode` returned: the second half of a call."""
        masks = _decoder_masks(source_lengths, target_lengths, causal, target_mask, memory_mask)
        return infer(self.decoder, target, memory, **masks, **_given(out=out))

    def new_cache(
        self, memory: Array, capacity: int, *, source_lengths: Array | Sequence[int] | None = None
    ) -> DecoderCache:
        """Begin a target for each memory, if the decoder has new_cache(), as ours have."""
        cache: DecoderCache = self.decoder.new_cache(memory, capacity, memory_key_lengths=source_lengths)
        return cache

    def forward(
        self,
        source: Any,
        target: Any,
        *,
        source_lengths: Array | Sequence[int] | None = None,
        target_lengths: Array | Sequence[int] | None = None,
        causal: bool = False,
        source_mask: Array | None = None,
        target_mask: Array | None = None,
        memory_mask: Array | None = None,
        rng: Rng | None = None,
    ) -> tuple[Any, Any]:
        """The output and what its gradient needs. Dropout acts if there is an rng."""
        generator = None if rng is None else np.random.default_rng(draw_seed(rng))
        memory, of_encoder = self.encoder.forward(
            source, rng=generator, **_given(mask=source_mask, key_lengths=source_lengths)
        )
        masks = _decoder_masks(source_lengths, target_lengths, causal, target_mask, memory_mask)
        y, of_decoder = self.decoder.forward(target, memory, rng=generator, **masks)
        return y, _SavedHalves(of_encoder, of_decoder)

    def backward(
        self, saved: Any, d_output: Array, *, accumulate: Mapping[str, Array] | None = None
    ) -> tuple[tuple[Any, Any], dict[str, Array]]:
        """((d_source, d_target), grads), as for every layer."""
        if not isinstance(saved, _SavedHalves):
            raise TypeError(f"saved must be what forward returned, got {type(saved).__name__}")
        if accumulate is not None:
            self._check_gradients(accumulate)
        (d_target, d_memory), of_decoder = self.decoder.backward(saved.decoder, d_output)
        d_source, of_encoder = self.encoder.backward(saved.encoder, d_memory)
        grads = {f"encoder.{name}": array for name, array in of_encoder.items()}
        grads |= {f"decoder.{name}": array for name, array in of_decoder.items()}
        return (d_source, d_target), grads if accumulate is None else add_gradients(accumulate, grads)

    def __reduce__(self) -> tuple[Any, ...]:
        return _recompose, (self.encoder, self.decoder, self._arguments)

    def __repr__(self) -> str:
        halves = (f"  custom_{name}={half!r}".replace("\n", "\n  ") for name, half in self._parts().items())
        return "\n".join(["Transformer(", *halves, ")"])


def _recompose(encoder: Any, decoder: Any, arguments: dict[str, Any]) -> Transformer:
    return Transformer(**arguments, custom_encoder=encoder, custom_decoder=decoder)


def _given(**arguments: Any) -> dict[str, Any]:
    """Those that are not None: what layers of others need not know is not passed on."""
    return {name: value for name, value in arguments.items() if value is not None}


def _decoder_masks(
    source_lengths: Any, target_lengths: Any, causal: Any, target_mask: Any, memory_mask: Any
) -> dict[str, Any]:
    """The arguments of a decoder that mean these of a Transformer."""
    masks = _given(
        mask=target_mask,
        key_lengths=target_lengths,
        memory_mask=memory_mask,
        memory_key_lengths=source_lengths,
    )
    return masks if causal is False else {"causal": causal, **masks}
