import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from cprl_jax import attacks
from cprl_jax.attacks._radii import over_radii


def curved(weights, images):
    return 50 + 10 * jnp.tanh(jnp.einsum("bhwc,hwc->b", images - 0.5, weights))


SCORE = Partial(curved, np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32))
IMAGES = np.random.default_rng(1).random((3, 4, 5, 3)).astype(np.float32)
KEY = jax.random.key(0)
ATTACKS = {
    "fgsm": (attacks.fgsm, dict(direction=attacks.up())),
    "pgd": (attacks.pgd, dict(direction=attacks.away(), steps=2, key=KEY, restarts=2)),
    "score_reflection": (attacks.score_reflection, dict(steps=2)),
    "square": (attacks.square, dict(direction=attacks.up(), queries=5, key=KEY)),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_several_radii_are_the_single_ones_stacked(name):
    attack, options = ATTACKS[name]
    radii = [0.0, 1 / 255, 0.1]
    together = attack(SCORE, IMAGES, radius=radii, **options)
    assert together.images.shape == (3, 3, 4, 5, 3) and together.after.shape == (3, 3)
    for i, radius in enumerate(radii):
        alone = attack(SCORE, IMAGES, radius=radius, **options)
        for field, a, b in zip(alone._fields, together, alone, strict=True):
            if a is not None or b is not None:  # the share of values without a gradient, where none is asked for
                np.testing.assert_array_equal(a[i], b, err_msg=field)
    assert np.asarray(together.images[0]).tobytes() == IMAGES.tobytes()


def test_forms_of_several_radii():
    values = [0.01, 0.05]
    expected = attacks.fgsm(SCORE, IMAGES, radius=values, direction=attacks.up()).images
    per_image = np.tile(np.array(values)[:, None], 3)
    for radius in (tuple(values), np.array(values)[:, None], jnp.array(values)[:, None], per_image, list(per_image)):
        images = attacks.fgsm(SCORE, IMAGES, radius=radius, direction=attacks.up()).images
        np.testing.assert_allclose(images, expected, atol=1e-7)
    traced = jax.jit(lambda radius: attacks.fgsm(SCORE, IMAGES, radius=radius, direction=attacks.up()).images)
    np.testing.assert_allclose(traced(jnp.array(values)[:, None]), expected, atol=1e-7)


def test_an_array_is_one_radius_per_image_and_a_list_is_not():
    assert attacks.fgsm(SCORE, IMAGES, radius=np.array([0.1, 0.2, 0.3]), direction=attacks.up()).after.shape == (3,)
    assert attacks.fgsm(SCORE, IMAGES, radius=[0.1, 0.2, 0.3], direction=attacks.up()).after.shape == (3, 3)


def test_several_radii_compile_once():
    traces = []

    def counted(images):
        traces.append(1)
        return jnp.mean(images, axis=(1, 2, 3))

    attacks.pgd(counted, IMAGES, radius=[0.01, 0.02, 0.03], direction=attacks.up())
    assert len(traces) == 2


def test_one_warning_for_all_radii():
    with pytest.warns(UserWarning, match="6 of 6 images") as caught:
        attacks.fgsm(lambda x: jnp.zeros(3), IMAGES, radius=[0.01, 0.02], direction=attacks.up())
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("radius", "message"),
    [([], "radius is an empty list"), ([0.1, -0.1], "radius"), (np.zeros((2, 2)), r"shape \(2,\) for 3 images")],
)
def test_mistakes_are_named(radius, message):
    with pytest.raises(ValueError, match=message):
        attacks.fgsm(SCORE, IMAGES, radius=radius, direction=attacks.up())


def test_any_tree_of_results_is_stacked():
    result = over_radii(lambda radius: {"radius": jnp.float32(radius), "twice": (2 * jnp.ones(2) * radius,)}, [1, 2])
    np.testing.assert_array_equal(result["radius"], [1, 2])
    np.testing.assert_array_equal(result["twice"][0], [[2, 2], [4, 4]])
