"""CORNIA: a codebook of whitened patches, soft assignment, max pooling and a linear support vector regression.

Ye et al., "Unsupervised Feature Learning Framework for No-Reference Image Quality Assessment", CVPR 2012.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cprl_jax.config.field import Field
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models import patches as patches_lib
from cprl_jax.models.fitted import FittedNetwork, Images, all_scenes, labelled_features
from cprl_jax.models.network import Network
from cprl_jax.models.patches import AREA, SIDE, Whitening
from cprl_jax.models.svr import check_enough, fit_linear


def max_pooled(
    found: Float[Array, "batch places 49"], codebook: Float[Array, "words 49"]
) -> Float[Array, "batch 2*words"]:
    """For each word, the largest positive and the largest negative part of its product with any patch (Eq. 3, 4).

    Images are taken one after the other, since the products of one are many; they are computed again for the gradient.
    """

    @jax.checkpoint
    def pooled(one):
        products = one @ codebook.T
        return jnp.concatenate([jnp.max(products, axis=0), jnp.max(-products, axis=0)])

    return nn.relu(lax.map(pooled, found))


class CORNIA(FittedNetwork):
    """As published, but for the places of the patches, which are the same each time, not drawn at random.

    Attributes:
      words: in the codebook; the paper has 10000.
      patches: of an image, at most; the paper has 10000.
    """

    words: int = 1000
    patches: int = 10_000

    smallest_image = SIDE

    def features_of(
        self, images: Float[Array, "batch height width 3"], whitening: Whitening, codebook: Float[Array, "words 49"]
    ) -> Float[Array, "batch 2*words"]:
        """What the regression reads, with a whitening and a codebook."""
        found = patches_lib.whiten(patches_lib.patches(images, self.patches), whitening)
        return max_pooled(found, codebook)

    @nn.compact
    def __call__(self, images: Float[Array, "batch height width 3"], train: bool = False) -> Float[Array, " batch"]:
        """Scores of RGB images in [0, 1], at least 7x7 pixels, the higher the better; float32."""
        whitening = Whitening(self.fitted("mean", (AREA,)), self.fitted("whitening", (AREA, AREA)))
        codebook = self.fitted("codebook", (self.words, AREA))
        found = self.features_of(self.change.images(images), whitening, codebook)
        return self.score(found @ self.fitted("weights", (2 * self.words,)) + self.fitted("offset", ()))


def fit(module: CORNIA, train: Images, validation: Images, *, seed: int, **_: Any) -> tuple[Mapping, dict[str, float]]:
    """Whitening and codebook (k-means, words of length 1) of the training images' patches, then `svr.fit_linear`.

    Raises:
      UserError: fewer patches than words, or too few scenes.
    """
    parts = train, validation
    check_enough(all_scenes(parts))  # before minutes of work
    whitening, _, clusters = patches_lib.learn(train.images, module.words, seed, "cornia")
    words = clusters.cluster_centers_
    codebook = (words / np.maximum(np.linalg.norm(words, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def features(images):
        return module.features_of(images, whitening, codebook)

    line, numbers = fit_linear(labelled_features(module, features, parts, what="features of CORNIA"))
    fitted = {"mean": whitening.mean, "whitening": whitening.matrix, "codebook": codebook, **line._asdict()}
    return {"params": fitted}, numbers


NETWORK = Network(
    name="cornia",
    title="CORNIA",
    source="Ye et al., CVPR 2012",
    weights=(),
    module=CORNIA,
    settings={
        "words": Field(1000, "in the codebook; the paper: 10000", at_least=1),
        "patches": Field(10_000, "of an image, at most", at_least=1),
    },
    stages=(),
    sort_mask=SortMaskPlacement(stages=()),
    fit=fit,
)
