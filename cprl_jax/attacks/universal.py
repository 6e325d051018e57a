"""One perturbation for all images."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from cprl_jax.attacks._radii import over_radii
from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_per_image
from cprl_jax.attacks.directions import alternatives, constant, up
from cprl_jax.attacks.gradients import as_constant, evaluate_per_image
from cprl_jax.attacks.loop import is_traced
from cprl_jax.attacks.projection import project_linf
from cprl_jax.attacks.result import AttackResult, finish, largest_change, mark_not_finite, warn_if_gradient_is_zero

# How the 8-bit files of published patterns are read: pattern = value / 255 - offset.
PNG_OFFSETS = {"published": 0.5, "msu": 0.1}


class UniversalPerturbation(NamedTuple):
    """A pattern that is added to any image, tiled from its top left corner; a pytree, so it goes through jit and pmap.

    Attributes:
      pattern: what is added, in [0, 1] pixel units.
      radius: largest size that a value of the pattern may have, max |pattern| <= radius.
    """

    pattern: Float[Array, "height width 3"]
    radius: Float[Array, ""]

    def apply(
        self,
        images: Float[ArrayLike, "batch image_height image_width 3"],
        radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | None = None,
    ) -> Float[Array, "batch image_height image_width 3"]:
        """The perturbed images, clip(x + pattern * radius / self.radius, 0, 1), as constants for differentiation.

        The published x' = clip(x + 10 * amplitude * pattern) of a pattern with bound 0.1 is `radius=amplitude`. (That
        code then cuts off, rather than rounds, to 8 bits; here images remain floats.)

        Args:
          images: float32 or float64 RGB images in [0, 1] of any size: smaller ones get the top left of the pattern.
          radius: rescales the pattern to this largest change, in [0, 1] pixel units, kept exactly; one number or one
            per image. None leaves the pattern as it is.

        Raises:
          ValueError: images or a radius of the wrong shape, dtype or range.
        """
        images = check_images(images)
        radius = check_distance("radius", self.radius if radius is None else radius, images, highest=1)
        added = _add(*lax.stop_gradient((self, images, radius)))
        return lax.stop_gradient(mark_not_finite(added, images))

    def attack(
        self,
        score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
        images: Float[ArrayLike, "batch height width 3"],
        *,
        radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence | None = None,
    ) -> AttackResult:
        """`apply` in the form of an attack, so that it is evaluated like the others; two evaluations of the network.

        With the score function that the pattern was made from it is a white-box attack, with another one a black box
        by transfer.

        Args:
          score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
          images: float32 or float64 RGB images in [0, 1].
          radius: as in `apply`, or a list of several: every part of the result then has a first axis for them.

        Returns:
          `AttackResult`, constant for differentiation, without a `zero_gradient_fraction` (None): no gradient was
          asked for. (Whether there was one when the pattern was made, `universal` says.)

        Raises:
          ValueError: an argument of the wrong shape, dtype or range.
        """
        images = lax.stop_gradient(check_images(images))
        score_fn = as_constant(score_fn)
        before = evaluate_per_image("score_fn", score_fn, images)

        def attack_one(radius):
            attacked = self.apply(images, radius)
            after, change = evaluate_per_image("score_fn", score_fn, attacked), largest_change(attacked, images)
            return AttackResult(attacked, before, after, change, zero_gradient_fraction=None)

        return finish(over_radii(attack_one, radius), images)

    def save(self, path: str | os.PathLike, *, encoding: str = "published") -> None:
        """Writes the perturbation to a file, which is complete or not there.

        Args:
          path: '.npz' keeps it exactly. '.png' is an 8-bit picture, value = (pattern + offset) * 255 rounded towards
            the offset: values lose up to 1/255, and stay within the radius where it is at least 0.5/255.
          encoding: how a PNG stores the pattern, see `from_png`.

        Raises:
          ValueError: another suffix, an unknown encoding, or a pattern that it cannot hold.
        """
        path, pattern = Path(path), np.asarray(self.pattern)
        if path.suffix == ".npz":
            # NumPy's format knows no bfloat16.
            arrays = {name: np.asarray(value) for name, value in (("pattern", pattern), ("radius", self.radius))}
            arrays = {name: a.astype(np.float32) if a.dtype.kind == "V" else a for name, a in arrays.items()}
            _write(path, lambda file: np.savez(file, **arrays))
        elif path.suffix == ".png":
            offset = _offset(encoding)
            if not np.all(np.abs(pattern) <= offset + 1e-6):  # also when there are values that are not numbers
                raise ValueError(
                    f"{path}: encoding {encoding!r} holds values within {offset} of 0, the pattern has "
                    f"{np.abs(pattern).max():g}; save it as .npz."
                )
            middle = offset * 255
            # The tolerance keeps values that are already on the grid, up to the rounding of float32.
            steps = pattern.astype(np.float64) * 255
            values = np.where(steps > 0, np.floor(middle + steps + 1e-4), np.ceil(middle + steps - 1e-4))
            picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
            _write(path, lambda file: picture.save(file, format="PNG"))
        else:
            raise ValueError(f"{path}: a universal perturbation is saved as .npz or .png.")

    @classmethod
    def load(cls, path: str | os.PathLike) -> "UniversalPerturbation":
        """Reads what `save` wrote to an .npz file.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is something else; the message names the file.
        """
        path = Path(path)
        if path.suffix == ".png":
            raise ValueError(f"{path}: read PNG files with UniversalPerturbation.from_png(path, encoding=...).")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                pattern, radius = arrays["pattern"], arrays["radius"]
        except FileNotFoundError:
            raise
        except Exception as error:  # zipfile, zlib and NumPy each have their own
            raise ValueError(f"{path} is no universal perturbation that `save` wrote: {error}.") from error
        return cls._checked(path, pattern, radius)

    @classmethod
    def from_png(
        cls, path: str | os.PathLike, *, encoding: str = "published", radius: float | None = None
    ) -> "UniversalPerturbation":
        """Reads a pattern from an 8-bit RGB picture.

        Args:
          path: path of the picture.
          encoding: 'published': pattern = value / 255 - 0.5, as Shumitskaya et al. distribute the pattern for PaQ-2-PiQ
            (256x256, bound 0.1). 'msu': pattern = value / 255 - 0.1, as the MSU robustness benchmark does.
          radius: the bound of the pattern, which `apply` rescales by; None takes its largest value.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is no 8-bit RGB picture, or exceeds `radius`, or an unknown encoding; the message names the
            file.
        """
        path, offset = Path(path), _offset(encoding)
        try:
            with Image.open(path) as picture:
                mode, values = picture.mode, np.asarray(picture)
        except (UnidentifiedImageError, SyntaxError, EOFError) as error:
            raise ValueError(f"{path} is no picture: {error}.") from error
        except OSError as error:
            if error.errno is not None:  # the file system's, which name the file
                raise
            raise ValueError(f"{path} is a damaged picture: {error}.") from error
        if mode != "RGB":
            raise ValueError(f"{path} has mode {mode}; a pattern is an 8-bit RGB picture.")
        pattern = (values / 255 - offset).astype(np.float32)
        return cls._checked(path, pattern, np.abs(pattern).max() if radius is None else np.float32(radius))

    @classmethod
    def _checked(cls, path, pattern, radius) -> "UniversalPerturbation":
        if pattern.ndim != 3 or pattern.shape[-1] != 3 or not pattern.size or pattern.dtype.kind != "f":
            raise ValueError(
                f"{path}: a pattern is floats [height, width, 3], got {pattern.dtype} of shape {pattern.shape}."
            )
        if radius.shape != () or radius.dtype.kind != "f" or not 0 <= radius <= 1:
            raise ValueError(f"{path}: the radius must be one float in [0, 1], got {radius}.")
        if not np.all(np.abs(pattern) <= radius + 1e-6):  # also when there are values that are not numbers
            raise ValueError(
                f"{path}: the pattern must be within its radius of {radius:g}, found {np.abs(pattern).max():g}."
            )
        return cls(jnp.asarray(pattern), jnp.asarray(radius))


def universal(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    batches: Iterable[Float[ArrayLike, "batch height width 3"]] | Callable[[], Iterator],
    *,
    radius: Float[ArrayLike, ""],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]] | None = None,
    epochs: int = 5,
    step_size: Float[ArrayLike, ""] | None = None,
    step: str = "sign",
    size: int | tuple[int, int] | None = None,
    key: Key[Array, ""] | None = None,
    progress: bool = False,
) -> UniversalPerturbation:
    """The pattern that, added to every image, moves the scores of all of them on average.

    Shumitskaya, Antsiferova & Vatolin, "Universal Perturbation Attack on Differentiable No-Reference Image- and
    Video-Quality Metrics", BMVC 2022: gradient ascent on the mean of the direction's objective over a batch, one step
    for every batch, each followed by a return into [-radius, radius]; the images are clipped to [0, 1] before they are
    scored. Costs one gradient per image and epoch.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      batches: float32 or float64 RGB images in [0, 1], batch by batch: a list, any iterable that can be iterated
        once per epoch, or a function that returns an iterator for the next epoch (shuffled, say). Each shape of
        batch compiles once.
      radius: largest change of any value in [0, 1] pixel units, at most 1; one number.
      direction: what to push towards; default `up()`. With `away()` a pattern is made for each way, at twice the cost,
        and the one that moves the scores more is returned.
      epochs: how often to go through all batches, at least 1.
      step_size: length of a step, in pixel units for "sign" steps; default radius / 10, which needs at least 10 steps
        to get from 0 to the radius. For "gradient" steps there is no default, because it depends on the scale of the
        scores: the MSU benchmark has 1 for scores in [0, 1].
      step: "sign" (along the sign of the gradient) or "gradient" (along the gradient itself).
      size: size of the pattern in pixels, a number or (height, width); default that of the first batch's images. The
        pattern is tiled over larger images and cut off for smaller ones, here as in `apply`.
      key: starts at a pattern drawn uniformly from [-radius, radius]; None starts at 0.
      progress: shows a progress bar that counts the batches; it stands still while tracing.

    Returns:
      `UniversalPerturbation`, constant for differentiation, of the images' dtype. A warning says when images had no
      gradient to follow.

    Raises:
      ValueError: an argument or a batch of the wrong shape, dtype or range, no batches at all, or an iterator (which
        cannot be iterated twice) for more than one epoch.
    """
    if step not in ("sign", "gradient"):
        raise ValueError(f"step must be 'sign' or 'gradient', got {step!r}.")
    if step == "gradient" and step_size is None:
        raise ValueError("step='gradient' needs a step_size: it depends on the scale of the scores.")
    epochs = check_count("epochs", epochs)
    if epochs > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"batches is an iterator, which ends after the first of {epochs} epochs: give a list, or a function that "
            "returns an iterator."
        )
    if getattr(batches, "ndim", None) == 4:
        raise ValueError(f"batches must be several batches, got one of shape {batches.shape}: put it into a list.")
    score_fn = as_constant(score_fn)
    direction = constant(direction or up())
    ways = alternatives(direction)
    if len(ways) > 1 and isinstance(batches, Iterator):
        raise ValueError("batches is an iterator, and this direction goes through it several times: give a list.")
    fit = partial(
        _fit,
        score_fn,
        batches,
        radius=radius,
        epochs=epochs,
        step_size=step_size,
        step=step,
        size=size,
        key=key,
        progress=progress,
    )
    fits = [fit(way) for way in ways]
    best, zero_fractions = fits[0]
    if len(fits) > 1:
        totals = [
            sum(_objective(score_fn, direction, candidate, check_images(images)) for images in _one_epoch(batches))
            for candidate, _ in fits
        ]
        which = jnp.argmax(jnp.stack(totals))
        best = jax.tree.map(lambda *leaves: jnp.stack(leaves)[which], *(candidate for candidate, _ in fits))
    warn_if_gradient_is_zero(zero_fractions)
    return lax.stop_gradient(best)


def _one_epoch(batches):
    return batches() if callable(batches) else batches


def _fit(score_fn, batches, direction, *, radius, epochs, step_size, step, size, key, progress):
    """A pattern for one direction, and the share of each image's values without a gradient in the first epoch."""
    perturbation, zero_fractions = None, []
    with tqdm(desc="universal", unit="batch", dynamic_ncols=True, disable=not progress) as bar:
        for epoch in range(epochs):
            count = 0
            for images in _one_epoch(batches):
                images = lax.stop_gradient(check_images(images))
                if not len(images):
                    raise ValueError(f"batch {count + 1} of epoch {epoch + 1} has no images: leave it out.")
                if perturbation is None:
                    perturbation, step_size = _start(images, size, radius, step_size, key)
                perturbation, fraction = _step(score_fn, direction, perturbation, images, step_size, step=step)
                if epoch == 0:
                    zero_fractions.append(fraction)
                count += 1
                if progress and not is_traced(perturbation):
                    jax.block_until_ready(perturbation)  # so that the bar shows what is done, not what is asked for
                    bar.update()
            if not count:
                raise ValueError(f"batches gave nothing in epoch {epoch + 1} of {epochs}.")
    return perturbation, jnp.concatenate(zero_fractions)


