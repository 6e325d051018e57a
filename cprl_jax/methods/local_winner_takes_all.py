"""Stochastic local winner-takes-all (LWTA): neighbouring channels compete, and chance has a say in who wins.

Panousis et al., "Stochastic Local Winner-Takes-All Networks Enable Profound Adversarial Robustness", 2021. The network
is random at test too. What was chosen beside its published code is listed in docs/papers.md.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cprl_jax import models
from cprl_jax.config.field import Field
from cprl_jax.methods import adversarial_training_pgd as pgd
from cprl_jax.models.change import NetworkChange
from cprl_jax.models.common import example_keys


def compete(
    x: Float[Array, "batch height width channels"], noise: Float[Array, "#batch height width pairs"], temperature: float
) -> Float[Array, "batch height width channels"]:
    """x times a soft sample of the winner in each pair of channels 2k and 2k + 1.

    The sample is the Gumbel-softmax of the two values: the probability to win is their softmax, and a temperature near
    0 leaves one of them. The last of an odd number of channels has no rival, and stays as it is.

    Args:
      x: any range.
      noise: from the standard logistic law, which is that of the difference of two Gumbel variables.
      temperature: above 0.
    """
    pairs = noise.shape[-1]
    paired = x[..., : 2 * pairs].reshape(*x.shape[:-1], pairs, 2)
    first = nn.sigmoid((paired[..., 0] - paired[..., 1] + noise) / temperature)
    won = paired * jnp.stack([first, 1.0 - first], axis=-1)
    return jnp.concatenate([won.reshape(*x.shape[:-1], 2 * pairs), x[..., 2 * pairs :]], axis=-1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WinnerTakesAll(NetworkChange):
    """Competition in place of each activation of the trunk, or in front of it.

    In training each example has noise of its own. At test a draw is one random network, which scores all images: a
    score then depends on its image alone, whatever batch and device that is in.

    Attributes:
      replaces: whether it is in the activation's place; else the activation follows it, and the stem has none.
      temperature, test_temperature: of the soft samples in training and at test.
      draws: at test, a score is the mean over so many.
    """

    replaces: bool = True
    temperature: float = 0.67
    test_temperature: float = 0.01
    draws: int = 4

    def activation(self, module, x, default, place):
        if not self.replaces and place.stage == 0:
            return default(x)
        shape, temperature = (*x.shape[1:3], x.shape[-1] // 2), self.test_temperature
        if place.train:
            keys, temperature = example_keys(module, "change", x.shape[0], place.axis_name), self.temperature
            noise = jax.vmap(lambda key: jax.random.logistic(key, shape, jnp.float32))(keys)
        else:
            noise = jax.random.logistic(module.make_rng("change"), (1, *shape), jnp.float32)
        won = compete(x.astype(jnp.float32), noise, temperature).astype(x.dtype)
        return won if self.replaces else default(won)


def over_more_draws(module: nn.Module, variables) -> jax.tree_util.Partial:
    """The score at training's temperature, where competition has a gradient, over other draws, four times as many."""
    change = dataclasses.replace(
        module.change, test_temperature=module.change.temperature, draws=4 * module.change.draws
    )
    return models.score_fn(
        module.clone(change=change), variables, masks="straight_through", key=jax.random.key(0x4C575441)
    )


def _network(settings):
    return WinnerTakesAll(
        replaces=settings.place == "activation",
        temperature=settings.temperature,
        test_temperature=settings.test_temperature,
        draws=settings.draws,
    )


def _parts(settings):
    place = [] if settings.place == "activation" else ["in front of activations"]
    draws = f"mean of {settings.draws} draws" if settings.draws > 1 else "one draw"
    return [*place, draws, pgd.attack_part(settings)]


METHOD = dataclasses.replace(
    pgd.METHOD,
    name="lwta",
    title="stochastic winner-takes-all",
    source="Panousis et al., 2021",
    settings={
        **pgd.OPTIONAL,
        "place": Field(
            "activation",
            "of the competition: in place of each activation, or 'before' it, but for the stem",
            choices=("activation", "before"),
        ),
        "temperature": Field(0.67, "of the soft samples in training", above=0),
        "test_temperature": Field(0.01, "of those at test", above=0),
        "draws": Field(4, "a score at test is the mean over so many, which take as many times the time", at_least=1),
    },
    parts=_parts,
    network=_network,
    adaptive=over_more_draws,
)
