import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jax.tree_util import Partial

from cprl_jax import attacks

DIRECTIONS = {
    "up": attacks.up(),
    "down": attacks.down(),
    "reflect": attacks.reflect([10.0, 90.0, 60.0]),
    "target_free": attacks.target_free(),
}


def images_like_photographs(batch=3, height=6, width=5, seed=0):
    """Random values, with some exactly black and white, as attacks meet them."""
    images = np.random.default_rng(seed).random((batch, height, width, 3), dtype=np.float32)
    images[:, 0, 0], images[:, -1, -1] = 0, 1
    return images


def network(weights, images):
    """A small convolutional network with scores around 50."""
    hidden = jax.lax.conv_general_dilated(
        images - 0.5, weights["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return 50 + jnp.einsum("bhwc,c->b", jnp.tanh(hidden), weights["head"])


def network_weights(seed=0):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(3, 3, 3, 4)).astype(np.float32), "head": rng.normal(size=4).astype(np.float32)}


SCORE = Partial(network, network_weights())


def assert_same(first, second, tolerance=0.0):
    for name, a, b in zip(first._fields, first, second, strict=True):
        np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=tolerance, atol=tolerance, err_msg=name)


# What the attack finds


def test_linear_score_reaches_the_known_optimum():
    weights = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    images = images_like_photographs()
    radius = 4 / 255
    result = attacks.pgd(lambda x: jnp.einsum("bhwc,hwc->b", x, weights), images, radius=radius, direction=attacks.up())
    best = np.clip(images.astype(np.float64) + radius * np.sign(weights), 0, 1)
    np.testing.assert_allclose(result.images, best, atol=1e-7)
    gain = np.sum((best - images) * weights, axis=(1, 2, 3))
    np.testing.assert_allclose(result.after - result.before, gain, rtol=1e-4)


def test_linear_score_l2_changes_by_radius_times_norm():
    weights = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32)
    images = 0.4 + 0.2 * images_like_photographs()  # far from 0 and 1, so that only the ball binds
    result = attacks.pgd(
        lambda x: jnp.einsum("bhwc,hwc->b", x, weights), images, radius=0.3, norm="l2", direction=attacks.down()
    )
    np.testing.assert_allclose(result.before - result.after, np.full(3, 0.3 * np.linalg.norm(weights)), rtol=1e-5)
    np.testing.assert_allclose(result.images, images - 0.3 * weights / np.linalg.norm(weights), atol=1e-6)


def test_quadratic_score_l2_ends_on_the_line_to_its_peak():
    images, peak = 0.4 + 0.2 * images_like_photographs(), np.float32(0.5)
    result = attacks.pgd(
        lambda x: -jnp.sum((x - peak) ** 2, axis=(1, 2, 3)), images, radius=0.2, norm="l2", direction=attacks.up()
    )
    towards = peak - images
    length = np.sqrt(np.sum(towards**2, axis=(1, 2, 3), keepdims=True))
    np.testing.assert_allclose(result.images, images + 0.2 * towards / length, atol=1e-5)


def test_quadratic_score_linf_ends_within_a_step_of_its_peak():
    images, peak = images_like_photographs(), np.float32(0.5)
    radius, step = 0.1, 0.01
    result = attacks.pgd(
        lambda x: -jnp.sum((x - peak) ** 2, axis=(1, 2, 3)),
        images,
        radius=radius,
        steps=30,
        step_size=step,
        direction=attacks.up(),
    )
    best = images + np.clip(peak - images, -radius, radius)
    far = np.abs(peak - images) > radius
    np.testing.assert_allclose(np.asarray(result.images)[far], best[far], atol=1e-6)
    assert np.abs(result.images - best).max() <= step + 1e-6


