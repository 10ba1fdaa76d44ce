"""How gradients are judged: by derivatives of the formulas they are the gradients of.

Numerical derivatives are independent of everything, but good to six digits only, and in float64. Those of the
tape are checked against them, and then say how accurate gradients are in float32.
"""

import numpy as np
import reference
import tape

# Of numerical derivatives. Where one steps over a kink of relu, a smaller one does not.
STEPS = (1e-5, 1e-6, 1e-7)


def assert_is_derivative(function, arrays, gradients, seed=0):
    """<gradient, direction> = d/dt function(arrays + t direction), for a random direction of each array."""
    random = np.random.default_rng(seed)
    assert list(arrays) == list(gradients)
    for name, array in arrays.items():
        assert gradients[name].shape == array.shape, name
        assert gradients[name].dtype == array.dtype, name
        direction = random.standard_normal(array.shape)
        differences = [
            np.sum(gradients[name] * direction)
            - reference.numerical_derivative(
                lambda changed, name=name: function({**arrays, name: changed}), array, direction, step
            )
            for step in STEPS
        ]
        # Of a gradient that is zero, as that of a key's bias, only what rounding makes of the steps is left.
        scale = np.linalg.norm(gradients[name]) * np.linalg.norm(direction) + 0.1
        assert np.abs(differences).min() < 1e-6 * scale, f"{name}: off by {differences} of {scale}"


class Accuracy:
    """How accurate y = formula(arrays, dtype=...) and the gradients of sum(y * d_y) have to be.

    error(ours) <= factor * error(plain NumPy in our dtype) + 1e-6 (float64: 8 eps), where the factor is 2 for
    y and 3 for gradients. NumPy's error is the largest of those with terms added up in so many orders: of a
    single one it is luck whether a score that decides much was rounded up or down.
    """

    def __init__(self, formula, arrays, d_y, dtype, orders=3):
        def run(dtype, order=None):
            y, gradients = tape.run(formula, arrays, d_y, dtype=dtype, order=order)
            return {"y": y, **gradients}

        self.dtype = dtype
        self.exact = run(np.float64 if dtype == np.float32 else np.longdouble)
        slack = 1e-6 if dtype == np.float32 else 8 * float(np.finfo(dtype).eps)
        self.allowed = dict.fromkeys(self.exact, slack)
        for order in (None, *range(1, orders)):
            for name, result in run(dtype, order).items():
                bound = (2 if name == "y" else 3) * reference.error(result, self.exact[name]) + slack
                self.allowed[name] = max(self.allowed[name], bound)

    def check(self, results, where=""):
        """results: some of y and the gradients, by name."""
        wrong = []
        for name, result in results.items():
            assert result.dtype == self.dtype, f"{name}: dtype {result.dtype} instead of {self.dtype}"
            off = reference.error(result, self.exact[name])
            if off > self.allowed[name]:
                wrong.append(f"{name}: error {off:.3g}, allowed {self.allowed[name]:.3g}")
        assert not wrong, f"{where} {'; '.join(wrong)}"
