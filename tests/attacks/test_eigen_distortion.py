import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax.attacks.eigen_distortion import eigen_distortion

SHAPE = (3, 2, 3)
SIZE = 18


def photographs(batch=2, seed=0):
    return np.random.default_rng(seed).random((batch, *SHAPE))


def features(matrix, images):
    return jnp.tanh(images.reshape(images.shape[0], -1) @ matrix.T)


def matrix(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, SIZE)) / 4


def explicit(matrix, images):
    """J^T J of each image, from the analytic Jacobian."""
    for image in images:
        jacobian = (1 - np.tanh(matrix @ image.ravel()) ** 2)[:, None] * matrix
        yield jacobian.T @ jacobian


@pytest.mark.parametrize("count", [25, 18])
def test_equals_numpys_eigenvectors_of_the_explicit_matrix(count):
    images, weights = photographs(), matrix(count)
    with jax.enable_x64(True):
        result = eigen_distortion(Partial(features, weights), images, key=jax.random.key(0), steps=30)
        assert result.most_noticeable.dtype == np.float64
    for b, gram in enumerate(explicit(weights, images)):
        values, vectors = np.linalg.eigh(gram)
        np.testing.assert_allclose(result.largest[b], values[-1], rtol=1e-10)
        np.testing.assert_allclose(result.smallest[b], values[0], rtol=1e-6, atol=1e-12)
        for direction, vector in ((result.most_noticeable, vectors[:, -1]), (result.least_noticeable, vectors[:, 0])):
            np.testing.assert_allclose(abs(np.ravel(direction[b]) @ vector), 1, rtol=1e-8)
    np.testing.assert_allclose(result.largest_residual, np.zeros(2), atol=1e-9)
    np.testing.assert_allclose(result.smallest_residual, np.zeros(2), atol=1e-9)


@pytest.mark.parametrize("count", [2, 5])
def test_fewer_features_than_values_leave_unnoticed_directions(count):
    """The Krylov space closes early, and the iteration must continue outside of it."""
    images, weights = photographs(), matrix(count)
    with jax.enable_x64(True):
        result = eigen_distortion(Partial(features, weights), images, key=jax.random.key(0), steps=18)
    for b, gram in enumerate(explicit(weights, images)):
        np.testing.assert_allclose(result.largest[b], np.linalg.eigvalsh(gram)[-1], rtol=1e-10)
        least = np.ravel(result.least_noticeable[b])
        np.testing.assert_allclose(np.linalg.norm(least), 1, rtol=1e-10)
        np.testing.assert_allclose(gram @ least, np.zeros(SIZE), atol=1e-9)
    smallest = np.asarray(result.smallest)
    assert np.all(smallest >= 0) and np.all(smallest < 1e-15)


@pytest.mark.slow
def test_few_steps_find_the_largest_in_single_precision():
    images, weights = photographs().astype(np.float32), matrix(40).astype(np.float32)
    result = eigen_distortion(Partial(features, weights), images, key=jax.random.key(0), steps=12)
    for b, gram in enumerate(explicit(weights.astype(np.float64), images.astype(np.float64))):
        values = np.linalg.eigvalsh(gram)
        np.testing.assert_allclose(result.largest[b], values[-1], rtol=1e-3)
        assert values[0] - 1e-6 <= result.smallest[b] < values[4]
        direction = np.ravel(result.most_noticeable[b]).astype(np.float64)
        residual = np.linalg.norm(gram @ direction - result.largest[b] * direction) / values[-1]
        np.testing.assert_allclose(result.largest_residual[b], residual, atol=1e-4)


@pytest.mark.parametrize("columns", [(), (1,), (1, 1)])
def test_scores_have_the_gradient_and_its_squared_length(columns):
    images, weights = photographs().astype(np.float32), matrix(1).astype(np.float32)

    def score(weights, images):
        return jnp.sum(jnp.sin(images.reshape(images.shape[0], -1) * weights), axis=1).reshape(-1, *columns)

    result = eigen_distortion(Partial(score, weights), images, key=jax.random.key(0))
    gradient = (weights * np.cos(images.reshape(2, -1) * weights)).astype(np.float64)
    length = np.linalg.norm(gradient, axis=1)
    np.testing.assert_allclose(result.largest, length**2, rtol=1e-5)
    np.testing.assert_allclose(result.most_noticeable.reshape(2, -1), gradient / length[:, None], atol=1e-6)
    least = np.asarray(result.least_noticeable, np.float64).reshape(2, -1)
    np.testing.assert_allclose(np.linalg.norm(least, axis=1), np.ones(2), rtol=1e-6)
    np.testing.assert_allclose(np.sum(least * gradient, axis=1), np.zeros(2), atol=1e-6)
    np.testing.assert_array_equal(result.smallest, np.zeros(2))