@pytest.mark.sampled
@pytest.mark.parametrize(("norm", "name"), [*(("linf", name) for name in DIRECTIONS), ("l2", "reflect")])
def test_equals_a_literal_transcription_in_numpy(norm, name):
    """The published update rules in float64, with an analytic gradient."""
    rng = np.random.default_rng(2)
    matrix, head = rng.normal(size=(5, 6 * 5 * 3)) / 4, 8 * rng.normal(size=5)
    images = images_like_photographs().astype(np.float64)
    mos, radius, steps, step_size = np.array([10.0, 90.0, 60.0]), 0.05 if norm == "linf" else 0.5, 7, 0.02

    def score(x):
        return 50 + np.tanh(x.reshape(3, -1) @ matrix.T) @ head

    clean = score(images)
    side = {"up": np.ones(3), "down": -np.ones(3)}
    side["reflect"], side["target_free"] = np.where(mos > 50, -1, 1), np.where(clean > 50, -1, 1)
    attacked = images.copy()
    for _ in range(steps):
        hidden = np.tanh(attacked.reshape(3, -1) @ matrix.T)
        gradient = (side[name][:, None] * ((1 - hidden**2) * head) @ matrix).reshape(images.shape)
        if norm == "linf":
            attacked = attacked + step_size * np.sign(gradient)
            attacked = np.clip(attacked, images - radius, images + radius)
        else:
            length = np.sqrt(np.sum(gradient**2, axis=(1, 2, 3), keepdims=True))
            change = attacked + step_size * 10 * gradient / length - images
            length = np.sqrt(np.sum(change**2, axis=(1, 2, 3), keepdims=True))
            attacked = images + change * np.minimum(1, radius / length)
        attacked = np.clip(attacked, 0, 1)

    with jax.enable_x64(True):
        result = attacks.pgd(
            lambda x: 50 + jnp.tanh(x.reshape(3, -1) @ matrix.T) @ head,
            images,
            radius=radius,
            steps=steps,
            step_size=step_size * (1 if norm == "linf" else 10),
            norm=norm,
            direction=DIRECTIONS[name],
        )
        assert result.images.dtype == np.float64
    # The l2 ball is kept with a margin of 1e-6, which the literal rule does not have.
    np.testing.assert_allclose(result.images, attacked, atol=1e-12 if norm == "linf" else 1e-5)
    np.testing.assert_allclose(result.before, clean, atol=1e-10)
    np.testing.assert_allclose(result.after, score(np.asarray(result.images)), atol=1e-10)


def test_equals_pytorch_on_a_convolutional_network():
    weights, images = network_weights(), images_like_photographs()
    radius, step_size = 4 / 255, 1 / 255
    kernel = torch.tensor(weights["kernel"].transpose(3, 2, 0, 1).copy(), dtype=torch.float64)
    head = torch.tensor(weights["head"], dtype=torch.float64).reshape(1, -1, 1, 1)
    original = torch.tensor(images.transpose(0, 3, 1, 2).copy(), dtype=torch.float64)

    def score(x):
        hidden = torch.tanh(torch.nn.functional.conv2d(x - 0.5, kernel, padding=1))
        return 50 + (hidden * head).sum((1, 2, 3))

    attacked = original.clone()
    for _ in range(10):
        attacked.requires_grad_(True)
        (gradient,) = torch.autograd.grad(score(attacked).sum(), attacked)
        attacked = attacked.detach() + step_size * gradient.sign()
        attacked = torch.minimum(torch.maximum(attacked, original - radius), original + radius).clamp(0, 1)

    with jax.enable_x64(True):
        double = Partial(network, {name: value.astype(np.float64) for name, value in weights.items()})
        result = attacks.pgd(
            double, images.astype(np.float64), radius=radius, step_size=step_size, direction=attacks.up()
        )
    np.testing.assert_allclose(result.images, attacked.numpy().transpose(0, 2, 3, 1), atol=1e-12)
    np.testing.assert_allclose(result.after, score(attacked).numpy(), rtol=1e-12)
    single = attacks.pgd(SCORE, images, radius=radius, step_size=step_size, direction=attacks.up())
    np.testing.assert_allclose(single.after, score(attacked).numpy(), rtol=1e-5)


@pytest.mark.parametrize(("norm", "name"), [("l2", "up"), ("linf", "reflect"), ("l2", "target_free")])
def test_moves_scores_where_the_direction_says(norm, name):
    images = images_like_photographs()
    result = attacks.pgd(SCORE, images, radius=0.02 if norm == "linf" else 0.2, norm=norm, direction=DIRECTIONS[name])
    np.testing.assert_allclose(result.before, network(SCORE.args[0], images), rtol=1e-6)
    np.testing.assert_allclose(result.after, network(SCORE.args[0], result.images), rtol=1e-6)
    rises = {"up": [True] * 3, "reflect": [True, False, False], "target_free": list(np.asarray(result.before) <= 50)}[
        name
    ]
    assert list(np.asarray(result.after) > np.asarray(result.before)) == rises


def test_a_direction_may_be_any_function_of_the_scores():
    images = images_like_photographs()
    ours = attacks.pgd(SCORE, images, radius=0.02, direction=lambda scores, clean: -scores)
    assert_same(ours, attacks.pgd(SCORE, images, radius=0.02, direction=attacks.down()))


