"""Scores with a certificate: how far can any l2 attack move the median score under Gaussian noise?

    smoothed = certify.median_smoothing(score_fn, images, sigma=0.12, samples=1000, key=jax.random.key(0))
    smoothed.score                            # [batch]: the scores of the smoothed model
    lower, upper = smoothed.bounds(0.05)      # no change of l2 length 0.05 takes these scores out of [lower, upper]

Chiang et al., "Detection as Regression: Certified Object Detection by Median Smoothing", NeurIPS 2020. Certified
is the smoothed model, not the network inside it. Networks that were trained with noise (method `noise`) have narrow
bounds; so has any score function behind a denoiser, such as `models.transformed.blur(score_fn, sigma=1)`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key
from scipy import stats
from tqdm import tqdm

from cprl_jax.attacks.arguments import (
    check_count,
    check_images,
    check_number,
    check_one_per_image,
    check_per_image,
    per_image_keys,
)
from cprl_jax.attacks.loop import as_pytree, is_traced
from cprl_jax.runtime import parallel

CONFIDENCE = 0.999  # unless another is asked for

ScoreFn = Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]


class NotFiniteError(ValueError):
    """A score under noise that is no finite number."""


@dataclasses.dataclass(frozen=True)
class Smoothed:
    """Scores of images under noise, and what follows from them.

    Attributes:
      samples: scores of each image under noise, in ascending order.
      sigma: standard deviation of the noise, in [0, 1] pixel units.
      confidence: the probability, over the noise that was drawn, that both bounds of one image at one radius hold.
    """

    samples: Float[np.ndarray, "images samples"]
    sigma: float
    confidence: float

    @property
    def score(self) -> Float[np.ndarray, " images"]:
        """The median of each image's samples: the smoothed score, as far as the samples tell."""
        return np.median(self.samples, axis=1)

    def bounds(
        self, radius: Float[ArrayLike, ""] | Float[ArrayLike, " images"], *, together: bool = False
    ) -> tuple[Float[np.ndarray, " images"], Float[np.ndarray, " images"]]:
        """Between which values the smoothed score of every image x' with |x' - x|_2 <= radius lies.

        By the lemma of Neyman and Pearson, moving x by the radius r turns a probability p of scores up to some value
        into Phi(Phi^-1(p) + r / sigma) at most. So the median at x' is at least the quantile at Phi(-r / sigma) of the
        scores at x, and at most that at Phi(r / sigma). Order statistics of the samples bound these quantiles
        (`order_statistics`), whatever the distribution of the scores, also with ties.

        Args:
          radius: Euclidean length of the change over all values of an image, in [0, 1] pixel units; one number, or one
            for each image.
          together: False: each image's two bounds hold together with probability `confidence`; of many images, some
            may fail. True: the bounds of all images hold at once with that probability (Bonferroni); wider.

        Returns:
          (lower, upper); infinite where no sample reaches as far as a bound must, see `largest_radius`.

        Raises:
          ValueError: a radius that is negative, not finite, or not one number for all or each of the images.
        """
        radius = np.asarray(check_one_per_image("radius", radius, self.samples), np.float64)
        if not np.all((radius >= 0) & np.isfinite(radius)):
            raise ValueError(f"radius must be finite and at least 0 (an l2 length in pixel units), got {radius}.")
        images, count = self.samples.shape
        radius = np.broadcast_to(radius, images)
        confidence = 1 - (1 - self.confidence) / (max(images, 1) if together else 1)
        with np.errstate(over="ignore"):  # infinitely far: no bounds
            shift = radius / self.sigma
        low, high = order_statistics(shift, samples=count, confidence=confidence)
        padded = np.pad(self.samples.astype(np.float64), ((0, 0), (1, 1)), constant_values=(-np.inf, np.inf))
        rows = np.arange(images)
        return padded[rows, low], padded[rows, high]

    @property
    def largest_radius(self) -> float:
        """The largest l2 radius at which the bounds of an image are finite: a wider noise, or more samples, reach on.

        At -sigma Phi^-1(1 - (alpha / 2)^(1 / n)) the smallest and the largest of n samples are the bounds; this is a
        millionth less, so that no rounding, to float32 either, makes them infinite.
        """
        tail = (1 - self.confidence) / 2
        largest = -self.sigma * stats.norm.ppf(-math.expm1(math.log(tail) / self.samples.shape[1]))
        return max(0.0, (1 - 1e-6) * float(largest))


