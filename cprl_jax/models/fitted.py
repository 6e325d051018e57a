"""Networks whose parameters are fitted to images, not trained by gradients: features of the image, and a regression."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from cprl_jax.models.network import ScoreNetwork
from cprl_jax.models.svr import Labelled
from cprl_jax.runtime.errors import UserError

_AT_ONCE = 8  # images whose features are computed together


class Images(NamedTuple):
    """Images to fit to, one crop of each, all of one size, and their MOS (0..100); `images[a:b]` is uint8 RGB.

    `scenes` are the names of what they show, common to the distorted versions of one photograph.
    """

    images: Sequence[UInt8[np.ndarray, "*one height width 3"]]
    mos: Float[np.ndarray, " images"]
    scenes: np.ndarray


class FittedNetwork(ScoreNetwork):
    """A network all of whose parameters are made by `Network.fit`."""

    def fitted(
        self, name: str, shape: Sequence[int], initial: Callable = nn.initializers.zeros
    ) -> Float[Array, "*shape"]:
        """A parameter, whose shape the fit may change (the number of support vectors); in a compact method.

        Before the fit it is `initial`.
        """
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return self.param(name, initial, tuple(shape))


def labelled_features(
    module: FittedNetwork, features: Callable[[Array], Array], parts: Sequence[Images], *, what: str
) -> Labelled:
    """The features of all images of all parts, and their labels as the output that gives them as score.

    Args:
      module: the network.
      features: of RGB images in [0, 1], [batch, features].
      parts: the images.
      what: for the progress bar.
    """
    found = np.concatenate([each_batch(features, part.images, what=what) for part in parts if len(part.mos)])
    mos = np.concatenate([np.asarray(part.mos) for part in parts])
    return Labelled(found, (mos - module.score_mean) / module.score_std, all_scenes(parts))


def all_scenes(parts: Sequence[Images]) -> np.ndarray:
    """The scene of each image of all parts."""
    return np.concatenate([np.asarray(part.scenes) for part in parts])


def each_batch(function: Callable[[Array], Array], images: Sequence, *, what: str) -> Float[np.ndarray, "images ..."]:
    """`function` under jit of RGB images in [0, 1], batch by batch: one result for each image, joined."""

    @jax.jit
    def computed(pixels):
        return function(pixels.astype(jnp.float32) / 255.0)

    results = []
    for start in tqdm(range(0, len(images), _AT_ONCE), desc=what, unit="batch", dynamic_ncols=True):
        pixels = images[start : start + _AT_ONCE]
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        missing = _AT_ONCE - len(pixels)  # filled up, since another size would be compiled anew
        filled = np.pad(pixels, [(0, missing), (0, 0), (0, 0), (0, 0)], mode="edge")
        results.append(np.asarray(computed(filled))[: len(pixels)])
    return np.concatenate(results)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file; {} if it is none.

    Raises:
      UserError: it is damaged.
    """
    if path.suffix != ".npz":
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise UserError(f"{path}: not an .npz file of plain arrays ({type(error).__name__}: {error})") from error


def load(module: FittedNetwork, variables: Mapping, path: Path, read: Callable[[Path], Mapping] | None) -> dict:
    """`models.load_weights` for a fitted network: our own file, or one that the network's `read` knows.

    Args:
      module: the network.
      variables: as it has them before any fit; their names and ranks are what the file must have.
      path: the file.
      read: published parameters by our names, for scores as they are published.

    Raises:
      UserError: a parameter is missing, unknown, not finite, or of another rank.
    """
    ours = flax.traverse_util.flatten_dict(dict(variables), sep="/")
    found = read_arrays(path)
    if not any(name.startswith("params/") for name in found):
        if read is None:
            raise UserError(f"{path}: it is no .npz file saved by cprl_jax, and no other is known for this network")
        found = {f"params/{name}": value for name, value in read(path, module).items()}
    for name in sorted(set(ours) ^ set(found)):
        raise UserError(
            f"{path}: {name} is {'missing' if name in ours else 'unknown'}; is config.model that of this file?"
        )
    for name, value in found.items():
        if np.ndim(value) != np.ndim(ours[name]) or not np.isfinite(value).all():
            raise UserError(
                f"{path}: {name} of shape {np.shape(value)} must hold finite numbers, {np.ndim(ours[name])} axes"
            )
    values = {name: np.asarray(value, np.float32) for name, value in found.items()}
    return flax.traverse_util.unflatten_dict(values, sep="/")
