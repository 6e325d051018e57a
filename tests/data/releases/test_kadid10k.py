"""The KADID-10k reader against releases that the test writes, with the official layout and its misnamed `dmos`."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.releases import build, kadid10k
from cprl_jax.runtime.errors import UserError

LOW, HIGH = kadid10k.SCORE_RANGE


class Release:
    """A folder laid out as the official release; change `header` or `rows` and call `write_list`."""

    reader = kadid10k

    def __init__(self, folder, scenes, images=True):
        self.root = folder / "kadid10k"
        self.images = self.root / "images"
        self.images.mkdir(parents=True)
        keys = [(s, d, level) for s in range(1, scenes + 1) for d in range(1, 26) for level in range(1, 6)]
        rank = {key: i for i, key in enumerate(sorted(keys, key=lambda key: (key[2], key[1], key[0])))}
        self.header = ["dist_img", "ref_img", "dmos", "var"]
        self.rows = [
            [
                f"I{s:02}_{d:02}_{level:02}.png",
                f"I{s:02}.png",
                round(HIGH - (HIGH - LOW) * rank[s, d, level] / (len(keys) - 1), 4),
                0.25 * level,
            ]
            for s, d, level in keys
        ]
        blank = folder / "blank"  # many links to one file are made faster than many files
        blank.touch()
        rng = np.random.default_rng(5)
        for name in dict.fromkeys(row[column] for column in (0, 1) for row in self.rows):
            if images:
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(self.images / name)
            else:
                os.link(blank, self.images / name)
        self.write_list()

    def write_list(self):
        with open(self.root / "dmos.csv", "w", newline="") as file:
            csv.writer(file).writerows([self.header, *self.rows])


def test_full_release_has_no_problem(tmp_path):
    made = Release(tmp_path, 81, images=False)
    contents = kadid10k.read(made.root)
    assert contents.problems == []
    assert len(contents.records) == 10_125 and len(contents.pristine) == 81


def test_reads_back_what_the_release_says(made, tmp_path):
    dataset = build.load(kadid10k, manual_dir=str(made.root.parent), data_dir=str(tmp_path / "tfds"))
    assert dataset.name == "kadid10k" and len(dataset) == 250
    assert dataset.names.tolist() == [row[0] for row in made.rows]
    raw = np.array([row[2] for row in made.rows])
    np.testing.assert_allclose(dataset.mos_raw, raw, rtol=1e-6)
    np.testing.assert_allclose(dataset.mos, (raw - 1) / 4 * 100, rtol=1e-5, atol=1e-5)
    # "dmos" is a MOS: the mildest level has the best label.
    assert dataset.mos[dataset.levels == 1].mean() > dataset.mos[dataset.levels == 5].mean()
    np.testing.assert_allclose(dataset.mos_std, np.sqrt([row[3] for row in made.rows]), rtol=1e-6)
    assert dataset.references.tolist() == ["I01"] * 125 + ["I02"] * 125
    assert dataset.distortions[:125].tolist() == [kind for kind in kadid10k.DISTORTIONS for _ in range(5)]
    assert set(dataset.pristine) == {"I01", "I02"}
    for i in (0, 249):
        np.testing.assert_array_equal(dataset.images[i], np.asarray(Image.open(made.images / dataset.names[i])))
    np.testing.assert_array_equal(dataset.pristine["I01"], np.asarray(Image.open(made.images / "I01.png")))


def test_types_are_in_the_order_of_the_file_names():
    assert len(kadid10k.DISTORTIONS) == 25
    assert kadid10k.DISTORTIONS[9] == "jpeg" and kadid10k.DISTORTIONS[24] == "contrast-change"
    abbreviations = "GB LB MB CD CS CQ CSA1 CSA2 JP2K JPEG WN WNCC IN MN DENOISE BRIGHTEN DARKEN MS JITTER NEP"
    abbreviations += " PIXELATE QUANTIZATION CB HS CC"
    assert list(kadid10k.ABBREVIATIONS.values()) == abbreviations.split()


def missing_image(made):
    (made.images / "I01_02_03.png").unlink()


def missing_reference(made):
    (made.images / "I02.png").unlink()


def missing_list(made):
    (made.root / "dmos.csv").unlink()


def missing_column(made):
    made.header[2] = "mos"
    made.write_list()


def out_of_range(made):
    made.rows[7][2] = 0.5
    made.write_list()


def not_a_number(made):
    made.rows[7][2] = "good"
    made.write_list()


def cut_off(made):
    path = made.root / "dmos.csv"
    path.write_text(path.read_text().replace("I01_02_03.png,I01.png", "I01_02_03.png"))


def negative_variance(made):
    made.rows[7][3] = -1
    made.write_list()


def other_reference(made):
    made.rows[7][1] = "I02.png"
    made.write_list()


def other_name(made):
    made.rows[7][0] = "I01_26_03.png"
    made.write_list()


def repeated(made):
    made.rows[8][0] = made.rows[7][0]
    made.write_list()


def short(made):
    made.rows.pop()
    made.write_list()


def empty(made):
    (made.root / "dmos.csv").write_text("")


def binary(made):
    (made.root / "dmos.csv").write_bytes(b"\xff\xfe\x00" * 50)


def flipped(made):
    for row in made.rows:
        row[2] = LOW + HIGH - row[2]
    made.write_list()


def other_scale(made):
    for row in made.rows:
        row[2] = 1 + 0.8 * (row[2] - 1)
    made.write_list()


@pytest.mark.parametrize(
    "damage, said",
    [
        (missing_image, "row 8 ('I01_02_03.png'): no such image file in images"),
        (missing_reference, "reference 'I02.png': no such image file in images"),
        (missing_list, "dmos.csv is missing"),
        (missing_column, "dmos.csv has no column dmos, only dist_img, ref_img, mos, var"),
        (out_of_range, "row 8 ('I01_02_03.png'): the score is 0.5, not within 1..5"),
        (not_a_number, "row 8 ('I01_02_03.png'): the score is nan"),
        (cut_off, "row 8 ('I01_02_03.png'): the variance is nan, not a number of 0 or more"),
        (negative_variance, "row 8 ('I01_02_03.png'): the variance is -1.0, not a number of 0 or more"),
        (other_reference, "row 8 ('I01_02_03.png'): its reference is given as 'I02.png', not as I01.png"),
        (other_name, "dmos.csv, row 8: 'I01_26_03.png' is not an image of this release"),
        (repeated, "row 9 ('I01_02_03.png'): listed before, in row 8"),
        (repeated, "dmos.csv lacks 1 of the 250 images of the release: I01_02_04.png"),
        (short, "dmos.csv lacks 1 of the 250 images of the release: I02_25_05.png"),
        (empty, "dmos.csv has no column dist_img, ref_img, dmos, var, only none at all"),
        (binary, "dmos.csv is not a readable CSV file"),
        (flipped, "the labels look flipped"),
        (other_scale, "dmos.csv: scores range over 1..4.144, but those of the release over 1..4.93"),
    ],
)
def test_damage_is_named(undecoded, damage, said):
    damage(undecoded)
    assert said in " | ".join(kadid10k.read(undecoded.root).problems)


def test_names_match_without_regard_to_case(undecoded):
    (undecoded.images / "I01_02_03.png").rename(undecoded.images / "i01_02_03.PNG")
    assert kadid10k.read(undecoded.root).problems == []


def test_all_problems_at_once_and_nothing_is_written(made, tmp_path):
    out_of_range(made)
    missing_reference(made)
    path = made.images / "I02_25_05.png"
    path.write_bytes(path.read_bytes()[:-30])
    (made.images / "I02_01_02.png").write_bytes((made.images / "I02_01_01.png").read_bytes())
    with pytest.raises(UserError, match="4 problems") as caught:
        build.load(kadid10k, manual_dir=str(made.root), data_dir=str(tmp_path / "tfds"))
    message = str(caught.value)
    for part in ("the score is 0.5", "reference 'I02.png'", "identical: I02_01_01.png, I02_01_02.png"):
        assert part in message
    assert "row 250 ('I02_25_05.png'): the image cannot be read" in message and "\n" not in message
    assert not (tmp_path / "tfds").exists()


def test_absent_release_says_what_goes_where(tmp_path):
    with pytest.raises(UserError, match=r"no KADID-10k release .*dmos\.csv"):
        build.load(kadid10k, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
