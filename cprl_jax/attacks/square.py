"""The square attack, which needs scores only."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key

from cprl_jax.attacks._radii import over_radii
from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_per_image, per_image_keys
from cprl_jax.attacks.directions import constant
from cprl_jax.attacks.gradients import as_constant, evaluate_per_image
from cprl_jax.attacks.loop import iterate
from cprl_jax.attacks.projection import project_linf
from cprl_jax.attacks.result import AttackResult, finish, largest_change

# The squares' area is halved after each of these queries of 10000, scaled to the number of queries.
_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]) / 10000


def square(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence[float],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    key: Key[Array, ""] | Key[Array, " batch"],
    queries: int = 1000,
    patch_fraction: float = 0.05,
    progress: bool = False,
) -> AttackResult:
    """Random search in the l-inf ball with shrinking squares; asks for scores and never for gradients.

    Andriushchenko et al., "Square Attack: a query-efficient black-box adversarial attack via random search", ECCV 2020
    (Algorithms 1 and 2, and the schedule of the published code), with a direction's objective in place of a
    classification loss. The first query adds vertical stripes of plus or minus the radius; every later one sets a
    square at a random place to plus or minus the radius, one sign per channel. An image keeps a change where it raises
    the objective. Two things differ from the paper: the stripes too are kept only where they help, because random
    stripes can cost more than the search wins back; and a square that would change nothing has its signs reversed
    rather than drawn again.

    Because it needs no gradient, it finds what masked gradients hide from `pgd`. It costs `queries` + 1 evaluations of
    the network.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch].
      images: float32 or float64 RGB images in [0, 1].
      radius: largest change of any value in [0, 1] pixel units: one number, an array with one per image, or a list of
        several radii, which become the first axis of every field of the result.
      direction: what to push towards: `up()`, `down()`, `reflect(mos)`, `target_free()`, `away()`, `towards(target)`,
        or a function like them; it need not be differentiable.
      key: one key, or one per image, which makes the draws for an image independent of its place in the batch.
      queries: number of changed images that are scored, at least 1.
      patch_fraction: share of the image that the first squares cover, in (0, 1]. It is halved nine times over the
        queries; no square is smaller than one pixel.
      progress: shows a progress bar over the queries, when called with values rather than inside `jit` and the like.

    Returns:
      `AttackResult` without a `zero_gradient_fraction` (None): no gradient was asked for.

    Raises:
      ValueError: as `pgd`; a patch_fraction outside (0, 1].
    """
    images = check_images(images)
    queries = check_count("queries", queries)
    if not 0 < patch_fraction <= 1:
        raise ValueError(f"patch_fraction must be in (0, 1], got {patch_fraction!r}.")
    batch = images.shape[0]
    keys = per_image_keys(key, batch)
    images = lax.stop_gradient(images)
    score_fn, direction = as_constant(score_fn), constant(direction)
    before = evaluate_per_image("score_fn", score_fn, images)
    query = _Query(patch_fraction)

    def attack(radius):
        radius = lax.stop_gradient(check_distance("radius", radius, images, highest=1)).reshape(-1, 1, 1, 1)
        arguments = (score_fn, direction, images, radius, before, keys, (_HALVINGS * queries).astype(np.float32))
        state = iterate(
            Partial(query, *arguments), _State(images, before), steps=queries, progress="square" if progress else ""
        )
        return AttackResult(
            images=state.images,
            before=before,
            after=state.scores,
            max_change=largest_change(state.images, images),
            zero_gradient_fraction=None,
        )

    return finish(over_radii(attack, radius), images)


class _State(NamedTuple):
    images: Float[Array, "batch height width 3"]
    scores: Float[Array, " batch"]


@dataclasses.dataclass(frozen=True)
class _Query:
    """Scores one changed version of every image, and keeps those that raise the objective."""

    patch_fraction: float

    def __call__(self, score_fn, direction, images, radius, clean_scores, keys, halvings, index, state):
        halved = jnp.sum((index.astype(jnp.float32) > halvings).astype(jnp.float32))
        side = jnp.round(jnp.sqrt(self.patch_fraction * 0.5**halved * (images.shape[1] * images.shape[2])))
        side = jnp.clip(side.astype(jnp.int32), 1, min(images.shape[1:3]))

        draw = partial(_draw_signs, shape=images.shape[1:], dtype=images.dtype)
        signs = jax.vmap(draw, in_axes=(0, None, None))(keys, index, side)
        proposal = _apply(signs, state.images, images, radius)
        same = jnp.all(proposal == state.images, axis=(1, 2, 3), keepdims=True)
        proposal = jnp.where(same, _apply(-signs, state.images, images, radius), proposal)
        scores = score_fn(proposal)
        values, old_values = direction(scores, clean_scores), direction(state.scores, clean_scores)
        check_per_image("direction", values, images.shape[0])
        better = values > old_values
        return _State(
            images=jnp.where(better.reshape(-1, 1, 1, 1), proposal, state.images),
            scores=jnp.where(better, scores, state.scores),
        )


def _draw_signs(key, index, side, *, shape, dtype):
    """The sign of the change at every value of one image, 0 where nothing changes."""
    height, width, channels = shape
    # All in one draw, which is what random numbers cost; the first stripe's signs serve for the square.
    draws = jax.random.uniform(jax.random.fold_in(key, index), (2 + width * channels,))
    stripes = jnp.where(draws[2:] < 0.5, -1, 1).astype(dtype).reshape(1, width, channels)
    places = jnp.array([height, width]) - side + 1
    drawn = (draws[:2] * places.astype(draws.dtype)).astype(jnp.int32)
    row, column = jnp.minimum(drawn, places - 1)  # the product can round up to places
    rows, columns = jnp.arange(height).reshape(-1, 1, 1), jnp.arange(width).reshape(1, -1, 1)
    inside = (rows >= row) & (rows < row + side) & (columns >= column) & (columns < column + side)
    signs = jnp.where(index == 0, stripes, jnp.where(inside, stripes[:, :1], 0))
    return jnp.broadcast_to(signs, shape)


def _apply(signs, attacked, images, radius):
    """To the edge of the ball where the sign is not 0; as it was elsewhere."""
    return project_linf(jnp.where(signs == 0, attacked, images + 2 * radius * signs), images, radius)