def test_flat_functions_have_only_unnoticed_directions():
    images = photographs().astype(np.float32)
    for function in (lambda x: jnp.ones(x.shape[0]) + 0 * x[:, 0, 0, 0], lambda x: jnp.zeros((x.shape[0], 4))):
        result = eigen_distortion(function, images, key=jax.random.key(0), steps=5)
        np.testing.assert_array_equal(result.largest, np.zeros(2))
        for direction in (result.most_noticeable, result.least_noticeable):
            np.testing.assert_allclose(np.linalg.norm(direction.reshape(2, -1), axis=1), np.ones(2), rtol=1e-5)


def test_single_step_and_feature_maps():
    images = photographs().astype(np.float32)
    result = eigen_distortion(lambda x: 3 * x, images, key=jax.random.key(0), steps=1)
    np.testing.assert_allclose(result.largest, np.full(2, 9), rtol=1e-5)
    np.testing.assert_allclose(result.smallest, np.full(2, 9), rtol=1e-5)
    np.testing.assert_allclose(result.largest_residual, np.zeros(2), atol=1e-5)


@pytest.mark.slow
def test_images_do_not_influence_each_other():
    images, function = photographs().astype(np.float32), Partial(features, matrix(10).astype(np.float32))
    keys = jax.random.split(jax.random.key(0), 2)
    together = eigen_distortion(function, images, key=keys, steps=8)
    alone = eigen_distortion(function, images[1:], key=keys[1:], steps=8)
    np.testing.assert_allclose(together.largest[1:], alone.largest, rtol=1e-5)
    np.testing.assert_allclose(together.smallest[1:], alone.smallest, rtol=1e-2, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 17])  # unrolled, and as a device loop
def test_jit_and_vmap_give_the_same(steps):
    images, function = photographs().astype(np.float32), Partial(features, matrix(30).astype(np.float32))

    def analyse(function, images):
        return eigen_distortion(function, images, key=jax.random.key(0), steps=steps)

    eager = analyse(function, images)
    jitted = jax.jit(analyse)(function, images)
    mapped = jax.jit(jax.vmap(analyse, in_axes=(None, 0)))(function, np.stack([images, images[::-1]]))
    for other in (jitted, jax.tree.map(lambda leaf: leaf[0], mapped)):
        np.testing.assert_allclose(eager.largest, other.largest, rtol=1e-5)
        np.testing.assert_allclose(eager.smallest, other.smallest, rtol=1e-2, atol=1e-5)
        along = np.sum(eager.most_noticeable * other.most_noticeable, axis=(1, 2, 3))
        np.testing.assert_allclose(np.abs(along), np.ones(2), rtol=1e-3)


def test_no_gradient_flows():
    images, function = photographs().astype(np.float32), Partial(features, matrix(3).astype(np.float32))

    def total(images):
        return sum(jnp.sum(leaf) for leaf in eigen_distortion(function, images, key=jax.random.key(0), steps=1))

    np.testing.assert_array_equal(jax.grad(total)(images), np.zeros_like(images))


@pytest.mark.parametrize(
    ("function", "steps", "message"),
    [
        (
            lambda x: jnp.sum(x),
            5,
            r"function must return floats \[batch, ...\] with batch 2, got float32 of shape \(\)",
        ),
        (lambda x: (x, x), 5, "got tuple"),
        (lambda x: x > 0, 5, "got bool"),
        (lambda x: x, 0, "steps"),
    ],
)
def test_mistakes_are_named(function, steps, message):
    with pytest.raises(ValueError, match=message):
        eigen_distortion(function, photographs().astype(np.float32), key=jax.random.key(0), steps=steps)


def test_no_images_have_no_distortions():
    result = eigen_distortion(lambda x: x[:, :2, :2], np.zeros((0, 4, 4, 3), np.float32), key=jax.random.key(0))
    assert result.most_noticeable.shape == (0, 4, 4, 3)
