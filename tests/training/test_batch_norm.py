"""Batch normalisation by running averages: what a batch's own statistics hide, and how the averages follow."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.models.common import InputNormalization, Standardization, batch_norm
from cprl_jax.training.batch_norm import running_statistics, step_of_averages, uses_batch_norm


class NormalizedLinear(nn.Module):
    """Batch normalisation and a linear layer."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        x = InputNormalization(name="input")(images).reshape(images.shape[0], -1)
        x = batch_norm(x, name="norm", train=train, dtype=jnp.float32, axis_name=None)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(1, name="head")(x)[:, 0]


class Linear(nn.Module):
    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(1)(InputNormalization(name="input")(images).reshape(images.shape[0], -1))[:, 0]


def batch(seed, size=6):
    return np.random.default_rng(seed).uniform(0, 1, (size, 3, 3, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def variables():
    return NormalizedLinear().init(jax.random.key(0), batch(0))


def scores(variables, images, **options):
    return NormalizedLinear(**options).apply(
        variables, images, True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
    )


@pytest.mark.slow
def test_a_batch_hides_the_common_shift_from_the_gradient_and_running_averages_do_not(variables):
    gradient = jax.grad(lambda images: jnp.sum(scores(variables, images)[0]))
    found = {"batch": gradient(batch(1))}
    with running_statistics():
        found["running"] = gradient(batch(1))
    deployed = jax.grad(lambda images: jnp.sum(NormalizedLinear().apply(variables, images)))(batch(1))
    np.testing.assert_allclose(found["running"], deployed, rtol=1e-6)
    assert np.abs(found["batch"]).max() < 1e-5 * np.abs(deployed).max()  # 0 but for rounding


def test_other_layers_stay_in_training_mode_and_averages_do_not_move(variables):
    with running_statistics():
        values, updated = scores(variables, batch(1), dropout=0.5)
    assert not np.allclose(values, NormalizedLinear().apply(variables, batch(1)))
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], variables["batch_stats"])


def test_networks_with_and_without_batch_normalisation(variables):
    assert uses_batch_norm(lambda: scores(variables, batch(1)))
    plain = Linear().init(jax.random.key(0), batch(0))
    assert not uses_batch_norm(lambda: Linear().apply(plain, batch(1), True))


def test_averages_are_the_mean_of_the_first_ten_batches_then_move_by_a_tenth(variables):
    """Against NumPy; the constants of the input normalisation (a `mean` and a `std`) stay as they are."""
    old, means, variances = variables["batch_stats"], [], []
    offset, scale = (np.asarray(old["input"][name]).reshape(1, 1, 1, 3) for name in ("mean", "std"))
    step = jax.jit(lambda old, images, step: step_of_averages(old, pass_of(old, images), step=step))

    def pass_of(batch_stats, images):
        return scores({**variables, "batch_stats": batch_stats}, images)[1]["batch_stats"]

    for number in range(12):
        x = ((batch(number) - offset) / scale).reshape(6, -1)
        means.append(x.mean(axis=0))
        variances.append(x.var(axis=0))
        before, old = old, step(old, batch(number), number)
        if number < 10:
            expected = np.mean(means, axis=0), np.mean(variances, axis=0)
        else:
            expected = (
                0.9 * before["norm"]["mean"] + 0.1 * means[-1],
                0.9 * before["norm"]["var"] + 0.1 * variances[-1],
            )
        np.testing.assert_allclose(old["norm"]["mean"], expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(old["norm"]["var"], expected[1], rtol=1e-5)
        jax.tree.map(np.testing.assert_array_equal, old["input"], variables["batch_stats"]["input"])


def test_variables_of_other_layers_are_what_the_pass_made_of_them():
    """`Standardization` counts the batches that it averages itself."""

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = batch_norm(x, name="norm", train=train, dtype=jnp.float32, axis_name=None)
            return Standardization(name="standardization")(x, train)

    x = jnp.asarray(batch(0).reshape(6, -1))
    variables = Both().init(jax.random.key(0), x)
    old, updated = variables["batch_stats"], Both().apply(variables, x, True, mutable=["batch_stats"])[1]["batch_stats"]
    new = step_of_averages(old, updated, step=jnp.int32(0))
    assert new["standardization"]["count"] == 1
    jax.tree.map(np.testing.assert_array_equal, new["standardization"], updated["standardization"])
    np.testing.assert_allclose(new["norm"]["mean"], np.mean(x, axis=0), rtol=1e-5)  # ten times as far
