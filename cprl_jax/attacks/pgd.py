"""Projected gradient ascent."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax.attacks._arguments import check_distance, check_images, check_per_image, check_steps
from cprl_jax.attacks._iterate import as_pytree, iterate
from cprl_jax.attacks.projection import l2_norm, project_l2, project_linf
from cprl_jax.attacks.result import AttackResult


def pgd(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    steps: int = 10,
    step_size: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | None = None,
    norm: str = "linf",
    key: Key[Array, ""] | Key[Array, " batch"] | None = None,
) -> AttackResult:
    """Several gradient steps, each followed by a return into the ball around the image and into [0, 1].

    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, with the gradient of the
    direction's objective in place of a classification loss; without a key, the basic iterative method of Kurakin et al.
    (2017). The last iterate is returned, as in both papers, also where an earlier one scored better.
    Costs `steps` gradients and one evaluation of the network, and one evaluation more with a random start.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its own image. See
        `cprl_jax.attacks` on passing functions and their parameters.
      images: float32 or float64 RGB images in [0, 1].
      radius: size of the ball in [0, 1] pixel units, one number or one per image. "linf": the largest change of any
        value, at most 1. "l2": the Euclidean length of the change over all height * width * 3 values of an image, so
        the same root-mean-square change needs a radius that grows with the image's side.
      direction: what to push towards: `up()`, `down()`, `reflect(mos)`, `target_free()`, or a function like them.
      steps: number of gradient steps, at least 1.
      step_size: length of a step in the units of `radius`, one number or one per image; default 2.5 * radius / steps
        (Madry et al.), which is radius / 4 for 10 steps.
      norm: "linf" (steps along the gradient's sign) or "l2" (steps along the gradient, normalised to length 1).
      key: random start, uniform in the ball, from this key; or from one key per image, which makes the start of an
        image independent of its place in the batch. None starts at the image itself.

    Returns:
      `AttackResult`. Values whose gradient is 0 or not a number do not move. The whole result is a constant for
      differentiation: to train on attacked images, evaluate them again.

    Raises:
      ValueError: an argument of the wrong shape or dtype; unless traced, images outside [0, 1] or a negative radius.
    """
    images = check_images(images)
    batch = images.shape[0]
    if norm not in ("linf", "l2"):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}.")
    steps = check_steps(steps)
    radius = check_distance("radius", radius, images, highest=1 if norm == "linf" else np.inf)
    step_size = 2.5 / steps * radius if step_size is None else check_distance("step_size", step_size, images)
    # Nothing flows back, so the attack inside a training step costs no second derivatives.
    images, radius, step_size = lax.stop_gradient((images, radius, step_size))
    score_fn, direction = (jax.tree.map(lax.stop_gradient, as_pytree(function)) for function in (score_fn, direction))

    scores = _evaluate.eval_shape(score_fn, images)
    check_per_image("score_fn", scores, batch)

    start, clean_scores = images, None
    if key is not None:
        start = _random_start(_per_image_keys(key, batch), images, radius.reshape(-1, 1, 1, 1), norm=norm)
        clean_scores = _evaluate(score_fn, images)
    # Made from the images rather than from zeros, so that it is as device-varying as they are under shard_map.
    per_image = jnp.zeros_like(images[:, 0, 0, 0]) * images[:, 0, 0, 0]
    state = _State(start, per_image.astype(scores.dtype), per_image)
    move = Partial(_move_linf if norm == "linf" else _move_l2)
    radius, step_size = radius.reshape(-1, 1, 1, 1), step_size.reshape(-1, 1, 1, 1)
    step = Partial(_step, score_fn, direction, move, images, radius, step_size, clean_scores)
    state = iterate(step, state, steps=steps)

    return lax.stop_gradient(
        AttackResult(
            images=state.images,
            before=state.clean_scores,
            after=_evaluate(score_fn, state.images),
            max_change=jnp.max(jnp.abs(state.images - images), axis=(1, 2, 3)),
            zero_gradient_fraction=state.zero_gradient_fraction,
        )
    )


class _State(NamedTuple):
    images: Float[Array, "batch height width 3"]
    clean_scores: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]


@jax.jit
def _evaluate(score_fn, images):
    """The scores, compiled once for each score function and shape."""
    return score_fn(images)


def _step(score_fn, direction, move, images, radius, step_size, clean_scores, index, state):
    """One step; the first evaluation yields the clean scores too, where they are not given."""

    def objective(position):
        scores = score_fn(position)
        clean = clean_scores
        if clean is None:
            clean = jnp.where(index == 0, lax.stop_gradient(scores), state.clean_scores)
        value = direction(scores, clean)
        check_per_image("direction", value, images.shape[0])
        return jnp.sum(value), clean  # of the sum, because each score depends on its own image only

    gradient, clean = jax.grad(objective, has_aux=True)(state.images)
    # Infinite becomes huge, and a value without a gradient stays where it is instead of spoiling the image.
    gradient = jnp.nan_to_num(lax.stop_gradient(gradient))
    zero_fraction = jnp.mean(gradient == 0, axis=(1, 2, 3), dtype=images.dtype)
    return _State(
        images=move(state.images, gradient, images, radius, step_size),
        clean_scores=clean,
        zero_gradient_fraction=jnp.where(index == 0, zero_fraction, state.zero_gradient_fraction),
    )


def _move_linf(position, gradient, images, radius, step_size):
    return project_linf(position + step_size * jnp.sign(gradient), images, radius)


def _move_l2(position, gradient, images, radius, step_size):
    largest = jnp.max(jnp.abs(gradient), axis=(1, 2, 3), keepdims=True)
    gradient = gradient / jnp.where(largest > 0, largest, 1)  # first, so that no norm overflows or vanishes
    norm = l2_norm(gradient)
    return project_l2(position + step_size * gradient / jnp.where(norm > 0, norm, 1), images, radius)


@partial(jax.jit, static_argnames="norm")
def _random_start(keys, images, radius, *, norm):
    """A point drawn uniformly from the ball, brought into [0, 1]; one key per image."""
    if norm == "linf":
        draw = partial(jax.random.uniform, shape=images.shape[1:], dtype=images.dtype, minval=-1, maxval=1)
        return project_linf(images + radius * jax.vmap(draw)(keys), images, radius)
    dimensions = np.prod(images.shape[1:])

    def draw(key):
        towards, length = jax.random.split(key)
        length = jax.random.uniform(length, dtype=images.dtype) ** (1 / dimensions)
        return length, jax.random.normal(towards, images.shape[1:], images.dtype)

    length, noise = jax.vmap(draw)(keys)
    return project_l2(images + radius * length.reshape(-1, 1, 1, 1) * noise / l2_norm(noise), images, radius)


def _per_image_keys(key, batch):
    typed = jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key)
    axes = jnp.ndim(key) - (0 if typed else 1)  # an old-style key is itself an array of one axis
    if axes == 0:
        # By folding in, so that an image's start does not depend on how many images follow it.
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if axes == 1 and key.shape[0] == batch:
        return key
    raise ValueError(f"key must be one jax.random.key or one per image: got shape {jnp.shape(key)} for {batch} images.")