def test_clean_scores_stay_those_of_the_clean_image():
    """The squared change of the score has no gradient at the image itself, but has one after a random start."""
    images = images_like_photographs()

    def away(scores, clean):
        return (scores - clean) ** 2

    with pytest.warns(UserWarning, match="3 of 3 images has no gradient"):
        stuck = attacks.pgd(SCORE, images, radius=0.02, direction=away)
    np.testing.assert_array_equal(stuck.zero_gradient_fraction, np.ones(3))
    np.testing.assert_array_equal(stuck.images, images)
    moved = attacks.pgd(SCORE, images, radius=0.02, direction=away, key=jax.random.key(0))
    np.testing.assert_allclose(moved.before, stuck.before, rtol=1e-6)
    assert np.all(np.abs(moved.after - moved.before) > 0.1)


def test_default_step_is_a_quarter_of_the_radius_for_ten_steps():
    images = images_like_photographs()
    explicit = attacks.pgd(SCORE, images, radius=0.02, step_size=0.005, direction=attacks.up())
    assert_same(attacks.pgd(SCORE, images, radius=0.02, direction=attacks.up()), explicit, 1e-6)


# Momentum and restarts


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_momentum_equals_a_literal_transcription_in_numpy(norm):
    """Dong et al., Algorithm 1: the velocity adds up gradients divided by their l1 norm."""
    rng = np.random.default_rng(4)
    matrix, head = rng.normal(size=(5, 90)) / 2, 8 * rng.normal(size=5)
    images = images_like_photographs().astype(np.float64)
    radius, step_size, decay = (0.05, 0.01, 0.9) if norm == "linf" else (0.5, 0.2, 0.9)
    attacked, velocity = images.copy(), np.zeros_like(images)
    for _ in range(8):
        hidden = np.tanh(attacked.reshape(3, -1) @ matrix.T)
        gradient = (((1 - hidden**2) * head) @ matrix).reshape(images.shape)
        velocity = decay * velocity + gradient / np.abs(gradient).sum(axis=(1, 2, 3), keepdims=True)
        if norm == "linf":
            attacked = np.clip(attacked + step_size * np.sign(velocity), images - radius, images + radius)
        else:
            length = np.sqrt(np.sum(velocity**2, axis=(1, 2, 3), keepdims=True))
            change = attacked + step_size * velocity / length - images
            change *= np.minimum(1, radius / np.sqrt(np.sum(change**2, axis=(1, 2, 3), keepdims=True)))
            attacked = images + change
        attacked = np.clip(attacked, 0, 1)
    with jax.enable_x64(True):
        result = attacks.pgd(
            lambda x: jnp.tanh(x.reshape(3, -1) @ matrix.T) @ head,
            images,
            radius=radius,
            steps=8,
            step_size=step_size,
            norm=norm,
            momentum=decay,
            direction=attacks.up(),
        )
    np.testing.assert_allclose(result.images, attacked, atol=1e-12 if norm == "linf" else 1e-5)


def test_momentum_carries_over_a_ridge():
    """A score that falls beyond a narrow ridge: the plain attack turns back there, momentum carries on."""

    def score(images):
        position = jnp.mean(images, axis=(1, 2, 3))
        return jnp.where(position < 0.52, position, 1.04 - position + 4 * jnp.maximum(position - 0.525, 0))

    images = np.full((1, 4, 4, 3), 0.5, np.float32)
    arguments = dict(radius=0.1, steps=20, step_size=0.004, direction=attacks.up())
    plain, heavy = (attacks.pgd(score, images, momentum=momentum, **arguments) for momentum in (0.0, 1.0))
    assert float(plain.max_change[0]) < 0.03 and float(heavy.max_change[0]) > 0.06
    assert float(heavy.after[0]) > float(plain.after[0])


def two_hills(images):
    """A low hill on one side of grey and a high one on the other, for each value."""
    x = images - 0.5
    return jnp.mean(jnp.exp(-(((x + 0.05) / 0.03) ** 2)) + 3 * jnp.exp(-(((x - 0.05) / 0.03) ** 2)), axis=(1, 2, 3))


