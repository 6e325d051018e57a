"""The worst of several attacks for each image: gradients as they are, through gates and averaged, and searches."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Bool, Float, Int, Key

from cprl_jax.attacks._radii import over_radii
from cprl_jax.attacks.arguments import check_count, check_distance, check_images, check_per_image, per_image_keys
from cprl_jax.attacks.ascent import as_guide, best_of_starts, climb
from cprl_jax.attacks.directions import alternatives, constant
from cprl_jax.attacks.gradients import as_constant, evaluate, evaluate_per_image, per_image
from cprl_jax.attacks.loop import iterate
from cprl_jax.attacks.pgd import ascend, choose, fold_in
from cprl_jax.attacks.projection import project_linf
from cprl_jax.attacks.result import finish, largest_change
from cprl_jax.attacks.square import square

MEMBERS = ("none", "pgd", "ascent", "adaptive ascent", "noise ascent", "expectation ascent", "square", "random points")
"""What `EnsembleResult.which` counts: the attacks in the order in which they run; 0 is the image as it was."""

SETTLED = 0.01  # the share by which the gain may grow when the iterations are doubled


class Budget(NamedTuple):
    """How much work an ensemble does for each image.

    Attributes:
      pgd_steps: plain PGD from the image itself is run once with each of these numbers of steps.
      iterations: of every ascent.
      starts: of the ascent, and of the adaptive one.
      averaged_starts: of the ascent over noise, and of that over the model's own randomness; 0 leaves them out.
      samples: draws that each of their gradients is averaged over.
      queries: of the square attack; 0 leaves it out.
      points: random points; 0 leaves them out.
    """

    pgd_steps: tuple[int, ...] = (10, 100)
    iterations: int = 100
    starts: int = 5
    averaged_starts: int = 1
    samples: int = 4
    queries: int = 5000
    points: int = 10_000


BUDGETS = {
    "standard": Budget(),
    "quick": Budget((10,), iterations=25, starts=2, averaged_starts=1, samples=1, queries=100, points=50),
}


class Spent(NamedTuple):
    """The work for each image and radius.

    Attributes:
      gradients: evaluations of the gradient of a score function.
      queries: evaluations of a score function without its gradient.
    """

    gradients: int
    queries: int


class EnsembleResult(NamedTuple):
    """The worst that was found for each image; a pytree, constant for differentiation.

    Attributes:
      images: the attacked images, in [0, 1].
      before: scores of the original images.
      after: scores of the attacked images, exactly those in `images`.
      max_change: largest change of any pixel value in each image, in [0, 1] pixel units.
      which: the attack that went farthest, as an index into `members`; `winners` has the names. The iterations that
        test for convergence go on from its result, and do not count as another attack.
      settled: scores before those iterations. Where `after` goes farther, the attack had not converged.
      converged: whether doubling the iterations moves the mean objective, above that of the original images, by at most
        1 % of what the budget's iterations moved it; one for the batch. False where they moved nothing.
      zero_gradient_fraction: share of each image's values without a gradient at the image itself, see `AttackResult`.
        Where it is 1, only the searches without gradients had a chance.
      spent: the work for each image.
    """

    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    max_change: Float[Array, " batch"]
    which: Int[Array, " batch"]
    settled: Float[Array, " batch"]
    converged: Bool[Array, ""]
    zero_gradient_fraction: Float[Array, " batch"]
    spent: Spent

    members = MEMBERS

    @property
    def winners(self) -> np.ndarray:
        """The name of the attack that went farthest, for each image."""
        return np.array(MEMBERS)[np.asarray(self.which)]


def ensemble(
    score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    images: Float[ArrayLike, "batch height width 3"],
    *,
    radius: Float[ArrayLike, ""] | Float[ArrayLike, " batch"] | Sequence[float],
    direction: Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]],
    key: Key[Array, ""] | Key[Array, " batch"],
    adaptive_score_fn: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]] | None = None,
    stochastic_score_fn: Callable[[Key[Array, ""], Float[Array, "batch height width 3"]], Float[Array, " batch"]]
    | None = None,
    budget: str | Budget = "standard",
    progress: bool = False,
) -> EnsembleResult:
    """Several attacks in the l-inf ball, of which each image keeps the one that raises the objective most.

    One attack that fails says little about a model; that all of these fail says more. What gets past each defence is
    known from the literature: an attack that has not converged (Croce and Hein, ICML 2020), gradients masked by
    rounding, gates or noise (Athalye et al., ICML 2018), and gates like k-winners-take-all, whose gradients are right
    on a tiny piece only (Tramer et al., "On Adaptive Attacks to Adversarial Example Defenses", NeurIPS 2020). In the
    order of `EnsembleResult.members`:

    * `pgd` from the image itself, its last iterate as `attacks.pgd` returns it with default steps: so this attack is
      never weaker than PGD with 10 steps, and with the standard budget than PGD with 100;
    * `attacks.ascent`, with gradients of `score_fn`;
    * the same with gradients of `adaptive_score_fn`, where there is one;
    * the same with gradients averaged over noise, fresh draws at every iteration, uniform within `radius` around the
      iterate and clipped to [0, 1];
    * the same with gradients averaged over draws of `stochastic_score_fn`, where there is one, fresh at every
      iteration;
    * `attacks.square`;
    * random points of the ball, every second one a corner of it.

    Then the ascents with gradients of `score_fn` and `adaptive_score_fn` go on for as many iterations, with long steps
    again, from the worst image found, along the gradient rather than its sign. What they add is kept, and tells whether
    the attack has converged.

    All images are judged by `score_fn`, in one compiled program. For each image, `budget="standard"` costs 1110
    gradients (1710 with an `adaptive_score_fn`) and 15 120 other evaluations (15 732); "quick", for laptops, 110 (185)
    and 188 (269). A `stochastic_score_fn` costs 400 gradients more, or 25. `away()` costs all but the searches twice.

    Args:
      score_fn: images [batch, height, width, 3] in [0, 1] to scores [batch], each a function of its image alone. Of a
        model that is random when it is used, give the scores under some fixed draws, or their mean:
        `attacks.adaptive.expectation(stochastic_score_fn, key, samples)`. As all attacks but one know these draws,
        score the result under other draws as well.
      images: float32 or float64 RGB images in [0, 1].
      radius: largest change of any value in [0, 1] pixel units, at most 1: one number, an array with one per image, or
        a list of several radii, which become the first axis of every field of the result but `spent`.
      direction: what to push towards: `up()`, `down()`, `reflect(mos)`, `target_free()`, `away()`, `towards(target)`,
        or a function like them.
      key: random key, or one per image, which makes the result for an image independent of its place in the batch.
      adaptive_score_fn: the model with its gates replaced by something that has a useful gradient, see
        `attacks.adaptive.straight_through`.
      stochastic_score_fn: a key and images to scores: the model with its own randomness, as
        `attacks.adaptive.expectation` takes it. It is called with one image at a time, under `jax.vmap`; its draws come
        from `key`, and are not those that `score_fn` judges by.
      budget: "standard", "quick", or a `Budget`.
      progress: shows progress bars, when called with values rather than inside `jit` and the like.

    Returns:
      `EnsembleResult`. No image has a lower objective than it had before the attack. A warning says when images had a
      gradient of 0 everywhere, when called with values.

    Raises:
      ValueError: an argument of the wrong shape or dtype, an unknown budget or one with a number out of range; unless
        traced, images or a radius outside [0, 1].
    """
    images = lax.stop_gradient(check_images(images))
    budget = _checked(budget)
    keys = per_image_keys(key, len(images))
    direction = constant(direction)
    score_fn, adaptive, stochastic = (
        None if function is None else as_constant(function)
        for function in (score_fn, adaptive_score_fn, stochastic_score_fn)
    )
    before = evaluate_per_image("score_fn", score_fn, images)

    def attack(radius):
        radius = lax.stop_gradient(check_distance("radius", radius, images, highest=1))
        options = {"radius": radius, "direction": direction, "budget": budget, "keys": keys, "progress": progress}
        return _attack(score_fn, adaptive, stochastic, images, before, **options)

    found = finish(over_radii(attack, radius), images)
    converged = has_converged(*(direction(scores, before) for scores in (found.before, found.settled, found.after)))
    ways = len(alternatives(direction))
    spent = cost(budget, ways=ways, has_adaptive=adaptive is not None, is_stochastic=stochastic is not None)
    return EnsembleResult(**found._asdict(), converged=converged, spent=spent)


def has_converged(
    clean: Float[Array, "*radii batch"], settled: Float[Array, "*radii batch"], doubled: Float[Array, "*radii batch"]
) -> Bool[Array, "*radii"]:
    """Whether doubling the iterations added at most 1 % to the mean gain of the objective.

    False also where nothing was gained, since that shows nothing, and where the gain is not a number.

    Args:
      clean: the objective at the original images, settled: after the iterations, doubled: after twice as many.
    """
    gained, added = jnp.mean(settled - clean, axis=-1), jnp.mean(doubled - settled, axis=-1)
    return (gained > 0) & (added <= SETTLED * gained)


class _Found(NamedTuple):
    """The fields of the result that are per image."""

    images: Float[Array, "batch height width 3"]
    before: Float[Array, " batch"]
    after: Float[Array, " batch"]
    max_change: Float[Array, " batch"]
    which: Int[Array, " batch"]
    settled: Float[Array, " batch"]
    zero_gradient_fraction: Float[Array, " batch"]


def _attack(score_fn, adaptive, stochastic, images, before, *, radius, direction, budget, keys, progress) -> _Found:
    """What `ensemble` does for one radius of each image."""
    ball = {"radius": radius, "direction": direction}

    def keys_of(member):
        return fold_in(keys, MEMBERS.index(member))

    def bar(member):
        return member if progress else ""

    def challenge(best: _Found, member: str, attacked, after=None) -> _Found:
        after = evaluate(score_fn, attacked) if after is None else after
        return _worse(direction, best, attacked, after, np.int32(MEMBERS.index(member)))

    def ascents(best: _Found, member: str, starts: int, guide=None) -> _Found:
        result = best_of_starts(
            score_fn,
            images,
            before,
            **ball,
            iterations=budget.iterations,
            starts=starts,
            keys=keys_of(member),
            guide=guide,
            progress=bar(member),
        )
        return challenge(best, member, result.images, result.after)

    guides = {"ascent": None}
    if adaptive is not None:
        guides["adaptive ascent"] = as_guide(adaptive, images)
    start = jnp.zeros_like(images[:, 0, 0, 0])
    best = _Found(images, before, before, start, jnp.zeros(len(images), jnp.int32), before, start)
    for steps in budget.pgd_steps:
        plain = ascend(
            score_fn, images, **ball, steps=steps, step_size=None, norm="linf", key=None, progress=bar("pgd")
        )
        best = challenge(best, "pgd", plain.images, plain.after)
        best = best._replace(zero_gradient_fraction=plain.zero_gradient_fraction)
    for member, guide in guides.items():
        best = ascents(best, member, budget.starts, guide)
    draws = jnp.arange(budget.samples)
    if budget.averaged_starts:
        noisy = Partial(_mean_over_noise, score_fn, keys_of("noise ascent"), per_image(radius), draws)
        best = ascents(best, "noise ascent", budget.averaged_starts, noisy)
        if stochastic is not None:
            mean = Partial(_mean_over_draws, stochastic, keys_of("expectation ascent"), draws)
            best = ascents(best, "expectation ascent", budget.averaged_starts, mean)
    if budget.queries:
        options = {"queries": budget.queries, "key": keys_of("square"), "progress": progress}
        best = challenge(best, "square", square(score_fn, images, **ball, **options).images)
    if budget.points:
        step = Partial(_try_point, score_fn, direction, images, per_image(radius), before, keys_of("random points"))
        member = "random points"
        points = iterate(step, (images, before), steps=budget.points, progress=bar(member))
        best = challenge(best, member, points[0])

    settled = best
    for member, guide in guides.items():
        longer = climb(
            score_fn,
            images,
            before,
            **ball,
            start=best.images,
            iterations=budget.iterations,
            by_sign=False,
            guide=guide,
            progress=bar("doubled iterations"),
        )
        best = challenge(best, member, longer.images, longer.after)
    return best._replace(
        max_change=largest_change(best.images, images),
        which=jnp.where(settled.which > 0, settled.which, best.which),
        settled=settled.after,
    )


@jax.jit
def _worse(direction, best: _Found, attacked, after, member) -> _Found:
    """For each image the attacked one where it is worse than the best so far."""
    new, old = direction(after, best.before), direction(best.after, best.before)
    won = (new > old) | (jnp.isnan(old) & ~jnp.isnan(new))
    return best._replace(images=choose(won, attacked, best.images), after=jnp.where(won, after, best.after))._replace(
        which=jnp.where(won, member, best.which)
    )


def _mean_over_noise(score_fn, keys, radius, draws, index, images):
    """Mean scores of the images under several draws of noise as large as the radius."""

    def score(number):
        draw = partial(jax.random.uniform, shape=images.shape[1:], dtype=images.dtype, minval=-1, maxval=1)
        noise = jax.vmap(draw)(fold_in(fold_in(keys, index), number))
        return score_fn(jnp.clip(images + radius * noise, 0, 1))

    return jnp.mean(jax.vmap(score)(draws), axis=0)


def _mean_over_draws(stochastic_score_fn, keys, draws, index, images):
    """Mean scores over several draws of the model's own randomness, which differ from image to image."""

    def score(key, image):
        scores = stochastic_score_fn(key, image[None])
        check_per_image("stochastic_score_fn", scores, 1)
        return scores[0]

    def scores(number):
        return jax.vmap(score)(fold_in(fold_in(keys, index), number), images)

    return jnp.mean(jax.vmap(scores)(draws), axis=0)


