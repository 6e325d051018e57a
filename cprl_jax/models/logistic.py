"""The logistic map that brings the scores of different models to one scale, and its fit to opinion scores."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float


class LogisticConstants(NamedTuple):
    """Constants of `logistic_map`: of a score `center` it makes the middle between `lowest` and `highest`.

    They are beta_3, beta_4, beta_1 and beta_2 of Zhang et al., NeurIPS 2022, Eq. 5.
    """

    center: float
    scale: float
    highest: float = 10.0
    lowest: float = 0.0


# Published by Zhang et al., NeurIPS 2022, for models retrained by them. Their code gives Ma19 CORNIA's constants and
# UNIQUE Ma19's, by an index that is off by one; here each model has its own. CORNIA's are for 114.4147 - its output.
BRISQUE = LogisticConstants(57.4975833, 24.1426075)
CORNIA = LogisticConstants(58.3700969, 23.8076639)
MA19 = LogisticConstants(2.6943240, 0.9155527)
UNIQUE = LogisticConstants(-0.4135264, 1.6893845)


def logistic_map(
    scores: Float[ArrayLike, "*batch"], center: float, scale: float, highest: float = 10.0, lowest: float = 0.0
) -> Float[Array, "*batch"]:
    """lowest + (highest - lowest) / (1 + exp(-(scores - center) / |scale|)): increasing, between lowest and highest.

    Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022, Eq. 5,
    whose authors set highest = 10 and lowest = 0. Values and gradients are finite for any finite score; far from the
    center, some tens of scales, both ends are reached and gradients vanish.

    Args:
      scores: the higher the better.
      center: the score that becomes the middle.
      scale: not 0; the slope at the center is (highest - lowest) / (4 |scale|).
      highest, lowest: the limits.

    Raises:
      ValueError: scale is the number 0.
    """
    _check_scale(scale)
    scores = jnp.asarray(scores)
    return lowest + (highest - lowest) * jax.nn.sigmoid((scores - center) / jnp.abs(scale))


def logistic(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]], constants: LogisticConstants
) -> Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]:
    """The score function followed by the logistic map, again as a score function; the higher the better.

    It is a `jax.tree_util.Partial` like `models.score_fn`'s: other constants or weights need no new compilation.

    Args:
      score_fn: images to scores; a plain function, a Partial or any callable pytree.
      constants: such as `MA19`, or from `fit_logistic`.

    Raises:
      ValueError: the scale is the number 0.
    """
    _check_scale(constants.scale)
    if jax.tree_util.all_leaves([score_fn]):  # a plain function, which only as structure goes through jit
        score_fn = Partial(score_fn)
    return Partial(_mapped, score_fn, LogisticConstants(*(jnp.asarray(value, jnp.float32) for value in constants)))


def _check_scale(scale) -> None:
    if isinstance(scale, int | float) and scale == 0:
        raise ValueError("scale is 0; give the number of score units over which the logistic map rises, such as 1.0")


def _mapped(score_fn: Callable, constants: LogisticConstants, images: Array) -> Array:
    return logistic_map(score_fn(images), *constants)


def fit_logistic(
    scores: Float[ArrayLike, " images"],
    mos: Float[ArrayLike, " images"],
    *,
    highest: float | None = 10.0,
    lowest: float | None = 0.0,
) -> LogisticConstants:
    """The logistic map of scores that is nearest to mean opinion scores, by least squares (Levenberg-Marquardt).

    Args:
      scores: of a model, the higher the better.
      mos: of the same images, the higher the better, on the scale from `lowest` to `highest`.
      highest, lowest: the limits of the map, by default the 10 and 0 of Zhang et al., NeurIPS 2022; None fits the limit
        too (both None: the map with four parameters of the Video Quality Experts Group).

    Raises:
      ValueError: different lengths, values that are not finite, fewer images than two more than the fitted parameters,
        scores that are all the same, or no convergence.
    """
    from scipy.optimize import OptimizeWarning, curve_fit  # here: slow to import, and rarely needed

    scores, mos = np.asarray(scores, np.float64), np.asarray(mos, np.float64)
    if scores.ndim != 1 or scores.shape != mos.shape:
        raise ValueError(f"scores and mos must be vectors of one length, got shapes {scores.shape} and {mos.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(mos).all()):
        raise ValueError("scores or mos hold values that are not finite; leave those images out")
    fixed = {name: value for name, value in (("highest", highest), ("lowest", lowest)) if value is not None}
    free = [name for name in LogisticConstants._fields if name not in fixed]
    if len(scores) < len(free) + 2:
        raise ValueError(
            f"{len(scores)} images are too few to fit {len(free)} parameters; give {len(free) + 2} or more"
        )
    spread = float(np.std(scores))
    if spread == 0:
        raise ValueError("scores are all the same: no logistic map can be fitted to them")

    # Scores in standard units: the solver's steps then suit any model.
    units = (scores - scores.mean()) / spread

    def mapped(units, *values):
        constants = LogisticConstants(**dict(zip(free, values, strict=True)), **fixed)
        low, high = constants.lowest, constants.highest
        exponent = np.clip(-(units - constants.center) / (abs(constants.scale) + 1e-12), -500.0, 500.0)
        return low + (high - low) / (1.0 + np.exp(exponent))

    start = {"center": 0.0, "scale": 1.0, "highest": mos.max(), "lowest": mos.min()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # of the covariance, which is not used
            values, _ = curve_fit(mapped, units, mos, p0=[start[name] for name in free], maxfev=20_000)
    except RuntimeError as error:
        raise ValueError(f"the fit of the logistic map to {len(scores)} images did not converge ({error})") from error
    found = LogisticConstants(**{name: float(value) for name, value in zip(free, values, strict=True)}, **fixed)
    return found._replace(center=float(scores.mean()) + spread * found.center, scale=spread * abs(found.scale))