@pytest.mark.slow
def test_each_image_keeps_its_best_restart():
    images = np.full((4, 2, 1, 3), 0.5, np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    arguments = dict(radius=0.08, steps=5, direction=attacks.up())
    results = [attacks.pgd(two_hills, images, key=keys, restarts=count, **arguments) for count in range(1, 6)]
    after = np.stack([result.after for result in results])
    assert np.all(np.diff(after, axis=0) >= 0), "more restarts are never worse"
    assert np.all(after[-1] > after[0] + 0.1), "and better here"
    assert_same(results[0], attacks.pgd(two_hills, images, key=keys, **arguments))
    for result in results:  # every field belongs to the same attempt
        np.testing.assert_allclose(result.after, two_hills(result.images), rtol=1e-5)
        np.testing.assert_allclose(result.max_change, np.abs(result.images - images).max(axis=(1, 2, 3)))
    lowered = attacks.pgd(two_hills, images, key=keys, restarts=3, radius=0.08, steps=2, direction=attacks.down())
    once = attacks.pgd(two_hills, images, key=keys, radius=0.08, steps=2, direction=attacks.down())
    assert np.all(lowered.after <= once.after)


@pytest.mark.slow
def test_restarts_and_momentum_under_jit_and_vmap():
    images = images_like_photographs()

    def attack(score_fn, images, key):
        return attacks.pgd(
            score_fn, images, radius=0.02, steps=2, momentum=1.0, restarts=3, direction=attacks.down(), key=key
        )

    key = jax.random.key(0)
    eager = attack(SCORE, images, key)
    assert_same(eager, jax.jit(attack)(SCORE, images, key), 1e-5)
    mapped = jax.jit(jax.vmap(attack, in_axes=(None, 0, None)))(SCORE, images[None], key)
    assert_same(eager, mapped, 1e-5)
    gradient = jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in attack(SCORE, x, key)))(images)
    np.testing.assert_array_equal(gradient, np.zeros_like(images))


def test_progress_changes_nothing_but_the_terminal(capfd):
    images = images_like_photographs()
    quiet = attacks.pgd(SCORE, images, radius=0.02, steps=3, direction=attacks.up())
    assert capfd.readouterr() == ("", "")
    shown = attacks.pgd(SCORE, images, radius=0.02, steps=3, direction=attacks.up(), progress=True)
    assert "pgd" in (bar := capfd.readouterr().err) and "3/3" in bar
    assert_same(quiet, shown)
    jax.jit(lambda x: attacks.pgd(SCORE, x, radius=0.02, steps=3, direction=attacks.up(), progress=True))(images)
    assert capfd.readouterr() == ("", "")


# Radius and range


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("start", [None, 0])
def test_radius_zero_gives_the_images_back_bit_for_bit(norm, start):
    images = images_like_photographs()
    images[0, 1, 1] = [-0.0, 1e-40, np.nextafter(np.float32(1), np.float32(0))]
    key = None if start is None else jax.random.key(start)
    result = attacks.pgd(SCORE, images, radius=0, norm=norm, direction=attacks.up(), key=key)
    assert np.asarray(result.images).tobytes() == images.tobytes()
    np.testing.assert_array_equal(result.max_change, np.zeros(3))
    np.testing.assert_array_equal(result.before, result.after)


@pytest.mark.parametrize("start", [None, 0])
def test_linf_radius_and_range_hold_in_exact_arithmetic(start):
    images = images_like_photographs()
    key = None if start is None else jax.random.key(start)
    for radius in [0.5 / 255, 1 / 255, 4 / 255, 0.1, 1 / 3]:
        result = attacks.pgd(SCORE, images, radius=radius, direction=attacks.up(), key=key)
        attacked = np.asarray(result.images, np.float64)
        assert np.abs(attacked - images.astype(np.float64)).max() <= radius
        assert attacked.min() >= 0 and attacked.max() <= 1
        np.testing.assert_array_equal(result.max_change, np.abs(result.images - images).max(axis=(1, 2, 3)))
        assert np.all(np.asarray(result.max_change) > 0.9 * radius)


@pytest.mark.parametrize("start", [None, 0])
def test_l2_radius_and_range_hold(start):
    images = images_like_photographs()
    key = None if start is None else jax.random.key(start)
    for radius in [0.01, 0.3, 2.0]:
        result = attacks.pgd(SCORE, images, radius=radius, norm="l2", direction=attacks.up(), key=key)
        attacked = np.asarray(result.images, np.float64)
        lengths = np.linalg.norm((attacked - images).reshape(3, -1), axis=1)
        assert np.all(lengths <= radius) and np.all(lengths > 0.5 * radius)
        assert attacked.min() >= 0 and attacked.max() <= 1


