"""CPRL's causal intervention: perturbed images that should not change the score, and the loss when they do.

Source: Wang et al., "Causal Perception Inspired Representation Learning for Trustworthy Image Quality Assessment",
Sec. 4.2.1 and Table 1. What the paper leaves open, and what was chosen here, is listed in docs/papers.md.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def intervention(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[Array, "batch height width 3"],
    *,
    epsilon: float | Float[Array, ""],
    steps: int = 1,
    keys: Key[Array, " batch"] | None = None,
) -> Float[Array, "batch height width 3"]:
    """The direction delta_d within the l-inf ball in which the score changes most, scaled to the ball's radius.

    With `steps=1` it is the paper's choice, epsilon * e_d with e_d = sign(grad f(x)) (FGSM on the score itself, no
    label). That gradient says nothing about |f(x + d) - f(x)| beyond first order; with `steps` > 1 the change itself is
    climbed by that many projected steps along the (softened) sign from a random start (one key per image).

    images + result may leave [0, 1]: `perturb` clips. The result is a constant for autodiff.

    Args:
      score_fn: the model being trained, as a function of images in [0, 1].
      images: RGB in [0, 1].
      epsilon: radius in [0, 1] pixel units.
      steps: gradient evaluations.
      keys: a random key for each image; needed for `steps` > 1.

    Raises:
      ValueError: fewer than one step, or several without keys.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    if steps == 1:
        gradient = jax.grad(lambda x: jnp.sum(score_fn(x)))(images)
        return jax.lax.stop_gradient(epsilon * jnp.sign(gradient))
    if keys is None:
        raise ValueError("steps > 1 starts at random points: give keys, one per image")
    noise = jax.vmap(lambda key: jax.random.uniform(key, images.shape[1:], images.dtype, -1.0, 1.0))(keys)
    reference = jax.lax.stop_gradient(score_fn(images))
    delta = perturb(images, epsilon * noise) - images
    # Steps that together cross the ball twice: enough to reach any corner from any start.
    step_size = 2.0 * epsilon / steps
    for _ in range(steps):
        gradient = jax.grad(lambda d: jnp.sum(jnp.abs(score_fn(perturb(images, d)) - reference)))(delta)
        delta = jnp.clip(delta + step_size * _soft_sign(gradient), -epsilon, epsilon)
    return jax.lax.stop_gradient(delta)


def _soft_sign(gradient: Float[Array, "batch height width 3"]) -> Float[Array, "batch height width 3"]:
    """The sign, except close to 0, where it is continuous.

    The sign of a gradient that is mere rounding error is arbitrary. One such pixel of a small crop moves the loss by
    1e-4, and the run would depend on how many devices share it.
    """
    size = jnp.abs(gradient)
    return gradient / (size + 0.01 * jnp.mean(size, axis=(1, 2, 3), keepdims=True) + jnp.finfo(gradient.dtype).tiny)


def perturb(
    images: Float[Array, "batch height width 3"], delta: Float[Array, "batch height width 3"]
) -> Float[Array, "batch height width 3"]:
    """images + delta, clipped to [0, 1]."""
    return jnp.clip(images + delta, 0.0, 1.0)


def magnitudes(keys: Key[Array, " batch"], *, count: int, law: str = "uniform") -> Float[Array, "count batch"]:
    """Draws alpha / epsilon for every image: 'uniform' on [-1, 1] (the paper's P(delta)), or 'edge', always 1.

    Raises:
      ValueError: unknown `law`.
    """
    if law == "edge":
        return jnp.ones((count, keys.shape[0]))
    if law == "uniform":
        return jax.vmap(lambda key: jax.random.uniform(key, (count,), minval=-1.0, maxval=1.0), out_axes=1)(keys)
    raise ValueError(f"law {law!r}; allowed: 'uniform', 'edge'")


def invariance_loss(
    clean: Float[Array, " batch"],
    perturbed: Float[Array, "count batch"],
    *,
    norm: str = "absolute",
    relative: bool = False,
) -> Float[Array, ""]:
    """E over images and deltas of |f(x + delta) - f(x)| (Sec. 4.2.1); both branches receive gradients.

    Args:
      clean: f(x), MOS points.
      perturbed: f(x + delta) for `count` deltas per image.
      norm: 'absolute' (as printed) or 'squared' (as in gradient-norm training).
      relative: divide by the standard deviation of `clean` over the batch (its square for 'squared'), so that the loss
        is free of the scores' scale: shrinking all scores no longer lowers it.

    Raises:
      ValueError: unknown `norm`.
    """
    if norm not in ("absolute", "squared"):
        raise ValueError(f"norm {norm!r}; allowed: 'absolute', 'squared'")
    change = perturbed - clean[None]
    # + 0.01 points squared: finite for a batch of equal scores. A larger constant would make shrinking pay again.
    variance = jnp.mean((clean - jnp.mean(clean)) ** 2) + 0.01
    if norm == "absolute":
        return jnp.mean(jnp.abs(change)) / (jnp.sqrt(variance) if relative else 1.0)
    return jnp.mean(change**2) / (variance if relative else 1.0)
