"""blasformer.sklearn: what scikit-learn asks of an estimator, and that it learns."""

import pickle

import blasformer
import numpy as np
import pytest
from blasformer.sklearn import TransformerClassifier
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

SMALL = {
    "d_model": 8,
    "nhead": 2,
    "num_layers": 1,
    "dim_feedforward": 16,
    "epochs": 30,
    "lr": 1e-2,
    "random_state": 0,
}


def _listed(checks):
    # scikit-learn 1.7, the last for Python 3.10, gives a generator, which pytest 9 warns of.
    names, values = checks.args
    return pytest.mark.parametrize(names, list(values), **checks.kwargs)


@_listed(parametrize_with_checks([TransformerClassifier(**SMALL)]))
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


def test_rows_are_told_apart_by_cross_validation():
    x, y = load_iris(return_X_y=True)
    classifier = TransformerClassifier(**SMALL | {"epochs": 100})
    assert cross_val_score(classifier, x, y, cv=3).mean() > 0.9


def test_images_are_sequences_of_patches():
    digits = load_digits(n_class=4)
    patches = blasformer.models.image_patches(digits.images.astype(np.float32), 4)
    x = patches.reshape(len(patches), -1)
    classifier = TransformerClassifier(**SMALL | {"d_model": 16, "features_per_token": 16})
    classifier.fit(x[:400], digits.target[:400])
    assert classifier.model_.dtype == np.float32
    assert classifier.model_.parameters()["embedding.weight"].shape == (16, 16)
    assert classifier.score(x[400:], digits.target[400:]) > 0.9
    assert len(classifier.loss_curve_) == 30 * -(-400 // 32)


def test_the_same_random_state_gives_the_same_model():
    x, y = load_iris(return_X_y=True)
    first, second = (TransformerClassifier(**SMALL).fit(x, y) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(x), second.predict_proba(x))
    restored = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(first.predict_proba(x), restored.predict_proba(x))
    other = TransformerClassifier(**SMALL | {"random_state": 1}).fit(x, y)
    assert (first.predict_proba(x) != other.predict_proba(x)).any()


def test_pipelines_and_grid_searches_take_it():
    x, y = load_iris(return_X_y=True)
    pipeline = make_pipeline(MinMaxScaler(), TransformerClassifier(**SMALL | {"epochs": 2}))
    search = GridSearchCV(pipeline, {"transformerclassifier__num_layers": [1, 2]}, cv=2)
    search.fit(x, y)
    assert search.best_params_["transformerclassifier__num_layers"] in (1, 2)
    assert clone(pipeline).get_params()["transformerclassifier__epochs"] == 2


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"features_per_token": 0}, "features_per_token must be a positive integer, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a positive integer, got 2.5"),
        ({"nhead": 3}, "d_model must be a multiple of nhead = 3, got 8"),
        ({"epochs": 0}, "epochs must be a positive integer, got 0"),
        ({"pooling": "max"}, 'pooling must be "mean" or "first", got "max"'),
    ],
)
def test_parameters_that_make_no_sense_are_named(change, text):
    x, y = load_iris(return_X_y=True)
    with pytest.raises(ValueError, match=text):
        TransformerClassifier(**SMALL | change).fit(x, y)
