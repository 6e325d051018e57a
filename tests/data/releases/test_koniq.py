"""The KonIQ-10k reader against releases that the test writes: two labels, two scales, and a file that confuses them."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.releases import build, koniq
from cprl_jax.runtime.errors import UserError

SETS = ["training"] * 28 + ["validation"] * 4 + ["test"] * 8


class Release:
    """A folder laid out as the official release; change `rows` or `sets` and call `write_lists`."""

    def __init__(self, folder, sets, images=True):
        self.root = folder / "koniq10k"
        self.images = self.root / "1024x768"
        self.images.mkdir(parents=True)
        blank = folder / "blank"  # many links to one file are made faster than many files
        blank.touch()
        rng = np.random.default_rng(7)
        low, high = koniq.SCORE_RANGE
        self.rows = []
        for i, mos in enumerate(np.linspace(low, high, len(sets))):
            below = int(mos)  # the votes that have this mean: for two neighbouring scores
            share = round(mos - below, 6)
            votes = [0.0] * 5
            votes[below - 1], votes[below] = 1 - share, share
            name, zscore = f"{10004473376 + i * 37}.jpg", round(3.5 + 88 * (mos - low) / (high - low), 6)
            row = {"image_name": name} | {f"c{k + 1}": 100 * vote for k, vote in enumerate(votes)} | {"c_total": 100}
            self.rows.append(row | {"MOS": round(mos, 6), "SD": 0.5 + 0.001 * (i % 100), "MOS_zscore": zscore})
            if images:
                image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
                image.save(self.images / name)
            else:
                os.link(blank, self.images / name)
        self.sets = [[row["image_name"], row["MOS_zscore"], part] for row, part in zip(self.rows, sets, strict=True)]
        self.write_lists()

    def write_lists(self):
        with open(self.root / "koniq10k_scores_and_distributions.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[0]))
            writer.writeheader()
            writer.writerows(self.rows)
        with open(self.root / "koniq10k_distributions_sets.csv", "w", newline="") as file:
            csv.writer(file).writerows([["image_name", "MOS", "set"], *self.sets])

    def column(self, name):
        return np.array([row[name] for row in self.rows], np.float32)


@pytest.fixture
def small(monkeypatch):
    """40 images of the 10 073, and a reader that expects those."""
    monkeypatch.setattr(koniq, "ROWS", 40)
    monkeypatch.setattr(
        koniq, "PARTS", {"training": ("train", 28), "validation": ("validation", 4), "test": ("test", 8)}
    )


@pytest.fixture
def release(small, tmp_path):
    return Release(tmp_path / "manual", SETS)


@pytest.fixture
def undecoded(small, tmp_path):
    """The same with empty image files, which is all that `read` needs."""
    return Release(tmp_path / "manual", SETS, images=False)


def load(release, tmp_path, **options):
    return build.load(koniq, manual_dir=str(release.root.parent), data_dir=str(tmp_path / "tfds"), **options)


def test_full_release_has_no_problem(tmp_path):
    release = Release(tmp_path, ["training"] * 7058 + ["validation"] * 1000 + ["test"] * 2015, images=False)
    contents = koniq.read(release.root)
    assert contents.problems == []
    assert len(contents.records) == 10_073
    assert [record.part for record in contents.records].count("test") == 2015


def test_reads_back_the_zscores(release, tmp_path):
    dataset = load(release, tmp_path, koniq_scores="zscore")
    assert dataset.name == "koniq" and len(dataset) == 40
    assert dataset.names.tolist() == [row["image_name"] for row in release.rows]
    np.testing.assert_array_equal(dataset.mos, release.column("MOS_zscore"))
    np.testing.assert_array_equal(dataset.mos_raw, dataset.mos)
    assert np.isnan(dataset.mos_std).all()  # SD belongs to the other scale
    assert dataset.parts.tolist() == ["train"] * 28 + ["validation"] * 4 + ["test"] * 8
    assert dataset.references.tolist() == dataset.names.tolist()
    assert set(dataset.distortions) == {""} and set(dataset.levels) == {0} and len(dataset.pristine) == 0
    np.testing.assert_array_equal(dataset.images[39], np.asarray(Image.open(release.images / dataset.names[39])))


def test_reads_back_the_mos(release, tmp_path):
    dataset = load(release, tmp_path, koniq_scores="mos")
    np.testing.assert_array_equal(dataset.mos_raw, release.column("MOS"))
    np.testing.assert_allclose(dataset.mos, (release.column("MOS") - 1) * 25, rtol=1e-6)
    np.testing.assert_array_equal(dataset.mos_std, release.column("SD"))
    other = load(release, tmp_path, koniq_scores="zscore")  # one release, two builds
    assert not np.allclose(other.mos, dataset.mos)


def test_another_label_is_refused(undecoded):
    with pytest.raises(UserError, match=r"koniq_scores is 'z'; allowed: zscore, mos"):
        koniq.read(undecoded.root, koniq_scores="z")


def test_without_the_official_split(undecoded):
    (undecoded.root / "koniq10k_distributions_sets.csv").unlink()
    contents = koniq.read(undecoded.root)
    assert contents.problems == [] and {record.part for record in contents.records} == {""}


def test_small_images_when_the_large_ones_are_not_there(undecoded):
    undecoded.images.rename(undecoded.root / "512x384")
    contents = koniq.read(undecoded.root)
    assert contents.problems == [] and contents.records[0].path.parent.name == "512x384"
    undecoded.images.mkdir()  # but never a mixture of both
    assert len(koniq.read(undecoded.root).problems) == 40


def test_archives_unpacked_to_folders_of_their_own(undecoded):
    undecoded.images.rename(undecoded.root / "moved")
    (undecoded.root / "koniq10k_1024x768").mkdir()
    (undecoded.root / "moved").rename(undecoded.root / "koniq10k_1024x768" / "1024x768")
    scores = undecoded.root / "koniq10k_scores_and_distributions"
    scores.mkdir()
    (undecoded.root / "koniq10k_scores_and_distributions.csv").rename(scores / "koniq10k_scores_and_distributions.csv")
    assert koniq.looks_like(undecoded.root) and koniq.read(undecoded.root).problems == []


def name(release, row=7):
    return release.rows[row]["image_name"]


def missing_image(release):
    (release.images / name(release)).unlink()


def missing_images(release):
    release.images.rename(release.root / "images")


def missing_scores(release):
    (release.root / "koniq10k_scores_and_distributions.csv").unlink()


def sets_as_scores(release):
    for row in release.rows:
        row["MOS"] = row["MOS_zscore"]
    release.write_lists()


def without_zscores(release):
    for row in release.rows:
        del row["MOS_zscore"]
    release.write_lists()


def out_of_range(release):
    release.rows[7]["MOS_zscore"] = 100.5
    release.write_lists()


def not_a_number(release):
    release.rows[7]["MOS_zscore"] = ""
    release.write_lists()


def repeated(release):
    release.rows[8]["image_name"] = name(release)
    release.write_lists()


def short(release):
    release.rows.pop()
    release.write_lists()


def other_mos(release):
    for row in release.rows:
        row["MOS"] = 1 + 0.9 * (row["MOS"] - 1)
    release.write_lists()


def flipped(release):
    for row in release.rows:
        row["MOS_zscore"] = 100 - row["MOS_zscore"]
    release.write_lists()


def unknown_set(release):
    release.sets[7][2] = "dev"
    release.write_lists()


def other_split(release):
    release.sets[7][2] = "test"
    release.write_lists()


def short_split(release):
    release.sets.pop()
    release.write_lists()


def repeated_in_split(release):
    release.sets[8][0] = name(release)
    release.write_lists()


def unknown_in_split(release):
    release.sets[8][0] = "1.jpg"
    release.write_lists()


@pytest.mark.parametrize(
    "damage, said",
    [
        (missing_image, "row 8 ('10004473635.jpg'): no such image file in 1024x768"),
        (missing_images, "folder 1024x768 or 512x384 is missing"),
        (missing_scores, "koniq10k_scores_and_distributions.csv is missing: koniq10k_distributions_sets.csv has other"),
        (sets_as_scores, "the column MOS runs from 3.5 to 91.5, the 0..100 scale of koniq10k_distributions_sets.csv"),
        (without_zscores, "koniq10k_scores_and_distributions.csv has no column MOS_zscore, only image_name, c1"),
        (out_of_range, "row 8 ('10004473635.jpg'): the score is 100.5, not within 0..100"),
        (not_a_number, "row 8 ('10004473635.jpg'): the score is nan"),
        (repeated, "row 9 ('10004473635.jpg'): listed before, in row 8"),
        (short, "koniq10k_scores_and_distributions.csv, rows: 39, but the release has 40"),
        (other_mos, "column MOS: scores range over 1.0864..3.979, but those of the release over 1.096..4.31"),
        (flipped, "the labels look flipped: the column MOS_zscore falls where the votes (c1 to c5) rise"),
        (
            unknown_set,
            "koniq10k_distributions_sets.csv, row 8 ('10004473635.jpg'): the set is 'dev', not one of training",
        ),
        (other_split, "koniq10k_distributions_sets.csv, images of the test set: 9, but the release has 8"),
        (short_split, "koniq10k_distributions_sets.csv does not list 1 images: 10004474819.jpg"),
        (repeated_in_split, "koniq10k_distributions_sets.csv, row 9 ('10004473635.jpg'): listed before"),
        (unknown_in_split, "lists images that koniq10k_scores_and_distributions.csv does not: 1.jpg"),
    ],
)
def test_damage_is_named(undecoded, damage, said):
    damage(undecoded)
    assert said in " | ".join(koniq.read(undecoded.root).problems)


def test_the_wrong_scale_is_one_problem_not_one_of_each_row(undecoded):
    sets_as_scores(undecoded)
    missing_image(undecoded)
    problems = koniq.read(undecoded.root, koniq_scores="mos").problems
    assert len(problems) == 2 and "the column MOS runs from" in problems[0] and "no such image file" in problems[1]


def test_a_wrong_standard_deviation_matters_only_to_its_own_scale(undecoded):
    undecoded.rows[7]["SD"] = -1
    undecoded.write_lists()
    assert koniq.read(undecoded.root, koniq_scores="zscore").problems == []
    (problem,) = koniq.read(undecoded.root, koniq_scores="mos").problems
    assert "row 8 ('10004473635.jpg'): the standard deviation is -1" in problem


def test_all_problems_at_once_and_nothing_is_written(release, tmp_path):
    out_of_range(release)
    unknown_set(release)
    path = release.images / name(release, 39)
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(UserError, match="4 problems") as caught:  # with the set that now lacks an image
        load(release, tmp_path)
    message = str(caught.value)
    assert "the score is 100.5" in message and "the set is 'dev'" in message and "\n" not in message
    assert "row 40 ('10004474819.jpg'): the image cannot be read" in message
    assert not (tmp_path / "tfds").exists()


def test_absent_release_says_what_goes_where(tmp_path):
    with pytest.raises(UserError, match=r"no KonIQ-10k release .*koniq10k_scores_and_distributions\.csv"):
        build.load(koniq, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
