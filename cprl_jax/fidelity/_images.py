"""What every measure does with its two batches of images first: check them, and bring them into one float type."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_TOLERANCE = 1e-3  # how far outside of [0, 1] float error (of a resize in half precision, say) may lead


def check_pair(images: Any, references: Any, *, channels: tuple[int, ...] = ()) -> tuple[jax.Array, jax.Array]:
    """Both as JAX arrays of one dtype: half precision becomes float32, the rest the wider of the two.

    NaN and infinite values pass: see `not_finite_is_nan`.

    Raises:
      ValueError: not [batch, height, width, channels], not floats, of different shapes, without pixels, or (where
        `channels` names the allowed numbers) of another number of channels; unless traced, finite values outside
        [0, 1], which waits for the values once.
    """
    images, references = _as_floats("images", images), _as_floats("references", references)
    if images.shape != references.shape:
        raise ValueError(f"images and references must have one shape, got {images.shape} and {references.shape}.")
    if 0 in images.shape[1:]:
        raise ValueError(f"images must have at least one pixel and one channel, got shape {images.shape}.")
    if channels and images.shape[-1] not in channels:
        allowed = " or ".join("3 channels (RGB)" if count == 3 else f"{count} channel" for count in channels)
        raise ValueError(f"images must have {allowed}, got {images.shape[-1]}.")
    _check_range(images=images, references=references)
    with jax.numpy_dtype_promotion("standard"):  # so that two float types meet here and nowhere else
        dtype = jnp.promote_types(jnp.promote_types(images.dtype, references.dtype), jnp.float32)
    return images.astype(dtype), references.astype(dtype)


def not_finite_is_nan(values: jax.Array, images: jax.Array, references: jax.Array) -> jax.Array:
    """The values [batch], and with them their gradients, as NaN where an image or its reference holds NaN or infinity.

    A maximum, a comparison or a row that is left out could otherwise pass over them, and give equal images' value.
    """
    finite = jnp.all(jnp.isfinite(images) & jnp.isfinite(references), axis=(1, 2, 3))
    return values * jnp.where(finite, 1, jnp.nan).astype(values.dtype)


def check_gray(gray: str | None, channels: int) -> None:
    """Raises ValueError for an unknown `gray`, or one that the number of channels does not allow."""
    if gray not in (None, "float", "uint8"):
        raise ValueError(f"gray must be None, 'float' or 'uint8', got {gray!r}.")
    if gray is not None and channels != 3:
        raise ValueError(f"gray needs 3 channels (RGB), got {channels}.")


def to_gray(images: jax.Array, gray: str | None) -> jax.Array:
    """The images compared under the option `gray`, which is described at `ssim`."""
    return images if gray is None else luma(images, rounded=gray == "uint8")


def luma(images: jax.Array, *, rounded: bool = False) -> jax.Array:
    """0.299 R + 0.587 G + 0.114 B (ITU-R BT.601) of [..., 3] as [..., 1]; rounded to 256 levels, halves up, or not."""
    red, green, blue = jnp.split(images, 3, axis=-1)
    if not rounded:
        return 0.299 * red + 0.587 * green + 0.114 * blue
    # In whole thousandths of a grey level: exact for images that come from 8 bits, also half-way between two levels.
    red, green, blue = jax.lax.optimization_barrier((255 * red, 255 * green, 255 * blue))
    thousandths = 299 * red + 587 * green + 114 * blue
    return jnp.floor((thousandths + 500) / 1000) / 255


def average_squares(images: jax.Array, side: int) -> jax.Array:
    """Means over squares of side x side pixels of [batch, height, width, channels]; what is left over is dropped."""
    batch, height, width, channels = images.shape
    height, width = height // side, width // side
    squares = images[:, : height * side, : width * side].reshape(batch, height, side, width, side, channels)
    return jnp.mean(squares, axis=(2, 4))


def safe_sqrt(values: jax.Array) -> jax.Array:
    """The square root of values >= 0, with derivative 0 at 0: the least of its subgradients in the pixels behind it."""
    positive = ~(values <= 0)  # so that NaN stays NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def _check_range(**batches: jax.Array) -> None:
    known = {name: batch for name, batch in batches.items() if not isinstance(batch, jax.core.Tracer) and batch.size}
    if not known:
        return
    with jax.ensure_compile_time_eval():
        extremes = np.asarray(_extremes(tuple(known.values())))
    for name, (lowest, highest) in zip(known, extremes.tolist(), strict=True):
        if lowest < -_TOLERANCE or highest > 1 + _TOLERANCE:
            raise ValueError(
                f"{name} must be in [0, 1], found values from {lowest:g} to {highest:g}: "
                f"{_remedy(name, lowest, highest)}."
            )


@jax.jit
def _extremes(batches):
    """The least finite value of each batch, or 1, and the largest, or 0: enough to see what lies outside [0, 1]."""
    return jnp.stack([_extremes_of(batch.astype(jnp.float32)) for batch in batches])


def _extremes_of(batch):
    finite = jnp.isfinite(batch)
    return jnp.stack([jnp.min(batch, initial=1, where=finite), jnp.max(batch, initial=0, where=finite)])


def _remedy(name, lowest, highest):
    """How values of this range are brought into [0, 1]; `cprl_jax.attacks` says the same."""
    if lowest >= 0 and highest > 2:
        return f"divide values in 0..255 by 255 ({name} / 255)"
    if lowest >= -1 - _TOLERANCE and highest <= 1 + _TOLERANCE:
        return f"bring values in [-1, 1] into it by ({name} + 1) / 2"
    return "clip what lies outside, or rescale"


def _as_floats(name: str, values: Any) -> jax.Array:
    values = values if isinstance(values, jax.Array) else np.asarray(values)
    if values.ndim != 4:
        raise ValueError(f"{name} must be [batch, height, width, channels], got shape {values.shape}.")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"{name} must be floats in [0, 1], got {values.dtype}: divide 8-bit images by 255.")
    return jnp.asarray(values)