def _try_point(score_fn, direction, images, radius, before, keys, index, best):
    """Keeps a random point of the ball where it is worse; at every second index it is a corner."""
    draw = partial(jax.random.uniform, shape=images.shape[1:], dtype=images.dtype, minval=-1, maxval=1)
    change = jax.vmap(draw)(fold_in(keys, index))
    change = jnp.where(index % 2 == 0, jnp.where(change < 0, -1, 1).astype(change.dtype), change)
    point = project_linf(images + radius * change, images, radius)
    attacked, scores = best
    after = score_fn(point)
    won = direction(after, before) > direction(scores, before)
    return choose(won, point, attacked), jnp.where(won, after, scores)


def cost(budget: Budget, *, ways: int, has_adaptive: bool, is_stochastic: bool) -> Spent:
    """The work for each image with a direction that has this many alternatives."""
    averaged = budget.averaged_starts * (1 + is_stochastic)
    straight, guided = budget.starts + 1, has_adaptive * (budget.starts + 1) + averaged  # ascents, with the doubling
    evaluated = straight + guided
    gradients = sum(budget.pgd_steps) + budget.iterations * (straight + guided + averaged * (budget.samples - 1))
    queries = len(budget.pgd_steps) + 2 * evaluated + guided * budget.iterations
    searches = (budget.queries + 2) * (budget.queries > 0) + (budget.points + 1) * (budget.points > 0)
    return Spent(ways * gradients, 1 + ways * queries + searches)


def _checked(budget: str | Budget) -> Budget:
    """The budget, or that of the name.

    Raises:
      ValueError: an unknown name, or a number out of its range.
    """
    if isinstance(budget, str) and budget in BUDGETS:
        return BUDGETS[budget]
    if not isinstance(budget, Budget):
        raise ValueError(f"budget must be {', '.join(map(repr, BUDGETS))} or a Budget, got {budget!r}.")
    if not isinstance(budget.pgd_steps, Sequence) or not budget.pgd_steps:
        raise ValueError(f"budget.pgd_steps must be a tuple of at least one number of steps, got {budget.pgd_steps!r}.")
    for name, value in budget._asdict().items():
        may_be_none = name in ("averaged_starts", "queries", "points")
        for number in value if name == "pgd_steps" else (value,):
            check_count(f"budget.{name}", number, at_least=0 if may_be_none else 1)
    return budget
