"""What an attack does to the channels of a trunk: mean activations before and after (CPRL's first version, Fig. 5)."""

from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float

from cprl_jax import attacks, models
from cprl_jax.data.crops import Crops
from cprl_jax.evaluation.table import images_over_mos_range
from cprl_jax.runtime import parallel
from cprl_jax.runtime.files import read_cache, write_cache
from cprl_jax.runtime.stamps import stamp


def channel_means(
    module: nn.Module, variables: Mapping, images: Float[Array, "batch height width 3"]
) -> Float[np.ndarray, " channels"]:
    """The mean over images and places of each channel of the last map that the trunk returns, in evaluation mode.

    Empty for a network without a submodule `backbone`.
    """
    last = _last_map(module, variables, images)
    return np.zeros(0, np.float32) if last is None else np.asarray(jnp.mean(last, axis=range(last.ndim - 1)))


# Equal modules share their compiled code.
_last_map = jax.jit(models.last_map, static_argnums=0)


def activations(
    config: ml_collections.ConfigDict,
    network: tuple[nn.Module, Mapping],
    crops: Crops,
    mos: Float[np.ndarray, " images"],
    *,
    cache: Path,
) -> dict:
    """The channels of one method's trunk on a few test images and on these under PGD.

    The images are those of the trust checks (config.evaluation.trust_images), and so is the radius. Runs in this
    process alone, in float32.

    Args:
      config: config.evaluation is read.
      network: module and variables.
      crops, mos: test images.
      cache: an .npz file that keeps the result, read back while all that it depends on is the same.

    Returns:
      `clean` and `attacked` [channels] and `radius` (1/255); nothing without images or trunk.
    """
    evaluation = config.evaluation
    rows = images_over_mos_range(mos, min(evaluation.trust_images, len(mos)))
    if not len(rows):
        return {}
    settings = {name: evaluation[name] for name in ("trust_radius", "pgd_steps", "mid")}
    result_stamp = stamp(network=network, pixels=crops[rows][:, 0], mos=mos[rows], settings=settings)
    if (found := read_cache(cache, result_stamp)) is None:
        network = network[0], parallel.uncommitted(network[1])
        images = crops[rows][:, 0] / np.float32(255)
        attacked = attacks.pgd(
            models.score_fn(*network),
            images,
            radius=evaluation.trust_radius / 255.0,
            direction=attacks.reflect(mos[rows].astype(np.float32), evaluation.mid),
            steps=evaluation.pgd_steps,
        ).images
        found = {"clean": channel_means(*network, images), "attacked": channel_means(*network, attacked)}
        write_cache(cache, result_stamp, found)
    return {**found, "radius": evaluation.trust_radius} if found["clean"].size else {}
