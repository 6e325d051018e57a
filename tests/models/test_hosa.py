"""HOSA against its published steps, written out in float64 NumPy for one patch and one word after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from skimage import data

from cprl_jax import models
from cprl_jax.models import fitted, hosa
from cprl_jax.models.patches import Whitening
from cprl_jax.runtime.errors import UserError

WORDS = 8


@pytest.fixture(scope="module")
def images():
    """Two of photographs; a ramp, all of whose patches are alike; a flat one."""
    ramp = np.broadcast_to(np.arange(18)[:, None, None] * 8, (18, 20, 3))
    natural = data.astronaut()[40:58, 130:150], data.coffee()[150:168, 300:320]
    return np.stack([*natural, ramp, np.full_like(ramp, 100)]).astype(np.float64) / 255


@pytest.fixture(scope="module")
def params():
    generator = np.random.default_rng(0)
    return {
        "mean": generator.normal(0, 0.1, 49),
        "whitening": np.eye(49) + generator.normal(0, 0.1, (49, 49)),
        "means": generator.normal(0, 0.7, (WORDS, 49)),
        "variances": generator.uniform(0.5, 1.5, (WORDS, 49)),
        "skewnesses": generator.normal(0, 0.5, (WORDS, 49)),
        "weights": generator.normal(0, 1, 3 * WORDS * 49),
        "offset": np.array(0.7),
    }


@pytest.fixture
def network(config_model):
    """A module of 8 words and its score function, for parameters in float64."""

    def make(params, **changes):
        block = {"words": WORDS, "patches": 10_000}
        module = models.create(config_model("hosa", backbone="", hosa=block, **changes))
        variables = {"params": {name: jnp.asarray(value, jnp.float32) for name, value in params.items()}}
        return module, models.score_fn(module, variables)

    return make


def literal_patches(image, params):
    grey = 255 * (0.2989 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2])
    found = []
    for row in range(image.shape[0] - 6):
        for column in range(image.shape[1] - 6):
            patch = grey[row : row + 7, column : column + 7].reshape(-1)
            patch = (patch - patch.mean()) / np.sqrt(patch.var(ddof=1) + 10)
            found.append((patch - params["mean"]) @ params["whitening"])
    return found


def literal_differences(found, params):
    members = [[] for _ in params["means"]]  # of each word: its patches and their weights
    for patch in found:
        distances = [np.sum((patch - word) ** 2) for word in params["means"]]
        nearest = np.argsort(distances)[:5]
        kernel = [np.exp(-0.05 * distances[word]) for word in nearest]
        for word, weight in zip(nearest, kernel, strict=True):
            members[word].append((patch, weight / sum(kernel)))
    differences = np.zeros((3, len(members), 49))
    for word, own in enumerate(members):
        total = sum(weight for _, weight in own)
        if not own:
            continue
        mean = sum(weight * patch for patch, weight in own) / total
        differences[0, word] = mean - params["means"][word]
        variance = sum(weight * (patch - mean) ** 2 for patch, weight in own) / total
        if variance.sum() > 1e-6:
            third = sum(weight * (patch - mean) ** 3 for patch, weight in own) / total
            differences[1, word] = variance - params["variances"][word]
            differences[2, word] = third / (variance**1.5 + 1e-4) - params["skewnesses"][word]
    return differences


def literal_score(image, params):
    differences = literal_differences(literal_patches(image, params), params).reshape(-1)
    powers = np.sign(differences) * np.abs(differences) ** 0.2
    return powers / np.linalg.norm(powers) @ params["weights"] + params["offset"]


def codebook_of(params, dtype=jnp.float32):
    return hosa.Codebook(*(jnp.asarray(params[name], dtype) for name in hosa.Codebook._fields))


def test_differences_are_those_of_the_published_steps(images, params):
    found = literal_patches(images[0], params)
    compared = jax.jit(hosa.differences)(jnp.asarray(found, jnp.float32), codebook_of(params))
    np.testing.assert_allclose(compared, literal_differences(found, params), atol=1e-4)


def test_scores_are_those_of_the_published_steps(images, params, network):
    expected = [3 + 2 * literal_score(image, params) for image in images]
    _, score_fn = network(params, score_mean=3.0, score_std=2.0)
    scores = jax.jit(score_fn)(jnp.asarray(images, jnp.float32))
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)


def test_words_without_patches_and_with_patches_that_are_all_alike(params):
    """The first have no differences; the others differ in the mean only. Of fewer than five words, all are near."""
    near = np.stack([params["means"][0] + 0.1, *params["means"][1:5]])
    book = {**params, "means": np.concatenate([near, params["means"][5:] + 100.0])}
    compiled = jax.jit(hosa.differences)
    same = np.asarray(compiled(jnp.tile(jnp.asarray(near[:1], jnp.float32), (168, 1)), codebook_of(book)))
    np.testing.assert_allclose(same[0, :5], near[:1] - near, atol=1e-5)
    assert not same[1:].any() and not same[:, 5:].any()
    few = {name: params[name][:3] for name in hosa.Codebook._fields}
    found = np.random.default_rng(1).normal(size=(20, 49))
    compared = compiled(jnp.asarray(found, jnp.float32), codebook_of(few))
    np.testing.assert_allclose(compared, literal_differences(found, few), atol=1e-4)


def test_gradients_are_the_slopes_between_changes_of_the_nearest_words(images, params):
    with jax.enable_x64(True):
        codebook = codebook_of(params, jnp.float64)
        whitening = Whitening(jnp.asarray(params["mean"]), jnp.asarray(params["whitening"]))
        module = hosa.HOSA(words=WORDS)

        @jax.jit
        @jax.value_and_grad
        def line(x):
            return jnp.sum(module.features_of(x, whitening, codebook) @ jnp.asarray(params["weights"]))

        x = jnp.asarray(images[:1, :12, :12])
        direction = jnp.asarray(np.random.default_rng(2).normal(size=x.shape))
        step = 1e-9
        slope = (line(x + step * direction)[0] - line(x - step * direction)[0]) / (2 * step)
        np.testing.assert_allclose(jnp.sum(line(x)[1] * direction), slope, rtol=1e-4)


def test_smallest_images_have_finite_gradients_and_do_not_influence_each_other(images, params, network):
    """One patch each: natural, a ramp, flat, half white, black and white ones. `test_fitted.py` has larger ones."""
    _, score_fn = network(params)
    small = images[:, :7, :7]
    half = np.where(np.arange(7)[:, None, None] < 3, 1.0, small[0])
    batch = jnp.asarray(np.stack([*small, half, np.zeros_like(half), np.ones_like(half)]), jnp.float32)

    def total(batch):
        scores = score_fn(batch)
        return jnp.sum(scores), scores

    compiled = jax.jit(jax.grad(total, has_aux=True))
    gradients, scores = compiled(batch)
    assert np.isfinite(scores).all() and np.isfinite(gradients).all()
    assert np.abs(gradients[:2]).max(axis=(1, 2, 3)).min() > 0
    np.testing.assert_allclose(scores[:2], [literal_score(image, params) for image in small[:2]], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(scores[-2:], scores[3], atol=1e-3)  # whatever its level, a flat image has no pattern
    alone, again = compiled(jnp.zeros_like(batch).at[0].set(batch[0]))
    np.testing.assert_allclose(again[0], scores[0], rtol=1e-5)
    np.testing.assert_allclose(alone[0], gradients[0], rtol=1e-3, atol=1e-4 * np.abs(gradients[0]).max())


def test_codebooks_describe_the_patches_of_each_word():
    generator = np.random.default_rng(3)
    samples, labels = generator.gamma(2.0, size=(300, 49)), generator.integers(0, 2, 300)
    centres = generator.normal(size=(3, 49))
    means, variances, skewnesses = hosa.describe(samples, labels, centres)
    for word in range(2):
        members = samples[labels == word]
        np.testing.assert_allclose(means[word], members.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(variances[word], members.var(axis=0), rtol=1e-5)
        np.testing.assert_allclose(skewnesses[word], stats.skew(members), rtol=1e-3)
    np.testing.assert_allclose(means[2], centres[2], rtol=1e-6)  # of which there is no patch
    assert not variances[2].any() and not skewnesses[2].any()


def test_fits_tell_noise_from_blur(network):
    """Twenty pictures, of which every second one is smooth."""
    generator = np.random.default_rng(4)
    rough = generator.integers(0, 256, (20, 20, 20, 3))
    smooth = np.kron(generator.integers(0, 256, (20, 5, 5, 3)), np.ones((1, 4, 4, 1)))
    is_rough = np.arange(20) % 2 == 1
    pictures = np.where(is_rough[:, None, None, None], rough, smooth).astype(np.uint8)
    mos = np.where(is_rough, 30.0, 70.0) + generator.uniform(-5, 5, 20)
    train, validation = (
        fitted.Images(pictures[at], mos[at], np.arange(20)[at]) for at in np.split(np.arange(20), [14])
    )
    module, _ = network({}, score_mean=50.0, score_std=20.0)
    variables, numbers = models.NETWORKS["hosa"].fit(module, train, validation, seed=0)
    assert numbers["validation_srcc"] > 0.6
    scores = jax.jit(models.score_fn(module, variables))(jnp.asarray(pictures, jnp.float32) / 255)
    assert scores[~is_rough].min() > scores[is_rough].max()


def test_more_words_than_patches_are_refused(config_model):
    config = config_model("hosa", backbone="", hosa={"words": 500, "patches": 10})
    part = fitted.Images(np.zeros((8, 12, 12, 3), np.uint8), np.linspace(20.0, 80.0, 8), np.arange(8))
    parts = part, part._replace(scenes=np.arange(8, 16))
    with pytest.raises(UserError, match="config.model.hosa.words is 500, but the training images give 288 patches"):
        models.NETWORKS["hosa"].fit(models.create(config), *parts, seed=0)
