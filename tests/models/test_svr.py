"""Support vector regressions: fits against scikit-learn's own predictions, and libsvm's text files."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn import model_selection
from sklearn.svm import SVR

from cprl_jax.models import svr
from cprl_jax.runtime.errors import UserError


def labelled(features=5, images=52, seed=0):
    """Labels that depend on the features, whose units differ by far."""
    generator = np.random.default_rng(seed)
    units = 10.0 ** np.arange(features)
    found = generator.uniform(-1, 3, (images, features))
    labels = np.sin(found[:, 0]) + 0.5 * found[:, 1] + generator.normal(0, 0.05, len(found))
    return svr.Labelled(found * units, labels, np.arange(images))


def scaled(features):
    low, high = features.min(axis=0), features.max(axis=0)
    return 2 * (features - low) / np.where(high > low, high - low, 1) - 1


@pytest.mark.parametrize("kind", ["rbf", "linear"])
def test_predictions_are_those_of_scikit_learn(kind):
    images = labelled()
    features, labels = images.features, images.labels
    if kind == "rbf":
        found, numbers = svr.fit_rbf(images)
        predicted = svr.predict(found, jnp.asarray(features, jnp.float32))
        kernel = {"kernel": "rbf", "gamma": numbers["gamma"]}
        inputs = scaled(features)
    else:
        found, numbers = svr.fit_linear(images)
        predicted = features @ found.weights + found.offset
        kernel, inputs = {"kernel": "linear"}, scaled(features) * np.sqrt(numbers["gamma"])
    expected = SVR(C=numbers["cost"], epsilon=svr.EPSILON, **kernel).fit(inputs, labels).predict(inputs)
    np.testing.assert_allclose(predicted, expected, atol=2e-3)
    assert np.corrcoef(predicted, labels)[0, 1] > 0.8 and numbers["validation_srcc"] > 0.6


def test_a_feature_that_is_constant_has_no_part_in_a_linear_fit():
    images = labelled()
    expected, _ = svr.fit_linear(images)
    found, _ = svr.fit_linear(images._replace(features=np.insert(images.features, 2, 7.0, axis=1)))
    assert found.weights[2] == 0
    inputs = np.insert(images.features, 2, 1e6, axis=1)  # whatever it is elsewhere
    exact = images.features @ expected.weights + expected.offset
    # The kernel is divided by the number of features, so that C means another thing: only the order must stay.
    assert np.corrcoef(inputs @ found.weights + found.offset, exact)[0, 1] > 0.99


def test_parameters_are_not_chosen_by_scenes_that_the_fit_has_seen():
    """Four equal images of each scene, and labels that no feature tells: known by heart, or not at all."""
    generator = np.random.default_rng(0)
    found, labels = generator.normal(size=(20, 3)), generator.normal(size=20)
    images = svr.Labelled(np.repeat(found, 4, axis=0), np.repeat(labels, 4), np.repeat(np.arange(20), 4))
    _, by_scene = svr.fit_rbf(images)
    _, by_image = svr.fit_rbf(images._replace(scenes=np.random.default_rng(1).permutation(80)))
    assert by_image["validation_srcc"] > 0.9 > 0.6 > by_scene["validation_srcc"]


def test_the_mean_over_folds_is_that_of_scikit_learn():
    images = labelled(images=60)
    _, numbers = svr.fit_rbf(images)
    model = SVR(C=numbers["cost"], gamma=numbers["gamma"], epsilon=svr.EPSILON)
    folds = model_selection.GroupKFold(svr.FOLDS)
    guesses = [
        (model.fit(scaled(images.features)[train], images.labels[train]).predict(scaled(images.features)[test]), test)
        for train, test in folds.split(images.features, groups=images.scenes)
    ]
    expected = np.mean([stats.spearmanr(guess, images.labels[test]).statistic for guess, test in guesses])
    np.testing.assert_allclose(numbers["validation_srcc"], expected, atol=1e-9)


@pytest.mark.parametrize("images", [labelled(images=14), labelled()._replace(scenes=np.arange(52) % 4)])
def test_too_few_scenes_or_images_are_refused(images):
    with pytest.raises(UserError, match="give at least 5 with 15"):
        svr.fit_rbf(images)


MODEL = """svm_type epsilon_svr
kernel_type rbf
gamma 0.05
nr_class 2
total_sv 2
rho -153.5
probA 5.7
SV
1024 1:0.5 3:-0.25
-3.5 2:1
"""
RANGES = "x\n-1 1\n1 0.3 9.9\n2 0.01 0.8\n3 -1 1.5\n"


def test_texts_of_libsvm(tmp_path):
    (tmp_path / "allmodel").write_text(MODEL)
    (tmp_path / "allrange").write_text(RANGES)
    found = svr.load_svr(tmp_path / "allmodel", ranges=tmp_path / "allrange", features=3)
    np.testing.assert_array_equal(found.vectors, [[0.5, 0, -0.25], [0, 1, 0]])
    np.testing.assert_array_equal(found.coefficients, [1024, -3.5])
    assert (found.rho, found.gamma) == (-153.5, np.float32(0.05))
    np.testing.assert_allclose([found.lowest, found.highest], [[0.3, 0.01, -1], [9.9, 0.8, 1.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("model", "ranges", "message"),
    [
        (MODEL.replace("kernel_type rbf", "kernel_type linear"), RANGES, "kernel linear; allowed: .*rbf"),
        (MODEL.replace("3:-0.25", "4:1"), RANGES, "allmodel: no text of libsvm for 3 features .*feature 4"),
        (MODEL.replace("SV\n", ""), RANGES, "allmodel: no text of libsvm"),
        ("hello", RANGES, "allmodel: unknown kind of file; allowed: .mat, .npz, and libsvm's texts"),
        (MODEL, RANGES.replace("-1 1\n", "0 1\n", 1), "allrange: .* scales to 0 to 1; allowed: -1 to 1"),
        (MODEL, RANGES.replace("2 0.01 0.8\n", ""), "allrange: scale goes from 0.0 to 0.0 for feature 1"),
        (MODEL, MODEL, "allrange: no variable 'scale'"),
    ],
    ids=["kernel", "feature", "header", "other", "scale", "constant", "swapped"],
)
def test_texts_that_do_not_fit(tmp_path, model, ranges, message):
    (tmp_path / "allmodel").write_text(model)
    (tmp_path / "allrange").write_text(ranges)
    with pytest.raises(UserError, match=message):
        svr.load_svr(tmp_path / "allmodel", ranges=tmp_path / "allrange", features=3)