def test_one_radius_and_step_size_per_image():
    images, radii, steps = images_like_photographs(), np.array([0.0, 0.01, 0.1]), np.array([0.1, 0.002, 0.03])
    together = attacks.pgd(SCORE, images, radius=radii, step_size=steps, direction=attacks.up())
    np.testing.assert_allclose(together.max_change, radii, rtol=1e-5)
    for i in range(3):
        alone = attacks.pgd(SCORE, images[i : i + 1], radius=radii[i], step_size=steps[i], direction=attacks.up())
        np.testing.assert_allclose(together.images[i], alone.images[0], atol=1e-7)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_random_start_fills_the_ball(norm):
    images = np.full((3, 6, 5, 3), 0.5, np.float32)
    key = jax.random.key(0)
    arguments = dict(radius=0.1, steps=1, step_size=0.0, norm=norm, direction=attacks.up())
    change = np.asarray(attacks.pgd(SCORE, images, key=key, **arguments).images) - images
    if norm == "linf":
        assert np.abs(change).max() > 0.099 and abs(np.abs(change).mean() - 0.05) < 0.008
        assert abs(change.mean()) < 0.015
    else:
        lengths = np.linalg.norm(change.reshape(3, -1), axis=1)
        assert np.all(lengths <= 0.1) and np.all(lengths > 0.09)  # in 90 dimensions a ball is nearly all surface
    again = np.asarray(attacks.pgd(SCORE, images, key=key, **arguments).images) - images
    np.testing.assert_array_equal(change, again)
    other = np.asarray(attacks.pgd(SCORE, images, key=jax.random.key(1), **arguments).images) - images
    assert np.abs(change - other).max() > 0.01
    assert np.abs(change[0] - change[1]).max() > 0.01


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_single_precision_stays_single_where_double_is_enabled(norm):
    with jax.enable_x64(True):
        images = np.full((2, 4, 4, 3), 0.5, np.float32)
        options = dict(radius=0.1, norm=norm, direction=attacks.up(), key=jax.random.key(0), steps=2)
        result = attacks.pgd(lambda x: jnp.mean(x, axis=(1, 2, 3)), images, **options)
        assert result.images.dtype == result.after.dtype == np.float32


def test_l2_random_start_is_uniform_over_the_volume():
    """In three dimensions the length has the distribution function (length / radius)^3."""
    images = np.full((2000, 1, 1, 3), 0.5, np.float32)
    result = attacks.pgd(
        lambda x: jnp.sum(x, axis=(1, 2, 3)),
        images,
        radius=0.4,
        norm="l2",
        steps=1,
        step_size=0.0,
        direction=attacks.up(),
        key=jax.random.key(3),
    )
    lengths = np.sort(np.linalg.norm((np.asarray(result.images) - images).reshape(-1, 3), axis=1)) / 0.4
    assert np.abs(lengths**3 - np.arange(1, 2001) / 2000).max() < 1.63 / np.sqrt(2000)  # Kolmogorov-Smirnov, 1 %


def test_start_of_an_image_depends_on_its_key_only():
    images = images_like_photographs()
    keys = jax.random.split(jax.random.key(7), 3)
    arguments = dict(radius=0.02, direction=attacks.up())
    together = attacks.pgd(SCORE, images, key=keys, **arguments)
    for i in range(3):
        alone = attacks.pgd(SCORE, images[i : i + 1], key=keys[i : i + 1], **arguments)
        np.testing.assert_allclose(together.images[i], alone.images[0], atol=1e-7)
    first = attacks.pgd(SCORE, images[:1], key=jax.random.key(1), **arguments)
    whole = attacks.pgd(SCORE, images, key=jax.random.key(1), **arguments)
    np.testing.assert_allclose(first.images[0], whole.images[0], atol=1e-7)
    old_style = attacks.pgd(SCORE, images, key=jax.random.PRNGKey(1), **arguments)
    np.testing.assert_array_equal(old_style.images, whole.images)


# What goes wrong with models


def test_constant_score_is_reported_as_all_zero_gradient():
    images = images_like_photographs()
    with pytest.warns(UserWarning, match="3 of 3 images has no gradient") as caught:
        result = attacks.pgd(lambda x: jnp.zeros(3) + 70, images, radius=0.02, direction=attacks.up())
    assert [warning.filename for warning in caught] == [__file__]
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.ones(3))
    np.testing.assert_array_equal(result.images, images)
    np.testing.assert_array_equal(result.after, np.full(3, 70))


def test_step_function_is_reported_as_all_zero_gradient():
    with pytest.warns(UserWarning, match="attacks.square"):
        result = attacks.pgd(
            lambda x: jnp.mean(jnp.round(8 * x), axis=(1, 2, 3)),
            images_like_photographs(),
            radius=0.02,
            norm="l2",
            direction=attacks.up(),
        )
    np.testing.assert_array_equal(result.zero_gradient_fraction, np.ones(3))


