"""Networks that are fitted: their features batch by batch, and their parameters from files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models import fitted
from cprl_jax.runtime.errors import UserError

SIZES = {"niqe": 96}  # pixels a side: the least that it takes
FITTED = [name for name, network in models.NETWORKS.items() if network.fit is not None]
SLOW = ("niqe", "ilniqe")
CASES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in FITTED]


def pictures(count, size, seed=0):
    """Blurred noise, each with another blur: uint8."""
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        rough = generator.integers(0, 256, (size // (1 + number % 4) + 1,) * 2 + (3,))
        made.append(np.kron(rough, np.ones((1 + number % 4,) * 2 + (1,)))[:size, :size])
    return np.stack(made).astype(np.uint8)


@pytest.fixture(scope="module")
def made():
    """Every fitted network, fitted to a few pictures, by its name: module, variables."""
    import ml_collections

    cache = {}

    def make(name):
        if name not in cache:
            mask = {"rate": 0.0, "min_channels": 0, "stages": (), "selection": "fast"}
            options = {"cornia": {"words": 20, "patches": 100}}
            config = ml_collections.ConfigDict(
                {"name": name, "backbone": "", "weights": "", "dtype": "float32", "dropout": 0.0}
                | {"score_mean": 50.0, "score_std": 20.0, "sort_mask": mask, name: options.get(name, {})}
            )
            module = models.create(config)
            images = pictures(20, SIZES.get(name, 24))
            mos = 20.0 + 15.0 * (np.arange(20) % 4)
            parts = (fitted.Images(images[at], mos[at], np.arange(20)[at]) for at in (slice(14), slice(14, None)))
            pristine = [*pictures(4, 480, seed=1)]
            variables, numbers = models.NETWORKS[name].fit(module, *parts, pristine=lambda: pristine, seed=0)
            assert all(np.isfinite(value) for value in numbers.values())
            cache[name] = config, module, variables
        return cache[name]

    return make


@pytest.mark.parametrize("name", CASES)
def test_images_do_not_influence_each_other_and_gradients_are_finite(name, made):
    """Natural, flat, black, white, half saturated; the smallest image there may be is its own case."""
    _, module, variables = made(name)
    score_fn = models.score_fn(module, variables)
    size = SIZES.get(name, 24)
    natural = pictures(2, size, seed=2).astype(np.float32) / 255
    half = np.where(np.arange(size)[:, None, None] < size // 2, 1.0, natural[0])
    flat = np.full_like(half, 0.4)
    images = jnp.asarray(np.stack([*natural, half, flat, np.zeros_like(flat), np.ones_like(flat)]), jnp.float32)

    def total(images):
        scores = score_fn(images)
        return jnp.sum(scores), scores

    compiled = jax.jit(jax.grad(total, has_aux=True))
    gradients, scores = compiled(images)
    assert scores.shape == (6,) and np.isfinite(scores).all() and np.isfinite(gradients).all()
    assert np.abs(gradients[:2]).max() > 0 and np.ptp(scores[:2]) > 0
    alone, again = compiled(jnp.concatenate([images[:1], jnp.zeros_like(images[1:])]))
    np.testing.assert_allclose(again[0], scores[0], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(alone[0], gradients[0], rtol=1e-2, atol=1e-3 * np.abs(gradients[0]).max())


@pytest.mark.parametrize("name", CASES)
def test_files_are_read_as_they_were_written(name, made, tmp_path):
    config, module, variables = made(name)
    models.save_weights(tmp_path / "weights.npz", variables)
    unfitted = models.initialize(module, jax.random.key(0), SIZES.get(name, 24))
    read = models.load_weights(unfitted, tmp_path / "weights.npz", config_model=config)
    assert jax.tree.structure(read) == jax.tree.structure(jax.tree.map(np.asarray, dict(variables)))
    jax.tree.map(np.testing.assert_array_equal, read["params"], dict(variables["params"]))
    first = next(iter(sorted(variables["params"])))
    arrays = {f"params/{key}": value for key, value in variables["params"].items()}
    for changed, message in (
        ({**arrays, "params/more": np.ones(1)}, "params/more is unknown; is config.model that of this file"),
        ({key: value for key, value in arrays.items() if key != f"params/{first}"}, f"params/{first} is missing"),
        ({**arrays, f"params/{first}": np.nan * arrays[f"params/{first}"]}, f"params/{first} .* finite numbers"),
        ({**arrays, f"params/{first}": np.ones((1, 1, 1))}, f"params/{first} of shape .*1, 1, 1.*axes"),
    ):
        np.savez(tmp_path / "changed.npz", **changed)
        with pytest.raises(UserError, match=f"changed.npz: {message}"):
            models.load_weights(unfitted, tmp_path / "changed.npz", config_model=config)


def test_results_of_batches_are_joined_without_what_fills_the_last():
    images = np.random.default_rng(0).integers(0, 256, (11, 1, 4, 5, 3), dtype=np.uint8)
    found = fitted.each_batch(lambda batch: jnp.mean(batch, axis=(1, 2)), images, what="means")
    np.testing.assert_allclose(found, images[:, 0].mean(axis=(1, 2)) / 255, rtol=1e-6)
