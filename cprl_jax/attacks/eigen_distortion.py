"""Eigen-distortions: the changes of an image that a model notices most and least."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax.attacks.arguments import check_count, check_images, per_image_keys
from cprl_jax.attacks.gradients import as_constant, dot, evaluate, per_image, unit
from cprl_jax.attacks.loop import iterate
from cprl_jax.attacks.result import mark_not_finite


class EigenDistortions(NamedTuple):
    """Extremal eigenvectors of J^T J, for the Jacobian J of each image; a pytree, constant for differentiation.

    Attributes:
      most_noticeable: direction of Euclidean length 1 that changes the features most.
      least_noticeable: direction of Euclidean length 1 that changes the features least.
      largest: eigenvalue of `most_noticeable`, ||J e||^2: the squared change of the features per squared length.
      smallest: eigenvalue of `least_noticeable`, at least 0.
      largest_residual: ||J^T J e - eigenvalue e|| as a share of `largest`: how far from an eigenvector; 0 is exact.
      smallest_residual: the same for `least_noticeable`, also as a share of `largest`.
    """

    most_noticeable: Float[Array, "batch height width 3"]
    least_noticeable: Float[Array, "batch height width 3"]
    largest: Float[Array, " batch"]
    smallest: Float[Array, " batch"]
    largest_residual: Float[Array, " batch"]
    smallest_residual: Float[Array, " batch"]


def eigen_distortion(
    function: Callable[[Float[Array, "batch height width 3"]], Float[Array, "batch ..."]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    key: Key[Array, ""] | Key[Array, " batch"],
    steps: int = 50,
    progress: bool = False,
) -> EigenDistortions:
    """The distortions of a given length that change a model's features most and least.

    Berardino et al., "Eigen-Distortions of Hierarchical Representations", NeurIPS 2017: under Gaussian noise in the
    features, J^T J is the Fisher information matrix, and the ratio of the two eigenvalues' roots predicts the ratio of
    the visibility thresholds.

    For features, the Lanczos method with full reorthogonalisation, from Jacobian-vector and vector-Jacobian products:
    the best directions of the whole space of `steps` dimensions that power iteration walks through, so it is never
    behind the paper's power iteration with as many products. The largest eigenvalue takes few steps. The smallest takes
    many, up to as many as there are features: see its residual, and read `smallest` as an upper bound. With as many
    steps as an image has values, both are exact up to rounding. Memory grows by the size of one image a step.

    For one number per image (a score), both are exact without iterating: the gradient, with the eigenvalue
    ||gradient||^2, and a random direction at right angles to it, with the eigenvalue 0 (Section 3.3 of Zhang et al.,
    NeurIPS 2022). The gradient's sign is kept: the score grows along it. Otherwise signs have no meaning.

    Args:
      function: images [batch, height, width, 3] in [0, 1] to features [batch, ...] or scores [batch], those of an image
        a function of that image alone; differentiable forwards and backwards (no `jax.custom_vjp`).
      images: float32 or float64 RGB images in [0, 1].
      key: for the random start of the iteration; one key, or one per image.
      steps: dimension of the Lanczos method's space; not more than an image's number of values are used.
      progress: show a progress bar on the terminal.

    Returns:
      `EigenDistortions`. To see one, add it with a length that makes it visible: images + length * most_noticeable.

    Raises:
      ValueError: an argument of the wrong shape or dtype; unless traced, images outside [0, 1].
    """
    images = check_images(images)
    batch, size = images.shape[0], int(np.prod(images.shape[1:]))
    steps = min(check_count("steps", steps), size)
    keys = per_image_keys(key, batch)
    images = lax.stop_gradient(images)
    function = as_constant(function)
    features = evaluate.eval_shape(function, images)
    is_array = hasattr(features, "shape") and hasattr(features, "dtype")
    if not is_array or not jnp.issubdtype(features.dtype, jnp.floating) or features.shape[:1] != (batch,):
        actual = f"{features.dtype} of shape {features.shape}" if is_array else type(features).__name__
        raise ValueError(f"function must return floats [batch, ...] with batch {batch}, got {actual}.")

    if int(np.prod(features.shape[1:])) == 1:
        return lax.stop_gradient(mark_not_finite(_of_scores(function, images, keys), images))
    noise = evaluate(Partial(_noise), keys, images)
    # The last direction is the next step's; one more than there are is never used.
    basis = jnp.zeros((steps + 1, *images.shape), images.dtype).at[0].set(noise)
    state = _State(basis, jnp.zeros((steps, batch), images.dtype), jnp.zeros((steps, batch), images.dtype))
    lanczos = Partial(_step, function, images, noise)
    state = iterate(lanczos, state, steps=steps, progress="eigen-distortion" if progress else "")
    return lax.stop_gradient(mark_not_finite(_extremes(function, images, state), images))


class _State(NamedTuple):
    basis: Float[Array, "steps_and_next batch height width 3"]
    diagonal: Float[Array, "steps batch"]
    off_diagonal: Float[Array, "steps batch"]


def _step(function, images, noise, index, state):
    """Makes the next direction of the basis, and the coefficients of J^T J in it."""
    current = state.basis[index]
    product = _product(function, images, current)
    diagonal = dot(current, product)
    rest = _orthogonal(_orthogonal(product, state.basis), state.basis)
    length = jnp.sqrt(dot(rest, rest))
    # Where nothing but rounding is left, the space so far is closed under J^T J. Its complement is still to be seen
    # (it is where the least noticeable direction lies if there are few features), so continue with a random one:
    # the start's values in another order, which saves a draw at every step and is as independent of it.
    scale = jnp.sqrt(dot(product, product))
    closed = length <= 100 * jnp.finfo(images.dtype).eps * jnp.maximum(scale, jnp.max(jnp.abs(state.diagonal), axis=0))
    fresh = _shifted(noise, index + 1)
    following = jnp.where(per_image(closed), _orthogonal(_orthogonal(fresh, state.basis), state.basis), rest)
    following = unit(_orthogonal(unit(following), state.basis))
    return _State(
        basis=state.basis.at[index + 1].set(following),
        diagonal=state.diagonal.at[index].set(diagonal),
        off_diagonal=state.off_diagonal.at[index].set(jnp.where(closed, 0, length)),
    )


@jax.jit
def _extremes(function, images, state):
    steps = state.diagonal.shape[0]
    diagonal = jax.vmap(jnp.diag)(state.diagonal.T)
    beside = state.off_diagonal[: steps - 1].T
    beside = jax.vmap(lambda values: jnp.diag(values, 1) + jnp.diag(values, -1))(beside) if steps > 1 else 0
    _, vectors = jnp.linalg.eigh(diagonal + beside)

    def direction(coefficients):
        return unit(jnp.einsum("sbhwc,bs->bhwc", state.basis[:steps], coefficients, precision=lax.Precision.HIGHEST))

    most, least = direction(vectors[:, :, -1]), direction(vectors[:, :, 0])
    largest, largest_residual = _rayleigh(function, images, most)
    smallest, smallest_residual = _rayleigh(function, images, least)
    unit_of_residuals = jnp.where(largest > 0, largest, 1)
    return EigenDistortions(
        most, least, largest, smallest, largest_residual / unit_of_residuals, smallest_residual / unit_of_residuals
    )


@jax.jit
def _of_scores(function, images, keys):
    features, pullback = jax.vjp(function, images)
    (gradient,) = pullback(jnp.ones_like(features))
    noise = _noise(keys, images)
    flat = per_image(jnp.max(jnp.abs(gradient), axis=(1, 2, 3)) == 0)
    most = jnp.where(flat, noise, unit(gradient))  # with no gradient, every direction is an eigenvector
    other = jnp.where(flat, _shifted(noise, 1), noise)
    least = other
    for _ in range(2):  # once more, because rounding leaves a little of the first
        least = unit(least - per_image(dot(least, most)) * most)
    nothing = jnp.zeros_like(images[:, 0, 0, 0])
    return EigenDistortions(most, least, dot(gradient, gradient), nothing, nothing, nothing)


def _product(function, images, direction):
    """J^T J v for each image."""
    _, pullback = jax.vjp(function, images)
    _, change = jax.jvp(function, (images,), (direction,))
    return pullback(change)[0]


def _rayleigh(function, images, direction):
    """||J v||^2, which rounding cannot make negative, and how far v is from an eigenvector."""
    _, change = jax.jvp(function, (images,), (direction,))
    change = change.reshape(change.shape[0], math.prod(change.shape[1:]))
    value = dot(change, change).astype(images.dtype)
    rest = _product(function, images, direction) - per_image(value) * direction
    return value, jnp.sqrt(dot(rest, rest))


def _orthogonal(direction, basis):
    """The direction without its components in the basis, whose unused entries are 0."""
    precision = lax.Precision.HIGHEST
    components = jnp.einsum("sbhwc,bhwc->sb", basis, direction, precision=precision)
    return direction - jnp.einsum("sbhwc,sb->bhwc", basis, components, precision=precision)


def _noise(keys, images):
    """A random direction of length 1 for each image."""
    return unit(jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys))


def _shifted(noise, shift):
    return jnp.roll(noise.reshape(noise.shape[0], math.prod(noise.shape[1:])), shift, axis=1).reshape(noise.shape)