def test_zero_gradient_fraction_counts_values():
    images = np.random.default_rng(0).random((2, 4, 6, 3)).astype(np.float32)
    result = attacks.pgd(
        lambda x: jnp.sum(x[:, :, :2, :1], axis=(1, 2, 3)), images, radius=0.01, direction=attacks.up()
    )
    np.testing.assert_allclose(result.zero_gradient_fraction, [1 - 8 / 72] * 2, rtol=1e-6)
    np.testing.assert_array_equal(result.images[:, :, 2:], images[:, :, 2:])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_gradients_that_are_not_numbers_do_not_spoil_images(norm):
    def score(images):  # the square root has an infinite slope at 0, which times 0 is not a number
        return jnp.sum(images, axis=(1, 2, 3)) + jnp.sum(jnp.sqrt(0.0 * images[:, :2]), axis=(1, 2, 3))

    images = images_like_photographs()
    result = attacks.pgd(score, images, radius=0.02, norm=norm, direction=attacks.up())
    assert np.all(np.isfinite(result.images))
    np.testing.assert_array_equal(result.images[:, :2], images[:, :2])
    np.testing.assert_allclose(result.zero_gradient_fraction, [1 / 3] * 3, rtol=1e-6)
    assert np.all(result.after > result.before)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_l2_steps_survive_tiny_and_huge_gradients(scale):
    images = 0.4 + 0.2 * images_like_photographs()
    result = attacks.pgd(
        lambda x: scale * jnp.sum(x, axis=(1, 2, 3)), images, radius=0.1, norm="l2", direction=attacks.up()
    )
    np.testing.assert_allclose(result.images, images + 0.1 / np.sqrt(90), atol=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_pixel_and_flat_images(norm):
    for images in [np.full((2, 1, 1, 3), 0.5), np.zeros((1, 4, 4, 3)), np.ones((1, 4, 4, 3))]:
        result = attacks.pgd(
            lambda x: jnp.sum(jnp.sin(x), axis=(1, 2, 3)), images, radius=0.1, norm=norm, direction=attacks.up()
        )
        assert result.images.shape == images.shape and result.images.dtype == np.float32
        assert np.all(result.after >= result.before)


# How it is called


def test_images_of_a_batch_do_not_influence_each_other():
    images = images_like_photographs()
    together = attacks.pgd(SCORE, images, radius=0.02, direction=attacks.target_free())
    for i in range(3):
        alone = attacks.pgd(SCORE, images[i : i + 1], radius=0.02, direction=attacks.target_free())
        np.testing.assert_allclose(together.images[i], alone.images[0], atol=1e-7)
        np.testing.assert_allclose(together.after[i], alone.after[0], rtol=1e-6)


@pytest.mark.sampled
@pytest.mark.parametrize(  # up to 16 steps unrolled, above that as a device loop
    ("steps", "norm", "start"), [(10, "linf", None), (3, "l2", 0), (20, "linf", 0), (20, "l2", None)]
)
def test_jit_and_vmap_give_the_same(steps, norm, start):
    images = images_like_photographs()

    def attack(score_fn, images):
        return attacks.pgd(
            score_fn,
            images,
            radius=0.02 if norm == "linf" else 0.3,
            steps=steps,
            norm=norm,
            direction=attacks.reflect([10.0, 90.0, 60.0]),
            key=None if start is None else jax.random.key(start),
        )

    eager = attack(SCORE, images)
    assert_same(eager, jax.jit(attack)(SCORE, images), 1e-6)
    mapped = jax.jit(jax.vmap(attack, in_axes=(None, 0)))(SCORE, np.stack([images, images[::-1]]))
    assert_same(eager, jax.tree.map(lambda leaf: leaf[0], mapped), 1e-6)


@pytest.mark.slow
def test_vmap_over_radii_and_without_jit():
    images = images_like_photographs()
    radii = jnp.array([0.0, 0.01, 0.05])
    mapped = jax.vmap(lambda radius: attacks.pgd(SCORE, images, radius=radius, direction=attacks.up()))(radii)
    for i, radius in enumerate(radii):
        alone = attacks.pgd(SCORE, images, radius=radius, direction=attacks.up())
        assert_same(alone, jax.tree.map(lambda leaf, i=i: leaf[i], mapped), 1e-6)


two_devices = pytest.mark.skipif(jax.local_device_count() < 2, reason="needs two devices")


@pytest.mark.slow
@two_devices
def test_pmap_on_two_devices_gives_the_same():
    images = images_like_photographs(batch=4)
    mos = jnp.array([10.0, 90.0, 60.0, 20.0])

    def attack(score_fn, images, mos):
        return attacks.pgd(score_fn, images, radius=0.02, direction=attacks.reflect(mos))

    split = [leaf.reshape(2, 2, *leaf.shape[1:]) for leaf in (images, mos)]
    mapped = jax.pmap(attack, axis_name="batch", in_axes=(None, 0, 0), devices=jax.local_devices()[:2])(SCORE, *split)
    assert_same(attack(SCORE, images, mos), mapped, 1e-6)


@two_devices
@pytest.mark.parametrize(("check_vma", "steps"), [(True, 2), (True, 20), (False, 2)])
def test_shard_map_on_two_devices_gives_the_same(check_vma, steps):
    images = images_like_photographs(batch=4)
    mos = jnp.array([10.0, 90.0, 60.0, 20.0])

    def attack(score_fn, images, mos):
        return attacks.pgd(score_fn, images, radius=0.02, steps=steps, direction=attacks.reflect(mos))

    mesh = Mesh(np.array(jax.local_devices()[:2]), ("batch",))
    mapped = jax.jit(
        jax.shard_map(
            attack, mesh=mesh, in_specs=(P(), P("batch"), P("batch")), out_specs=P("batch"), check_vma=check_vma
        )
    )(SCORE, images, mos)
    assert_same(attack(SCORE, images, mos), mapped, 1e-6)


@pytest.mark.sampled
@two_devices
@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize("varying", ["nothing", "label", "weights", "key"])
def test_shard_map_with_the_same_images_on_both_devices(varying, steps):
    """The gradient in replicated images must not be summed over the devices that differ in something else."""
    images = images_like_photographs(batch=2)
    mos = jnp.array([10.0, 90.0])
    weights = jax.tree.map(lambda *leaves: np.stack(leaves), network_weights(), network_weights(1))
    keys = jax.random.split(jax.random.key(0), 2)

    def attack(images, mos, weights, keys):
        score_fn = Partial(network, jax.tree.map(lambda leaf: leaf[0], weights))
        key = keys[0] if varying == "key" else None
        return attacks.pgd(score_fn, images, radius=0.02, steps=steps, direction=attacks.reflect(mos[0]), key=key)

    names = ("label", "weights", "key")
    mesh = Mesh(np.array(jax.local_devices()[:2]), ("batch",))
    specs = (P(), *(P("batch") if varying == name else P() for name in names))
    out = P() if varying == "nothing" else P("batch")
    mapped = jax.jit(jax.shard_map(attack, mesh=mesh, in_specs=specs, out_specs=out))(images, mos, weights, keys)
    parts = range(1 if varying == "nothing" else 2)
    for i in parts:
        mine = slice(i, i + 1)
        own = [
            jax.tree.map(lambda leaf, mine=mine: leaf[mine], value) if varying == name else value
            for name, value in zip(names, (mos, weights, keys), strict=True)
        ]
        assert_same(attack(images, *own), jax.tree.map(lambda leaf, i=i: leaf[2 * i : 2 * i + 2], mapped), 1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("steps", [2, 20])
@pytest.mark.parametrize(
    "wrap", [lambda w: Partial(network, w), lambda w: lambda x: network(w, x)], ids=["pytree", "closure"]
)
def test_adversarial_training_sees_the_attack_as_constant(steps, wrap):
    images, weights = images_like_photographs(), network_weights()

    def loss(weights, images):
        result = attacks.pgd(wrap(weights), images, radius=0.02, steps=steps, direction=attacks.up())
        return jnp.mean(network(weights, result.images) ** 2)

    fixed = attacks.pgd(SCORE, images, radius=0.02, steps=steps, direction=attacks.up()).images
    expected = jax.grad(lambda weights: jnp.mean(network(weights, fixed) ** 2))(weights)
    for differentiate in (jax.grad(loss), jax.jit(jax.grad(loss))):
        for name, gradient in differentiate(weights, images).items():
            np.testing.assert_allclose(gradient, expected[name], rtol=2e-4)
    result_sum = jax.grad(lambda x: sum(jnp.sum(leaf) for leaf in attacks.pgd(SCORE, x, radius=0.1, **UP)))
    np.testing.assert_array_equal(result_sum(images), np.zeros_like(images))


UP = {"direction": attacks.up()}


def test_compiles_once_across_calls_with_other_values():
    traces = []

    def counted(weights, images):
        traces.append(images.shape)
        return network(weights, images)

    images = images_like_photographs()
    for seed in range(3):
        score_fn = Partial(counted, network_weights(seed))
        mos = np.random.default_rng(seed).uniform(0, 100, 3)
        for radius in (0.01, 0.02):
            for steps in (3, 10, 20):
                attacks.pgd(score_fn, images + 0, radius=radius, steps=steps, direction=attacks.reflect(mos))
        attacks.fgsm(score_fn, images, radius=0.01, direction=attacks.reflect(mos))
    assert len(traces) == 2  # the step, and the score of the result
    attacks.pgd(score_fn, images[:2], radius=0.01, direction=attacks.up())
    assert len(traces) == 4


@pytest.mark.parametrize("start", [None, 0])
def test_costs_one_gradient_per_step_and_one_evaluation(start):
    runs = []

    def counted(images):
        jax.debug.callback(lambda: runs.append(1))
        return network(network_weights(), images)

    key = None if start is None else jax.random.key(start)
    result = attacks.pgd(counted, images_like_photographs(), radius=0.01, steps=10, direction=attacks.up(), key=key)
    jax.block_until_ready(result)
    jax.effects_barrier()
    assert len(runs) == (11 if start is None else 12)


def test_low_precision_inside_the_score_function():
    def score(images):
        return jnp.mean(images.astype(jnp.bfloat16) ** 2, axis=(1, 2, 3)).astype(jnp.bfloat16)

    result = attacks.pgd(score, images_like_photographs(), radius=0.05, direction=attacks.up())
    assert result.images.dtype == jnp.float32 and result.before.dtype == jnp.bfloat16
    assert np.all(np.asarray(result.after, np.float32) > np.asarray(result.before, np.float32))


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((6, 5, 3), np.float32)}, r"\[batch, height, width, 3\].*\(6, 5, 3\)"),
        ({"images": np.zeros((2, 6, 5, 1), np.float32)}, r"\(2, 6, 5, 1\)"),
        ({"images": np.zeros((2, 6, 5, 3), np.uint8)}, "divide by 255"),
        ({"images": np.zeros((2, 6, 5, 3), np.float16)}, "float32 or float64, got float16"),
        ({"images": np.full((2, 6, 5, 3), 255.0, np.float32)}, "from 255 to 255"),
        ({"images": np.full((2, 6, 5, 3), -0.1, np.float32)}, "from -0.1 to -0.1"),
        ({"images": np.full((2, 6, 5, 3), np.nan, np.float32)}, r"in \[0, 1\]"),
        ({"radius": 4}, r"radius must be in \[0, 1\].*4/255.*got 4"),
        ({"radius": -0.1}, "radius.*-0.1"),
        ({"radius": np.nan}, "radius.*nan"),
        ({"radius": np.inf, "norm": "l2"}, "radius must be finite"),
        ({"radius": np.zeros(3)}, r"one number or one per image: got shape \(3,\) for 2 images"),
        ({"step_size": -1.0}, "step_size"),
        ({"norm": "l1"}, "norm must be 'linf' or 'l2', got 'l1'"),
        ({"steps": 0}, "at least 1, got 0"),
        ({"steps": 2.5}, "whole number.*2.5"),
        ({"restarts": 0}, "restarts must be a whole number of at least 1, got 0"),
        ({"restarts": 3}, "3 restarts without a key"),
        ({"momentum": -1}, "momentum must be a finite Python number of at least 0, got -1"),
        ({"momentum": "heavy"}, "momentum.*'heavy'"),
        ({"direction": attacks.towards([1.0])}, r"towards needs one target per image.*\(1,\)"),
        (
            {"score_fn": lambda x: x},
            r"score_fn must return one float per image, shape \(2,\), got float32 of shape \(2, 6",
        ),
        ({"score_fn": lambda x: jnp.sum(x)}, r"score_fn .* of shape \(\)"),
        ({"score_fn": lambda x: (x, x)}, "score_fn must return one array.*tuple"),
        ({"score_fn": lambda x: jnp.zeros(2, int)}, "int32"),
        ({"direction": lambda s, c: jnp.sum(s)}, r"direction must return one float per image.*shape \(\)"),
        ({"direction": lambda s, c: attacks.up()}, "direction must return one array.*Partial"),
        ({"direction": attacks.reflect([1.0, 2.0, 3.0])}, r"one label per image.*\(3,\).*\(2,\)"),
        ({"direction": attacks.reflect([1.0])}, r"one label per image.*\(1,\)"),
        ({"key": jax.random.split(jax.random.key(0), 3)}, r"one per image.*\(3,\) for 2 images"),
    ],
)
def test_mistakes_are_named(change, message):
    arguments = {
        "score_fn": lambda x: jnp.mean(x, axis=(1, 2, 3)),
        "images": np.zeros((2, 6, 5, 3), np.float32),
        "radius": 0.1,
        "direction": attacks.up(),
    } | change
    with pytest.raises(ValueError, match=message):
        attacks.pgd(arguments.pop("score_fn"), arguments.pop("images"), **arguments)


def test_mistakes_in_shapes_are_found_while_tracing():
    with pytest.raises(ValueError, match="divide by 255"):
        jax.jit(lambda x: attacks.pgd(SCORE, x, radius=0.1, **UP))(np.zeros((1, 4, 4, 3), np.uint8))
