"""Checks of an attack's arguments, which also bring them into one form."""

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def check_images(images: Any) -> jax.Array:
    """The images as a JAX array.

    Raises:
      ValueError: not [batch, height, width, 3], not float32 or float64, or not in [0, 1]. The range is checked when the
        values are known (not while tracing), which waits for them once.
    """
    images = images if isinstance(images, jax.Array) else np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must be [batch, height, width, 3] (RGB), got shape {images.shape}.")
    if images.dtype == np.uint8:
        raise ValueError("images must be floats in [0, 1], got uint8: divide by 255.")
    if images.dtype not in (np.float32, np.float64):
        # Half precision is coarser than 8-bit images near white, so that a small radius could not be kept.
        raise ValueError(
            f"images must be float32 or float64, got {images.dtype}: convert them, and let the score function "
            "compute in lower precision inside if needed."
        )
    images = jnp.asarray(images)
    if not isinstance(images, jax.core.Tracer) and images.size:
        with jax.ensure_compile_time_eval():
            lowest, highest, spoiled = np.asarray(_extremes(images)).tolist()
        if spoiled:
            raise ValueError(
                f"images must be in [0, 1], found values that are not finite numbers (NaN or infinite) in {spoiled:g} "
                f"of {len(images)} images: leave those out."
            )
        if lowest < 0 or highest > 1:
            raise ValueError(
                f"images must be in [0, 1], found values from {lowest:g} to {highest:g}: {_remedy(lowest, highest)}."
            )
    return images


@jax.jit
def _extremes(images):
    """The least and the largest value, and the number of images with values that are not finite."""
    # Counted, because XLA's minimum and maximum over an array pass over NaN on a CPU.
    return jnp.stack([jnp.min(images), jnp.max(images), jnp.sum(~all_finite(images), dtype=images.dtype)])


def all_finite(images: jax.Array) -> jax.Array:
    """Whether each image consists of finite numbers, [batch]."""
    return jnp.all(jnp.isfinite(images), axis=tuple(range(1, images.ndim)))


def _remedy(lowest, highest):
    """How values of this range are brought into [0, 1]; `cprl_jax.fidelity` says the same."""
    if lowest >= 0 and highest > 2:
        return "divide values in 0..255 by 255 (images / 255)"
    if lowest >= -1 and highest <= 1:
        return "bring values in [-1, 1] into it by (images + 1) / 2"
    return "clip what lies outside, or rescale"


def check_distance(name: str, value: Any, images: jax.Array, *, highest: float = np.inf) -> jax.Array:
    """A radius or step size as [batch] of the images' dtype, rounded down from Python's and NumPy's float64.

    Raises:
      ValueError: neither a number nor one per image, or (unless traced) not within [0, highest].
    """
    value = check_one_per_image(name, value, images)
    if not isinstance(value, jax.core.Tracer):
        value = np.asarray(value, np.float64)
        if not np.all((value >= 0) & (value <= highest) & np.isfinite(value)):
            limit = f"in [0, {highest:g}]" if np.isfinite(highest) else "finite and at least 0"
            raise ValueError(f"{name} must be {limit} (in pixel units: 4/255 is four grey levels), got {value}.")
        rounded = value.astype(images.dtype)
        value = np.where(rounded > value, np.nextafter(rounded, images.dtype.type(0)), rounded)
    return jnp.broadcast_to(jnp.asarray(value, images.dtype), images.shape[:1])


def check_one_per_image(name: str, value: Any, images: jax.Array) -> jax.Array | np.ndarray:
    """A number, or numbers [batch], as an array of its own dtype.

    Raises:
      ValueError: another shape, or no numbers.
    """
    if not isinstance(value, jax.Array):
        value = np.asarray(value)
    if not jnp.issubdtype(value.dtype, jnp.number):
        raise ValueError(f"{name} must be one number or one per image, such as 4 / 255 without quotes: got {value!r}.")
    batch = images.shape[0]
    if value.shape not in ((), (batch,)):
        raise ValueError(f"{name} must be one number or one per image: got shape {value.shape} for {batch} images.")
    return value


def check_finite(name: str, value: Any) -> jax.Array:
    """Numbers as a JAX array of their own dtype.

    Raises:
      ValueError: unless traced, numbers that are NaN or infinite: compared with a score they would decide something.
    """
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value)):
        finite = np.isfinite(np.asarray(value, np.float64))
        if not finite.ndim and not finite:
            raise ValueError(f"{name} must be a finite number, got {value}.")
        if not finite.all():
            wrong = finite.size - finite.sum()
            raise ValueError(f"{name} must be finite, {wrong} of {finite.size} are not: leave those images out.")
    return jnp.asarray(value)


def check_count(name: str, value: Any, *, at_least: int = 1) -> int:
    """A number of steps, draws or the like as an int.

    Raises:
      ValueError: not a whole number, or less than `at_least`.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = at_least - 1
    if count < at_least:
        raise ValueError(f"{name} must be a whole number of at least {at_least}, got {value!r}.")
    return count


def check_number(name: str, value: Any) -> float:
    """A finite number of at least 0 as a float.

    Raises:
      ValueError: anything else, also a value that is being traced: the compiled step depends on it.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, jax.errors.ConcretizationTypeError):
        number = np.nan
    if not 0 <= number < np.inf:
        raise ValueError(f"{name} must be a finite Python number of at least 0, got {value!r}.")
    return number


def check_per_image(what: str, value: Any, batch: int) -> None:
    """Raises ValueError unless the value (an array or its description) is one floating-point number per image."""
    if not (hasattr(value, "shape") and hasattr(value, "dtype")):
        raise ValueError(f"{what} must return one array of shape ({batch},), got {type(value).__name__}.")
    if value.shape != (batch,) or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            f"{what} must return one float per image, shape ({batch},), got {value.dtype} of shape {value.shape}."
        )


def per_image_keys(key: Any, batch: int) -> jax.Array:
    """One key per image: the keys themselves, or one folded out of a single key for each place in the batch.

    Folding in keeps the draws of an image independent of how many images follow it.

    Raises:
      ValueError: neither one key nor one per image, new style (`jax.random.key`) or old (`jax.random.PRNGKey`).
    """
    typed = jnp.issubdtype(jnp.result_type(key), jax.dtypes.prng_key)
    axes = jnp.ndim(key) - (0 if typed else 1)  # an old-style key is itself an array of one axis
    if axes == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch))
    if axes == 1 and key.shape[0] == batch:
        return key
    raise ValueError(
        f"key must be one jax.random.key(seed) or one per image: got {type(key).__name__} of shape {jnp.shape(key)} "
        f"for {batch} images."
    )
