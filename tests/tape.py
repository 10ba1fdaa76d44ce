"""Gradients of the formulas in reference.py in any dtype, as plain NumPy rounds them.

A formula runs unchanged on arrays that note what is done with them (a tape, Linnainmaa 1970); read backwards,
the notes are the chain rule. In float64 that is the truth that gradients are compared with, in float32 it
shows how far from the truth plain NumPy arithmetic is (derivatives.Accuracy).
"""

import math
from unittest import mock

import numpy as np
import reference
from numpy.lib.mixins import NDArrayOperatorsMixin

# Of each ufunc y = f(a) or y = f(a, b) the gradients of its arguments, given that of y, g.
DERIVATIVES = {
    np.negative: (lambda g, y, a: -g,),
    np.absolute: (lambda g, y, a: g * np.sign(a),),
    np.exp: (lambda g, y, a: g * y,),
    np.log: (lambda g, y, a: g / a,),
    np.sqrt: (lambda g, y, a: g / (2 * y),),
    np.tanh: (lambda g, y, a: g * (1 - y * y),),
    np.add: (lambda g, y, a, b: g, lambda g, y, a, b: g),
    np.subtract: (lambda g, y, a, b: g, lambda g, y, a, b: -g),
    np.multiply: (lambda g, y, a, b: g * b, lambda g, y, a, b: g * a),
    np.divide: (lambda g, y, a, b: g / b, lambda g, y, a, b: -g * y / b),
    np.power: (lambda g, y, a, b: g * b * a ** (b - 1),),
    np.maximum: (lambda g, y, a, b: np.where(a > b, g, 0), lambda g, y, a, b: np.where(a > b, 0, g)),
}


class Tape(list):
    """The steps back. Given an order, products of matrices add up their terms in one drawn from it."""

    def __init__(self, order=None):
        super().__init__()
        self.random = None if order is None else np.random.default_rng(order)

    def matmul(self, a, b):
        if self.random is not None:
            order = self.random.permutation(a.shape[-1])
            a, b = a[..., order], b[..., order, :]
        return a @ b


def value_of(x):
    return x.value if isinstance(x, Array) else x


