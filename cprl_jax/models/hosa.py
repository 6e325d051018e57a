"""HOSA: how an image's whitened patches differ in mean, variance and skewness from the clusters of a small codebook.

Xu et al., "Blind Image Quality Assessment Based on High Order Statistics Aggregation", IEEE TIP 2016.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models import patches as patches_lib
from cprl_jax.models.brisque import root
from cprl_jax.models.fitted import FittedNetwork, Images, all_scenes, labelled_features
from cprl_jax.models.network import Network
from cprl_jax.models.patches import AREA, SIDE, Whitening
from cprl_jax.models.svr import check_enough, fit_linear

NEAREST = 5  # words that each patch is assigned to
BETA = 0.05  # of the weights, exp(-BETA distance^2)
POWER = 0.2  # of the size of each feature
FLOOR = 1e-4  # added to variance^(3/2) under the third moment
ALIKE = 1e-6  # summed variance of a word's patches, up to which they have neither variance nor skewness
FAINT = 1e-12  # summed weights of a word's patches, up to which it has none


class Codebook(NamedTuple):
    """Mean, variance and skewness, in each dimension, of the patches nearest to each word; the means are the words."""

    means: Float[Array, "words 49"]
    variances: Float[Array, "words 49"]
    skewnesses: Float[Array, "words 49"]


def skewness(third: Array, variance: Array) -> Array:
    """Of the third central moment and the variance."""
    return third / (variance**1.5 + FLOOR)


def differences(found: Float[Array, "places 49"], codebook: Codebook) -> Float[Array, "3 words 49"]:
    """Mean, variance and skewness of the patches assigned to each word, less those of its cluster.

    A patch's weights, exp(-0.05 distance^2) for the five nearest words, have the sum 1, and so have, after that, a
    word's. A word without patches has differences 0; one whose patches are all alike has a difference of the mean only.

    Which words are nearest does not change with small changes of the patches, but where two are equally near; gradients
    are those of the weights and moments.
    """

    def product(formula, *arrays):
        return jnp.einsum(formula, *arrays, precision=lax.Precision.HIGHEST)

    # -BETA distance^2, but for what is the same for all words.
    squares = jnp.sum(codebook.means**2, axis=-1).reshape(1, -1)
    nearness = BETA * (2.0 * product("pd,wd->pw", found, codebook.means) - squares)
    nearness, nearest = lax.top_k(nearness, min(NEAREST, len(codebook.means)))
    chosen = jax.nn.one_hot(nearest, len(codebook.means), dtype=found.dtype)  # [places, nearest, words]
    weights = chosen * nn.softmax(nearness)[..., None]
    total = jnp.sum(weights, axis=(0, 1))
    has_patches = total > FAINT
    weights = weights / jnp.where(has_patches, total, 1.0).reshape(1, 1, -1)

    mean = product("pnw,pd->wd", weights, found)
    away = found[:, None, :] - product("pnw,wd->pnd", chosen, mean)
    variance = product("pnw,pnd->wd", weights, away**2)
    third = product("pnw,pnd->wd", weights, away**3)
    differ = has_patches & (jnp.sum(variance, axis=-1) > ALIKE)
    compared = jnp.stack(
        [mean - codebook.means, variance - codebook.variances, skewness(third, variance) - codebook.skewnesses]
    )
    return jnp.where(jnp.stack([has_patches, differ, differ])[..., None], compared, 0.0)


def aggregated(found: Float[Array, "batch places 49"], codebook: Codebook) -> Float[Array, "batch 3*words*49"]:
    """The differences of each image, each as sign(x) |x|^0.2, all together of length 1.

    The slope of that power grows without bound towards 0; at 0 itself it is taken as 0. Images are taken one after the
    other, since their patches with all words are many; they are computed again for the gradient.
    """

    @jax.checkpoint
    def of_one(one):
        compared = differences(one, codebook).reshape(-1)
        some = compared != 0
        powers = jnp.sign(compared) * jnp.abs(jnp.where(some, compared, 1.0)) ** POWER
        return powers / (root(jnp.sum(powers**2)) + 1e-20)

    return lax.map(of_one, found)


class HOSA(FittedNetwork):
    """As published, but for the places of the patches, which are CORNIA's.

    Attributes:
      words: in the codebook.
      patches: of an image, at most.
    """

    words: int = 100
    patches: int = 10_000

    smallest_image = SIDE

    def features_of(
        self, images: Float[Array, "batch height width 3"], whitening: Whitening, codebook: Codebook
    ) -> Float[Array, "batch 3*words*49"]:
        """What the regression reads, with a whitening and a codebook."""
        return aggregated(patches_lib.whiten(patches_lib.patches(images, self.patches), whitening), codebook)

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 7x7 pixels, the higher the better; float32."""
        whitening = Whitening(self.fitted("mean", (AREA,)), self.fitted("whitening", (AREA, AREA)))
        codebook = Codebook(*(self.fitted(name, (self.words, AREA)) for name in Codebook._fields))
        found = self.features_of(self.change.images(images), whitening, codebook)
        return self.score(found @ self.fitted("weights", (3 * self.words * AREA,)) + self.fitted("offset", ()))


def describe(
    samples: Float[np.ndarray, "patches 49"],
    labels: Int[np.ndarray, " patches"],
    centres: Float[np.ndarray, "words 49"],
) -> Codebook:
    """The statistics of the samples of each word, those with its number as label; of a word with none, its centre."""
    means, variances, skewnesses = (np.zeros(centres.shape) for _ in Codebook._fields)
    for word, centre in enumerate(centres):
        members = samples[labels == word].astype(np.float64)
        members = members if len(members) else centre[None].astype(np.float64)
        means[word], variances[word] = members.mean(axis=0), members.var(axis=0)
        skewnesses[word] = skewness(np.mean((members - means[word]) ** 3, axis=0), variances[word])
    return Codebook(*(values.astype(np.float32) for values in (means, variances, skewnesses)))


def fit(module: HOSA, train: Images, validation: Images, *, seed: int, **_: Any) -> tuple[Mapping, dict[str, float]]:
    """Whitening and codebook (k-means) of the training images' patches, then `svr.fit_linear`.

    Raises:
      UserError: fewer patches than words, or too few scenes.
    """
    parts = train, validation
    check_enough(all_scenes(parts))  # before minutes of work
    whitening, samples, clusters = patches_lib.learn(train.images, module.words, seed, "hosa")
    codebook = describe(samples, clusters.labels_, clusters.cluster_centers_)

    def features(images):
        return module.features_of(images, whitening, codebook)

    line, numbers = fit_linear(labelled_features(module, features, parts, what="features of HOSA"))
    fitted = {"mean": whitening.mean, "whitening": whitening.matrix, **codebook._asdict(), **line._asdict()}
    return {"params": fitted}, numbers


NETWORK = Network(
    name="hosa",
    title="HOSA",
    source="Xu et al., IEEE TIP 2016",
    weights=(),
    module=HOSA,
    settings={
        "words": Field(100, "in the codebook", at_least=1),
        "patches": Field(10_000, "of an image, at most", at_least=1),
    },
    stages=(),
    sort_mask=SortMaskPlacement(stages=()),
    fit=fit,
)
