"""Score functions for attacks that know the defence: through gates without a useful gradient, and over random ones.

Both are built from score functions and are score functions, so every attack takes them. Report the attacked images by
the scores of the model itself: an attack on a replacement is a transfer attack until the model has seen its result.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Key

from cprl_jax.attacks.arguments import check_count, check_per_image
from cprl_jax.attacks.loop import as_pytree


def straight_through(
    forward: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    backward: Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]],
) -> Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]:
    """The scores of one function with the derivatives of another.

    Backward pass differentiable approximation: Athalye, Carlini & Wagner, "Obfuscated Gradients Give a False Sense of
    Security", ICML 2018, section 4.1, for a whole model. For SortMask alone, inside its network, there is
    `cprl_jax.models.score_fn(module, variables, masks="straight_through")`.

    Args:
      forward: images [batch, height, width, 3] in [0, 1] to scores [batch]: the model as it is, for example behind a
        JPEG compression. Its derivatives are never asked for, so they need not exist.
      backward: a differentiable function close to it, for example the model without the compression.

    Returns:
      A score function, as a `jax.tree_util.Partial`. It is a constant with respect to what `forward` and `backward`
      carry (parameters): it is for attacks, not for training.
    """
    return Partial(_straight_through, as_pytree(forward), as_pytree(backward))


def expectation(
    stochastic_score_fn: Callable[[Key[Array, ""], Float[Array, "batch height width 3"]], Float[Array, " batch"]],
    key: Key[Array, ""],
    samples: int,
) -> Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]:
    """The mean score over a number of random draws, and with it the mean gradient.

    Expectation over transformation: Athalye et al., "Synthesizing Robust Adversarial Examples", ICML 2018, eq. 2. For a
    network with SortMask, `stochastic_score_fn` is `cprl_jax.models.score_fn(module, variables, masks="random")`.

    The draws are the same at every call, so the result is an ordinary score function and an attack on it can be
    repeated. They are also all that the attack sees: judge the attacked images with another key. All draws are
    evaluated at once, with `samples` times the memory from the place where they begin to differ.

    Args:
      stochastic_score_fn: a key and images [batch, height, width, 3] in [0, 1] to scores [batch].
      key: random key of the draws.
      samples: number of draws, at least 1.

    Returns:
      A score function, as a `jax.tree_util.Partial`.

    Raises:
      ValueError: `samples` is not a whole number of at least 1.
    """
    keys = jax.random.split(key, check_count("samples", samples))
    return Partial(_mean_score, as_pytree(stochastic_score_fn), keys)


@jax.custom_jvp
def _straight_through(forward, backward, images):
    return forward(images)


@_straight_through.defjvp
def _straight_through_jvp(primals, tangents):
    forward, backward, images = primals
    scores = _straight_through(forward, backward, images)
    value, change = jax.jvp(backward, (images,), (tangents[2],))
    if value.shape != scores.shape:
        raise ValueError(f"forward and backward must return equal shapes, got {scores.shape} and {value.shape}.")
    return scores, change.astype(scores.dtype)


def _mean_score(stochastic_score_fn, keys, images):
    def draw(key):
        scores = stochastic_score_fn(key, images)
        check_per_image("stochastic_score_fn", scores, images.shape[0])
        return scores

    return jnp.mean(jax.vmap(draw)(keys), axis=0)