class Array(NDArrayOperatorsMixin):
    """A NumPy array and its gradient; each operation adds to `tape` the step that goes back over it."""

    def __init__(self, value, tape):
        self.value = value
        self.gradient = np.zeros_like(value)
        self.tape = tape

    shape = property(lambda self: self.value.shape)
    ndim = property(lambda self: self.value.ndim)
    size = property(lambda self: self.value.size)
    dtype = property(lambda self: self.value.dtype)

    def __len__(self):
        return len(self.value)

    def add(self, gradient):
        """Adds to the gradient, summed over the axes along which this array was broadcast."""
        assert gradient.dtype == self.dtype, f"{gradient.dtype} in a gradient of {self.dtype}"
        same_shape = gradient.shape == self.shape
        self.gradient += gradient if same_shape else reference.reduce_to(gradient, self.shape)

    def then(self, value, *steps):
        """A result whose gradient goes back to every Array of `steps` by the function beside it."""
        result = Array(value, self.tape)

        def go_back():
            for source, derivative in steps:
                if isinstance(source, Array):
                    source.add(derivative(result.gradient))

        self.tape.append(go_back)
        return result

    def __array_ufunc__(self, ufunc, method, *arguments):
        if ufunc is np.matmul:
            return self.matmul(*arguments)
        assert method == "__call__", f"{ufunc.__name__}.{method}"
        values = [value_of(x) for x in arguments]
        y = ufunc(*values)
        if y.dtype == bool:
            return y
        steps = [
            (x, lambda g, derivative=derivative: derivative(g, y, *values))
            for x, derivative in zip(arguments, DERIVATIVES[ufunc], strict=False)
        ]
        return self.then(y, *steps)

    def matmul(self, a, b):
        product = self.tape.matmul
        steps = [
            (a, lambda g: product(g, np.swapaxes(value_of(b), -1, -2))),
            (b, lambda g: product(np.swapaxes(value_of(a), -1, -2), g)),
        ]
        return self.then(product(value_of(a), value_of(b)), *steps)

    def __array_function__(self, function, types, arguments, keywords):
        return FUNCTIONS[function](*arguments, **keywords)

    def __getitem__(self, index):
        def scatter(g):
            whole = np.zeros_like(self.value)
            if isinstance(index, np.ndarray):
                np.add.at(whole, index, g)  # every use of a row counts
            else:
                whole[index] = g
            return whole

        return self.then(self.value[index], (self, scatter))

    def __setitem__(self, index, new):
        self.value[index] = new.value

        def go_back():
            new.add(self.gradient[index])
            self.gradient[index] = 0

        self.tape.append(go_back)

    def copy(self):
        return self.then(self.value.copy(), (self, lambda g: g))

    def astype(self, dtype):
        assert self.dtype == dtype
        return self

    def reshape(self, *shape):
        return self.then(self.value.reshape(*shape), (self, lambda g: g.reshape(self.shape)))

    @property
    def T(self):
        return self.then(self.value.T, (self, lambda g: g.T))

    def sum(self, axis=None, keepdims=False):
        summed = tuple(range(self.ndim)) if axis is None else axis

        def spread(g):
            return np.broadcast_to(g if keepdims else np.expand_dims(g, summed), self.shape)

        return self.then(self.value.sum(axis, keepdims=keepdims), (self, spread))

    def mean(self, axis, keepdims=False):
        total = self.sum(axis, keepdims)
        return total / self.dtype.type(self.value.size // total.value.size)

    def max(self, *arguments, **keywords):
        """A constant: all that the formulas do with it is to subtract it where that changes nothing."""
        return self.value.max(*arguments, **keywords)


def where(condition, a, b):
    """None of the gradient goes where it was not chosen."""
    steps = [
        (a, lambda g: np.where(condition, g, g.dtype.type(0))),
        (b, lambda g: np.where(condition, g.dtype.type(0), g)),
    ]
    one = a if isinstance(a, Array) else b
    return one.then(np.where(condition, value_of(a), value_of(b)), *steps)


def swapaxes(x, one, other):
    return x.then(np.swapaxes(x.value, one, other), (x, lambda g: np.swapaxes(g, one, other)))


def repeat(x, times, *, axis):
    def add_up(g):
        groups = np.moveaxis(g, axis, 0)
        groups = groups.reshape(-1, times, *groups.shape[1:])
        return np.moveaxis(groups.sum(1), 0, axis)

    return x.then(np.repeat(x.value, times, axis=axis), (x, add_up))


def broadcast_to(x, shape):
    return x.then(np.broadcast_to(x.value, shape), (x, lambda g: g))


def concatenate(parts, axis=0):
    whole = np.concatenate([value_of(part) for part in parts], axis)
    ends = np.cumsum([part.shape[axis] for part in parts])[:-1]
    steps = [
        (part, lambda g, index=index: np.split(g, ends, axis)[index]) for index, part in enumerate(parts)
    ]
    one = next(part for part in parts if isinstance(part, Array))
    return one.then(whole, *steps)


def split(x, ends):
    return [x[begin:end] for begin, end in zip([0, *ends], [*ends, len(x)], strict=True)]


FUNCTIONS = {
    np.where: where,
    np.swapaxes: swapaxes,
    np.repeat: repeat,
    np.broadcast_to: broadcast_to,
    np.concatenate: concatenate,
    np.split: split,
}


class NumPy:
    """The module numpy, but for what would make plain arrays of those on the tape."""

    def __getattr__(self, name):
        return getattr(np, name)

    def asarray(self, x, dtype=None):
        assert not isinstance(x, Array) or dtype in (None, x.dtype)
        return x if isinstance(x, Array) else np.asarray(x, dtype)

    def vectorize(self, function, otypes):
        """Of the error function alone."""
        assert function is math.erfc
        erfc = np.vectorize(math.erfc, otypes)
        slope = otypes[0](-2 / math.sqrt(math.pi))
        return lambda x: (
            x.then(erfc(x.value), (x, lambda g: g * slope * np.exp(-x.value * x.value)))
            if isinstance(x, Array)
            else erfc(x)
        )


def run(formula, arrays, d_output=1, *, dtype=np.float64, order=None):
    """y = formula(arrays, dtype=dtype), and the gradient of sum(y * d_output) of each array, by its name."""
    tape = Tape(order)
    inputs = {name: Array(np.array(array, dtype), tape) for name, array in arrays.items()}
    with mock.patch.object(reference, "np", NumPy()), np.errstate(all="ignore"):
        y = formula(inputs, dtype=dtype)
        y.gradient[...] = d_output
        for step in reversed(tape):
            step()
    return y.value, {name: array.gradient for name, array in inputs.items()}
