"""Clusters of content and subsets: planted ones are found, again and again, and every image is in exactly one."""

import numpy as np
import pytest

from cprl_jax.experiments.causal_iqa.division import Contents, cluster, divide
from cprl_jax.runtime.errors import UserError


def planted(sizes, *, features=40, distance=6.0, seed=0):
    """Features of images of clusters of these sizes, and the cluster of each, in random order."""
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = distance * generator.normal(size=(len(sizes), features))
    return centres[labels] + generator.normal(size=(len(labels), features)), labels


def responsibilities(features, **settings):
    return cluster(range(len(features)), features, **settings).responsibilities


@pytest.mark.parametrize("reduction", ["pca", "tsne", "none"])
def test_planted_clusters_are_found_the_largest_first(reduction):
    features, labels = planted((12, 30, 21), features=6 if reduction == "none" else 40)
    soft = responsibilities(features, clusters=3, reduction=reduction, seed=0)
    assert soft.shape == (63, 3)
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-12)
    np.testing.assert_array_equal(soft.argmax(axis=1), np.array([2, 0, 1])[labels])


@pytest.mark.parametrize("reduction", ["pca", "tsne"])
def test_the_same_seed_gives_the_same_numbers(reduction):
    features, _ = planted((20, 20), distance=0.5)  # hardly apart: where another start would end elsewhere
    first, second = (responsibilities(features, clusters=3, reduction=reduction, seed=4) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_clusters_that_overlap_leave_doubt():
    features, _ = planted((200, 200), features=2, distance=1.0)
    soft = responsibilities(features, clusters=2, seed=0)
    assert ((soft > 0.1) & (soft < 0.9)).any()


@pytest.mark.sampled
@pytest.mark.parametrize("count", [2, 3, 9])
@pytest.mark.parametrize("reduction", ["pca", "tsne", "none"])
def test_fewer_images_than_dimensions(count, reduction):
    features = np.random.default_rng(0).normal(size=(count, 30))
    soft = responsibilities(features, clusters=2, reduction=reduction, seed=0)
    assert soft.shape == (count, 2) and np.isfinite(soft).all()


@pytest.mark.parametrize("reduction", ["pca", "tsne", "none"])
def test_images_that_are_all_alike(reduction):
    soft = responsibilities(np.ones((5, 30)), clusters=2, reduction=reduction, seed=0)
    np.testing.assert_allclose(soft.sum(axis=1), 1)


def test_features_that_do_not_vary():
    assert responsibilities(np.ones((9, 5)), clusters=1, seed=0).tolist() == [[1.0]] * 9
    features, labels = planted((12, 8), features=4)
    padded = np.concatenate([features, np.full((20, 3), 7.0)], axis=1)
    np.testing.assert_array_equal(responsibilities(padded, clusters=2, seed=0).argmax(axis=1), labels)


def test_features_and_options_that_are_not_allowed():
    features = np.random.default_rng(0).normal(size=(6, 3))
    for options, message in (
        ({"clusters": 7}, "6 images cannot make 7 clusters"),
        ({"clusters": 2, "reduction": "umap"}, "allowed: pca, tsne, none"),
    ):
        with pytest.raises(UserError, match=message):
            responsibilities(features, seed=0, **options)
    with pytest.raises(UserError, match="exact t-SNE of 5001 images"):
        responsibilities(np.random.default_rng(0).normal(size=(5001, 2)), clusters=2, reduction="tsne", seed=0)
    features[2, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        responsibilities(features, clusters=2, seed=0)


def test_the_picture_has_two_coordinates():
    features, labels = planted((10, 10))
    points = cluster(range(20), features, clusters=1, seed=0).embedding
    assert points.shape == (20, 2)
    assert abs(points[labels == 0, 0].mean() - points[labels == 1, 0].mean()) > 3 * points[labels == 0, 0].std()
    assert cluster("abcd", np.arange(4.0)[:, None], clusters=1, seed=0).embedding.shape == (4, 2)


# ------------------------------------------------------------------------------------- subsets

SOFT = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])  # of scenes a, b, c: contents 0, 1, 0