def order_statistics(
    shift: Float[np.ndarray, " radii"], *, samples: int, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which of n sorted samples, counted from 1, bound the quantiles at Phi(-shift) and Phi(shift); 0 and n + 1: none.

    The number of samples up to the quantile at p is binomial with at least p, that of samples below it with at most p.
    So the k-th sample is at most the quantile at p, unless fewer than k are up to it: P(Bin(n, p) <= k - 1). The
    largest k for which that is at most alpha / 2, with alpha = 1 - confidence, is the lower bound; the upper one is the
    same from the other end.

    Args:
      shift: radii over sigma, at least 0.
      samples: n.
      confidence: that both hold.
    """
    tail, p = (1 - confidence) / 2, stats.norm.sf(shift)
    low = stats.binom.ppf(tail, samples, p)  # the smallest m with P(Bin <= m) >= tail: k - 1 = m - 1, or m where equal
    low = np.where(stats.binom.cdf(low, samples, p) <= tail, low + 1, low).astype(int)
    return low, samples + 1 - low


def median_smoothing(
    score_fn: ScoreFn,
    images: Float[ArrayLike, "batch height width 3"],
    *,
    sigma: float,
    samples: int,
    key: Key[Array, ""] | Key[Array, " batch"],
    confidence: float = CONFIDENCE,
    batch_size: int = 32,
    progress: str = "",
) -> Smoothed:
    """Scores of each image under Gaussian noise, whose median and its bounds `Smoothed` knows.

    A sample is score_fn(clip(x + sigma z, 0, 1)) with z a standard normal, a function of the key, the image's place in
    the batch and the sample's number alone: equal for any `batch_size` and number of devices, but for the network's
    rounding. The samples are divided among the devices of this process. Concrete values only, not under `jit`.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone.
      images: float32 or float64 RGB in [0, 1].
      sigma: standard deviation of the noise in [0, 1] pixel units, above 0. Radii that can be certified grow with it;
        so does what the noise costs in accuracy.
      samples: drawn for each image; at least 11 at the default confidence, 1,000 and more for narrow bounds.
      key: random key; or one for each image, which makes an image's samples independent of its place in the batch.
      confidence: that the two bounds of an image hold, see `Smoothed`.
      batch_size: noisy images at once, a device: bounds the memory.
      progress: name of a progress bar; none where empty.

    Raises:
      ValueError: a wrong shape, dtype or range of an argument; samples that are too few to bound even the median at the
        image itself; a score under noise that is not finite, with the image's number.
    """
    images, samples = check_images(images), check_count("samples", samples)
    batch_size = check_count("batch_size", batch_size)
    sigma, confidence = check_number("sigma", sigma), check_number("confidence", confidence)
    if not sigma:
        raise ValueError("sigma must be above 0 (0.12 in [0, 1] pixel units is usual), got 0.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.999, got {confidence}.")
    if is_traced((images, key)):
        raise ValueError("median_smoothing returns what it has drawn: call it outside of jit, vmap and grad.")
    if samples < (fewest := fewest_samples(confidence)):
        raise ValueError(f"samples is {samples}; a confidence of {confidence} needs at least {fewest}.")
    keys, score_fn, batch = per_image_keys(key, len(images)), as_pytree(score_fn), len(images)
    check_per_image("score_fn", jax.eval_shape(score_fn, images), batch)
    tree = score_fn, images, keys, jnp.asarray(sigma, images.dtype)
    scores = _in_batches(tree, batch, samples, batch_size, progress)
    if wrong := np.flatnonzero(~np.isfinite(scores).all(axis=1)).tolist():
        raise NotFiniteError(
            f"images {wrong}, counted from 0, have scores under noise that are not finite numbers: leave them out, or "
            "mend score_fn."
        )
    return Smoothed(np.sort(scores, axis=1), sigma, confidence)


def fewest_samples(confidence: float) -> int:
    """The number of samples from which on the least and the greatest one bound the median at the image itself."""
    return max(1, math.ceil(1 - math.log2(1 - confidence)))


def under_noise(score_fn: ScoreFn, *, sigma: float) -> Callable[[Key[Array, ""], Array], Float[Array, " batch"]]:
    """`(key, images) -> scores` of the images with one draw of noise: what `attacks.adaptive.expectation` averages.

        target = attacks.adaptive.expectation(certify.under_noise(score_fn, sigma=0.12), key, samples=16)
        attacks.pgd(target, images, radius=0.05, norm="l2", direction=attacks.up(), steps=20)

    attacks the smoothed score by the gradient of its mean, which follows the median closely and has a gradient.
    """
    return Partial(_noisy_score, as_pytree(score_fn), jnp.asarray(sigma, jnp.float32))


def grey_levels(radius: float, shape: Sequence[int]) -> float:
    """The root mean square change, in grey levels (1/255), of an image that an l2 change of this length spreads over.

    Args:
      radius: l2, in [0, 1] pixel units.
      shape: of the image, [height, width, 3].
    """
    return 255 * radius / math.sqrt(math.prod(shape))


def l2_radius(levels: float, shape: Sequence[int]) -> float:
    """The inverse of `grey_levels`: the l2 length of a root mean square change of so many grey levels."""
    return levels / 255 * math.sqrt(math.prod(shape))


def _in_batches(tree, images: int, samples: int, batch_size: int, progress: str) -> Float[np.ndarray, "images samples"]:
    """The scores of all samples of all images, in batches of one shape."""
    devices, total = parallel.local_device_count(), images * samples
    at_once = batch_size * devices
    starts = range(0, total, at_once)
    score, tree = _on_devices(devices), parallel.replicate(tree) if devices > 1 else tree
    with tqdm(total=len(starts), desc=progress, unit="batch", dynamic_ncols=True, disable=not progress) as bar:

        def run(start: int) -> np.ndarray:
            rows = np.minimum(np.arange(start, start + at_once), total - 1)
            scores = score(tree, {"image": rows // samples, "sample": rows % samples})
            bar.update()
            return np.asarray(scores)[: total - start]

        # Where one program leaves cores of a CPU idle, two share them. The first batch, which compiles, is alone.
        with ThreadPoolExecutor(parallel.programs_at_once()) as pool:
            parts = [run(start) for start in starts[:1]]
            parts += pool.map(run, starts[1:])
    return np.concatenate(parts or [np.zeros(0)]).reshape(images, samples)


def _samples(tree, numbers):
    score_fn, images, keys, sigma = tree
    fold = jax.vmap(jax.random.fold_in)
    draw = functools.partial(jax.random.normal, shape=images.shape[1:], dtype=images.dtype)
    noise = jax.vmap(draw)(fold(keys[numbers["image"]], numbers["sample"]))
    return score_fn(_clipped(images[numbers["image"]], sigma * noise))


def _noisy_score(score_fn, sigma, key, images):
    noise = jax.random.normal(key, images.shape, images.dtype)
    return score_fn(_clipped(images, sigma.astype(images.dtype) * noise))


def _clipped(images, noise):
    # The clipping is the first layer of the network that is smoothed: f(clip(x)) is a function on all of R^d, as the
    # certificate asks for, and it is to that function's input that the noise is added.
    return jnp.clip(images + noise, 0, 1)


@functools.cache  # a new function would be compiled anew at each call
def _on_devices(devices: int) -> Callable:
    """`_samples` on so many devices of this process."""
    if devices == 1:
        return jax.jit(_samples)
    mapped = parallel.map_batch(_samples)
    return lambda tree, numbers: parallel.unshard(mapped(tree, parallel.shard(numbers)))
