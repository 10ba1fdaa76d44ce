"""How gradients are judged: by numerical derivatives of the formulas they are the gradients of."""

import numpy as np
import reference

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