def columns(distortions=("jpeg", "blur"), levels=(1, 2), scenes="abc"):
    rows = [(d, level, scene) for d in distortions for level in levels for scene in scenes]
    contents = Contents(tuple("abc"), SOFT, np.zeros((3, 2)))
    kinds, numbers, references = zip(*rows, strict=True)
    return np.array(kinds), np.array(numbers), contents.of(references)


def test_every_image_is_in_the_subset_of_its_distortion_and_content():
    distortions, levels, soft = columns()
    division = divide(distortions, soft, smallest=1)
    assert division.names == ("blur | content 0", "blur | content 1", "jpeg | content 0", "jpeg | content 1")
    names = np.array(division.names)[division.subsets]
    expected = [f"{d} | content {c}" for d, c in zip(distortions, [0, 1, 0] * 4, strict=True)]
    assert names.tolist() == expected
    np.testing.assert_allclose(division.weights, [0.9, 0.8, 0.6] * 4, rtol=1e-6)
    np.testing.assert_allclose(division.responsibilities.sum(axis=1), 1)
    assert division.sizes.tolist() == [4, 2, 4, 2]
    assert division.report == ("4 subsets of 12 images; 2 to 4 images each",)


def test_levels_as_a_confounder_and_the_division_without_content():
    distortions, levels, soft = columns()
    with_levels = divide(distortions, soft, levels=levels, smallest=1)
    assert len(with_levels.names) == 8 and "jpeg | level 2 | content 1" in with_levels.names
    plain = divide(distortions, soft, content=False, smallest=1)
    assert plain.names == ("blur", "jpeg") and plain.sizes.tolist() == [6, 6] and (plain.weights == 1).all()


def test_undistorted_images_make_subsets_of_their_own():
    distortions, _, soft = columns(("", "jpeg"))
    assert divide(distortions, soft, smallest=1).names[:2] == ("undistorted | content 0", "undistorted | content 1")


def test_a_tiny_subset_is_joined_to_the_largest_of_its_distortion():
    distortions, _, soft = columns()
    division = divide(distortions, soft, smallest=3)
    assert division.names == ("blur | content 0+1", "jpeg | content 0+1")
    assert division.sizes.tolist() == [6, 6]
    np.testing.assert_allclose(division.weights, 1)  # of both contents together
    assert "jpeg | content 1: 2 images, fewer than 3: joined to jpeg | content 0" in division.report


def test_a_rare_distortion_stays():
    division = divide(["jpeg"] * 9 + ["blur"], np.tile([[0.7, 0.3]], (10, 1)), smallest=5)
    assert division.names == ("blur | content 0", "jpeg | content 0") and division.sizes.tolist() == [1, 9]
    assert "blur | content 1: empty" in division.report
    assert any("blur | content 0: 1 images, fewer than 5" in line for line in division.report)


def test_joining_goes_on_until_all_are_large_enough():
    soft = np.eye(4)[np.repeat(np.arange(4), (10, 1, 2, 6))]
    division = divide(["jpeg"] * 19, soft, smallest=4)
    assert division.names == ("jpeg | content 0+1+2", "jpeg | content 3") and division.sizes.tolist() == [13, 6]


def test_only_the_rows_that_train_are_divided():
    distortions, _, soft = columns()
    held_out = np.flatnonzero(distortions == "jpeg")
    division = divide(distortions, soft, rows=np.setdiff1d(np.arange(12), held_out), smallest=1)
    assert (division.subsets[held_out] == -1).all() and (division.weights[held_out] == 0).all()
    assert division.names == ("blur | content 0", "blur | content 1") and division.sizes.sum() == 6


def test_columns_that_do_not_fit():
    with pytest.raises(ValueError, match="one row an image"):
        divide(["jpeg"], np.ones((2, 1)))
    with pytest.raises(ValueError, match="each row sums to 1"):
        divide(["jpeg"], np.array([[0.5, 0.1]]))
    with pytest.raises(ValueError, match="at least one image"):
        divide(["jpeg"], np.ones((1, 1)), rows=[])
    with pytest.raises(UserError, match="no content cluster is known for z; cluster all"):
        Contents(("a",), np.ones((1, 1)), np.zeros((1, 2))).of(["a", "z"])


def test_a_name_for_each_feature():
    with pytest.raises(ValueError, match="2 names for the features of 3 images"):
        cluster(["a", "b"], np.ones((3, 2)), clusters=1, seed=0)