def _start(images, size, radius, step_size, key):
    """The first pattern and the step size, from the shape and dtype of the first batch."""
    if size is None:
        size = images.shape[1:3]
    height, width = (check_count("size", side) for side in ((size, size) if np.ndim(size) == 0 else size))
    for name, value in (("radius", radius), ("step_size", step_size)):
        if np.ndim(value):
            raise ValueError(f"{name} of a universal perturbation must be one number, got shape {np.shape(value)}.")
    radius = check_distance("radius", radius, images[:1], highest=1)[0]
    step_size = radius / 10 if step_size is None else check_distance("step_size", step_size, images[:1])[0]
    # Made from the images rather than from zeros, so that it is as device-varying as they are under shard_map.
    pattern = jnp.zeros((height, width, 3), images.dtype) + 0 * jnp.nan_to_num(images[0, 0, 0, 0])
    if key is not None:
        pattern = pattern + jax.random.uniform(key, pattern.shape, pattern.dtype, -radius, radius)
    radius, step_size = lax.stop_gradient((radius, step_size))
    return UniversalPerturbation(jnp.clip(pattern, -radius, radius), radius), step_size


@partial(jax.jit, static_argnames="step")
def _step(score_fn, direction, perturbation, images, step_size, *, step):
    """One step on one batch; also the share of each image's values without a gradient."""
    pattern, radius = perturbation
    batch = images.shape[0]

    def objective(shift):
        clean_scores = score_fn(images)  # XLA drops this where the direction does not need it
        check_per_image("score_fn", clean_scores, batch)
        value = direction(score_fn(jnp.clip(images + shift, 0, 1)), lax.stop_gradient(clean_scores))
        check_per_image("direction", value, batch)
        return jnp.sum(value)  # each score depends on its image alone

    # With respect to each image, so that one without a usable gradient does not spoil the others.
    shift = _tile(pattern, images.shape[1:3])
    gradient = jnp.nan_to_num(jax.grad(objective)(jnp.broadcast_to(shift, images.shape)))
    (mean,) = jax.linear_transpose(Partial(_tile, size=images.shape[1:3]), pattern)(jnp.mean(gradient, axis=0))
    moved = pattern + step_size * (jnp.sign(mean) if step == "sign" else jnp.nan_to_num(mean))
    zero_fraction = jnp.mean(gradient == 0, axis=(1, 2, 3), dtype=images.dtype)
    return UniversalPerturbation(jnp.clip(moved, -radius, radius), radius), zero_fraction


def _tile(pattern, size):
    """The pattern repeated from the top left corner over an image of that size."""
    (height, width), (rows, columns) = size, pattern.shape[:2]
    return jnp.tile(pattern, (-(-height // rows), -(-width // columns), 1))[:height, :width]


@jax.jit
def _add(perturbation, images, radius):
    pattern, bound = (leaf.astype(images.dtype) for leaf in perturbation)
    radius = radius.reshape(-1, 1, 1, 1)
    scale = radius / jnp.where(bound > 0, bound, 1)
    return project_linf(images + scale * _tile(pattern, images.shape[1:3])[None], images, radius)


@jax.jit
def _objective(score_fn, direction, perturbation, images):
    """The direction's objective, summed over the images that have one."""
    return jnp.nansum(direction(score_fn(_add(perturbation, images, perturbation.radius)), score_fn(images)))


def _offset(encoding):
    if encoding not in PNG_OFFSETS:
        raise ValueError(f"encoding must be one of {', '.join(map(repr, PNG_OFFSETS))}, got {encoding!r}.")
    return PNG_OFFSETS[encoding]


def _write(path, write):
    """Writes under another name and moves, so that the file is complete or not there."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
        try:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)  # as open() makes them, not private like a temporary file
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
