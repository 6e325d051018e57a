"""Counterfactual division (Causal-IQA, Sec. 3.2): clusters of content, and the subsets of images alike in confounders.

contents = cluster(scene_names, features, clusters=2, seed=0)  # features of the reference images
division = divide(dataset.distortions, contents.of(dataset.references), levels=dataset.levels)
division.subsets[row], division.names[subset], division.weights[row]
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from absl import logging
from jaxtyping import Float, Float32, Int32

from cprl_jax.data.dataset import listing
from cprl_jax.runtime.errors import UserError

REDUCTIONS = ("pca", "tsne", "none")
MOST_FOR_TSNE = 5000  # exact t-SNE keeps several arrays of n x n float64: 200 MB each at this n


@dataclasses.dataclass(frozen=True, eq=False)
class Contents:
    """Images clustered by content.

    Attributes:
      names: the images that were clustered.
      responsibilities: the probability of each cluster for each image; rows sum to 1.
      embedding: the first two principal components of the standardised features, for a figure.
    """

    names: tuple[str, ...]
    responsibilities: Float[np.ndarray, "images clusters"]
    embedding: Float[np.ndarray, "images 2"]

    def of(self, references: Sequence[str]) -> Float[np.ndarray, "rated clusters"]:
        """The responsibilities of each rated image's reference image.

        Raises:
          UserError: a reference that was not clustered.
        """
        row_of_name = {name: row for row, name in enumerate(self.names)}
        unknown = sorted({str(name) for name in references} - row_of_name.keys())
        if unknown:
            raise UserError(f"no content cluster is known for {listing(unknown)}; cluster all references of the images")
        return self.responsibilities[[row_of_name[str(name)] for name in references]]


@dataclasses.dataclass(frozen=True, eq=False)
class Division:
    """Images divided into subsets with one distortion and content (and level) each.

    Attributes:
      subsets: each image's subset, a position in `names`; -1 = not used.
      names: such as 'jpeg | content 0' or 'jpeg | level 3 | content 0+1'. No subset is empty.
      responsibilities: the probability of each content cluster for each image; rows sum to 1.
      weights: w of Eq. 6: the probability that the image has a content of its subset, the sum over the subset's
        clusters (1 in a division without content); 0 where it is not used.
      report: lines for a person to read: sizes, what was empty, what was joined.
    """

    subsets: Int32[np.ndarray, " images"]
    names: tuple[str, ...]
    responsibilities: Float[np.ndarray, "images clusters"]
    weights: Float32[np.ndarray, " images"]
    report: tuple[str, ...]

    @property
    def sizes(self) -> np.ndarray:
        """How many images each subset has."""
        return np.bincount(self.subsets[self.subsets >= 0], minlength=len(self.names))


def cluster(
    names: Sequence[str],
    features: Float[np.ndarray, "images features"],
    *,
    clusters: int,
    reduction: str = "pca",
    dimensions: int = 10,
    seed: int,
) -> Contents:
    """Clusters images by content: a mixture of Gaussians with full covariances, the best of ten starts.

    Features are standardised one by one (a constant one is left out) and reduced to `dimensions` coordinates. The same
    features and settings give the same numbers in every run. Clusters are in the order of their size, counting the
    images for which they are the likeliest, the largest first; of equal ones, that of the earliest image comes first.

    Args:
      names: one for each image.
      features: finite numbers, see `features.backbone_features`.
      clusters: q in the paper, at least 1; 1 = no clusters, every image has probability 1.
      reduction: 'pca', 'tsne' (exact, at most 5000 images; perplexity 30, or a third of the images if they are fewer)
        or 'none'.
      dimensions: at most as many as features, as the rank of the images, and as the average cluster has images, less
        one: with more, a covariance would have no inverse.
      seed: non-negative integer, for t-SNE and the mixture's starts.

    Raises:
      UserError: fewer images than clusters, too many for t-SNE, or an unknown reduction.
      ValueError: features that are not a finite matrix, or other than one name for each image.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or not features.size or not np.isfinite(features).all():
        raise ValueError(f"features of shape {features.shape} must be a matrix [images, features] of finite numbers")
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction {reduction!r} is unknown; allowed: {', '.join(REDUCTIONS)}")
    count = len(features)
    if len(names) != count:
        raise ValueError(f"{len(names)} names for the features of {count} images; give one name each")
    if count < clusters:
        raise UserError(f"{count} images cannot make {clusters} clusters of content; lower the number of clusters")
    standardised = _standardised(features)
    embedding = _principal_components(standardised, 2)
    embedding = np.pad(embedding, ((0, 0), (0, 2 - embedding.shape[1])))  # 0 where there are fewer than two features
    names = tuple(str(name) for name in names)
    if clusters == 1:
        return Contents(names, np.ones((count, 1)), embedding)
    reduced = _reduced(standardised, reduction, min(dimensions, max(1, count // clusters - 1)), seed)
    # On the scale of 1, beside which the mixture's regularisation of covariances is small; t-SNE's has no unit.
    reduced = reduced.astype(np.float64) / max(reduced.std(), 1e-12)

    from sklearn.mixture import GaussianMixture  # late: it takes a second, and only this needs it

    mixture = GaussianMixture(clusters, covariance_type="full", n_init=10, max_iter=500, random_state=seed).fit(reduced)
    if not mixture.converged_:
        logging.warning("the mixture of %d contents has not converged; its clusters may be arbitrary", clusters)
    soft = mixture.predict_proba(reduced)
    likeliest = soft.argmax(axis=1)
    sizes = np.bincount(likeliest, minlength=clusters)
    first = [np.flatnonzero(likeliest == number)[0] if sizes[number] else count for number in range(clusters)]
    soft = soft[:, np.lexsort((first, -sizes))]
    return Contents(names, soft / soft.sum(axis=1, keepdims=True), embedding)


def divide(
    distortions: Sequence[str],
    responsibilities: Float[np.ndarray, "images clusters"],
    *,
    levels: Sequence[int] | None = None,
    content: bool = True,
    rows: Sequence[int] | None = None,
    smallest: int = 8,
) -> Division:
    """Divides images into subsets of one distortion, one content and, with `levels`, one level each.

    Each image goes to the subset of its likeliest content (the first of equally likely ones). For images without a
    distortion there are subsets called 'undistorted': no distortion is one value of that confounder.

    A subset of fewer than `smallest` images is joined to the largest one of the same distortion and level, repeatedly,
    the smallest first. No distortion is ever dropped; one with fewer images in all remains, as one subset.

    Args:
      distortions: the kind of distortion of each image, '' for none.
      responsibilities: see `Contents.of`.
      levels: the level of each image, to divide by it as well ("+L" in the paper).
      content: whether to divide by content (False: the ablation without C; weights are 1).
      rows: the images to divide, such as those that train; None = all. The others get subset -1.
      smallest: images that a subset needs.

    Raises:
      ValueError: columns of different lengths, rows of `responsibilities` that do not sum to 1, no image at all.
    """
    distortions, soft = np.asarray(distortions, str), np.asarray(responsibilities, np.float64)
    count = len(distortions)
    if soft.ndim != 2 or len(soft) != count or (levels is not None and len(levels) != count):
        raise ValueError(
            f"{count} distortions, responsibilities of shape {soft.shape}"
            f"{'' if levels is None else f' and {len(levels)} levels'}: each needs one row an image"
        )
    if not np.allclose(soft.sum(axis=1), 1.0, atol=1e-6) or (soft < 0).any():
        raise ValueError("responsibilities must be probabilities: each row sums to 1")
    used = np.arange(count) if rows is None else np.unique(np.asarray(rows, np.int64))
    if not len(used) or used[0] < 0 or used[-1] >= count:
        raise ValueError(f"there must be at least one image to divide, with rows within 0..{count - 1}")
    # Without content all clusters are one, in which an image is with certainty.
    clusters = soft.argmax(axis=1) if content else np.zeros(count, int)
    strata = distortions[used] if levels is None else np.asarray(levels, int)[used]
    kinds = sorted({*zip(distortions[used].tolist(), strata.tolist(), strict=True)})

    subsets, weights = np.full(count, -1, np.int32), np.zeros(count, np.float32)
    names, report = [], []
    for distortion, stratum in kinds:
        members = used[(distortions[used] == distortion) & (strata == stratum)]
        kind = distortion or "undistorted"
        if levels is not None:
            kind += f" | level {stratum}"
        called = functools.partial(_called, kind)
        present = [[int(number)] for number in np.unique(clusters[members])]
        if content:
            absent = sorted(set(range(soft.shape[1])) - {number for (number,) in present})
            report += [f"{called([number])}: empty" for number in absent]
        for joined in _joined(present, np.bincount(clusters[members]), smallest, called, report):
            chosen = members[np.isin(clusters[members], joined)]
            subsets[chosen] = len(names)
            weights[chosen] = soft[chosen][:, joined].sum(axis=1) if content else 1.0
            names.append(called(joined) if content else kind)
            if len(chosen) < smallest:
                report.append(f"{names[-1]}: {len(chosen)} images, fewer than {smallest}, and none to join them to")
    sizes = np.bincount(subsets[used])
    report.insert(0, f"{len(names)} subsets of {len(used)} images; {sizes.min()} to {sizes.max()} images each")
    return Division(subsets, tuple(names), soft, weights, tuple(report))


def _called(kind: str, clusters: Sequence[int]) -> str:
    return f"{kind} | content {'+'.join(map(str, clusters))}"


def _joined(groups: list[list[int]], sizes: np.ndarray, smallest: int, called, report: list[str]) -> list[list[int]]:
    """Joins groups of clusters until each has `smallest` images, or all are one; in the order of their clusters."""

    def size(group):
        return int(sizes[group].sum())

    while len(groups) > 1 and size(least := min(groups, key=size)) < smallest:
        groups.remove(least)
        largest = max(groups, key=size)
        report.append(f"{called(least)}: {size(least)} images, fewer than {smallest}: joined to {called(largest)}")
        groups[groups.index(largest)] = sorted(largest + least)
    return sorted(groups)


def _standardised(features: np.ndarray) -> np.ndarray:
    """Each feature with mean 0 and standard deviation 1; without those that do not vary."""
    deviation = features.std(axis=0)
    varies = deviation > 1e-9 * np.abs(features).max(initial=1e-300)
    if not varies.any():
        return np.zeros((len(features), 1))
    return (features[:, varies] - features[:, varies].mean(axis=0)) / deviation[varies]


def _reduced(features: np.ndarray, reduction: str, dimensions: int, seed: int) -> np.ndarray:
    if reduction == "none" or not features.any():  # t-SNE fails where all images are alike
        return features
    if reduction == "pca":
        return _principal_components(features, dimensions)
    count = len(features)
    if count > MOST_FOR_TSNE:
        raise UserError(
            f"exact t-SNE of {count} images would take hours and gigabytes; use reduction='pca', or cluster at most "
            f"{MOST_FOR_TSNE} images (the references)"
        )
    from sklearn.manifold import TSNE

    # scikit-learn's rule for the learning rate without its floor of 50: with that, ten coordinates of a hundred images
    # diverge (KL divergence 8 instead of 0.2), and nothing of the clusters remains.
    exaggeration = 12.0
    return TSNE(
        min(dimensions, *features.shape),
        perplexity=min(30.0, (count - 1) / 3),
        method="exact",
        init="pca",
        early_exaggeration=exaggeration,
        learning_rate=count / exaggeration / 4,
        random_state=seed,
    ).fit_transform(features)


def _principal_components(features: np.ndarray, dimensions: int) -> np.ndarray:
    from sklearn.decomposition import PCA

    # The full decomposition: deterministic, with signs that are settled by the largest loading.
    return PCA(min(dimensions, *features.shape), svd_solver="full").fit_transform(features)
