"""The gradient attacks beside foolbox's, on the same network and in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import attacks

foolbox = pytest.importorskip("foolbox")
eagerpy = pytest.importorskip("eagerpy")


def network(weights, images):
    """Two layers of convolutions with scores around 50."""
    hidden = images - 0.5
    for kernel in weights["kernels"]:
        hidden = jax.lax.conv_general_dilated(
            hidden, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        hidden = jnp.tanh(hidden)
    return 50 + jnp.einsum("bhwc,c->b", hidden, weights["head"])


def problem():
    rng = np.random.default_rng(0)
    weights = {"kernels": [rng.normal(size=(3, 3, 3, 4)), rng.normal(size=(3, 3, 4, 4))], "head": rng.normal(size=4)}
    return Partial(network, jax.tree.map(jnp.asarray, weights)), jnp.asarray(rng.random((3, 8, 8, 3)))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_agrees(norm, sign):
    base, radius = (foolbox.attacks.LinfPGD, 8 / 255) if norm == "linf" else (foolbox.attacks.L2PGD, 1.0)

    class ScoreAttack(base):
        def get_loss_fn(self, model, labels):
            return lambda inputs: sign * eagerpy.astensor(model(inputs.raw)).sum()

    with jax.enable_x64(True):
        score_fn, images = problem()
        theirs = ScoreAttack(abs_stepsize=radius / 4, steps=10, random_start=False).run(
            foolbox.JAXModel(score_fn, bounds=(0, 1)),
            images,
            foolbox.criteria.Misclassification(jnp.zeros(len(images), int)),
            epsilon=radius,
        )
        expected = np.asarray(score_fn(theirs))
        direction = attacks.up() if sign > 0 else attacks.down()
        ours = attacks.pgd(score_fn, images, radius=radius, steps=10, norm=norm, direction=direction)
        assert ours.after.dtype == np.float64
    np.testing.assert_allclose(ours.after, expected, atol=1e-4)
    np.testing.assert_allclose(ours.images, theirs, atol=1e-12 if norm == "linf" else 1e-5)
    assert np.all(np.abs(ours.after - ours.before) > 1)


def test_fgsm_agrees():
    class ScoreAttack(foolbox.attacks.FGSM):
        def get_loss_fn(self, model, labels):
            return lambda inputs: eagerpy.astensor(model(inputs.raw)).sum()

    with jax.enable_x64(True):
        score_fn, images = problem()
        theirs = ScoreAttack().run(
            foolbox.JAXModel(score_fn, bounds=(0, 1)),
            images,
            foolbox.criteria.Misclassification(jnp.zeros(len(images), int)),
            epsilon=4 / 255,
        )
        ours = attacks.fgsm(score_fn, images, radius=4 / 255, direction=attacks.up())
    np.testing.assert_allclose(ours.images, theirs, atol=1e-12)
