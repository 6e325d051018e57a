"""The TID2013 reader against releases that the test writes, with the official layout and its mixture of cases."""

import math
import os

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.releases import build, tid2013
from cprl_jax.runtime.errors import UserError

LOW, HIGH = tid2013.SCORE_RANGE


class Release:
    """A folder laid out as the official release; change `rows` (score, name) or `deviations` and call `write_lists`."""

    reader = tid2013

    def __init__(self, folder, scenes, images=True):
        self.root = folder / "tid2013"
        self.distorted, self.references = self.root / "distorted_images", self.root / "reference_images"
        self.distorted.mkdir(parents=True)
        self.references.mkdir()
        keys = [(s, d, level) for s in range(1, scenes + 1) for d in range(1, 25) for level in range(1, 6)]
        rank = {key: i for i, key in enumerate(sorted(keys, key=lambda key: (key[2], key[1], key[0])))}
        scores = [HIGH - (HIGH - LOW) * rank[key] / (len(keys) - 1) for key in keys]
        names = [f"i{s:02}_{d:02}_{level}.bmp" for s, d, level in keys]
        # The list and the disk disagree about capitals, as in the archive.
        self.rows = [
            [score, name.upper().replace("BMP", "bmp") if i % 40 == 3 else name]
            for i, (score, name) in enumerate(zip(scores, names, strict=True))
        ]
        self.deviations = [0.1 + 0.001 * i for i in range(len(keys))]
        blank = folder / "blank"  # many links to one file are made faster than many files
        blank.touch()
        rng = np.random.default_rng(3)
        files = [self.distorted / (f"I{name[1:]}" if i % 40 == 5 else name) for i, name in enumerate(names)]
        files += [self.references / (f"I{s:02}.BMP" if s < scenes else f"i{s:02}.bmp") for s in range(1, scenes + 1)]
        for path in files:
            if images:
                Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path, "BMP")
            else:
                os.link(blank, path)
        self.write_lists()

    def write_lists(self):
        lines = [f"{score:.5f} {name}\r\n" for score, name in self.rows]
        (self.root / "mos_with_names.txt").write_text("".join(lines))
        (self.root / "mos_std.txt").write_text("".join(f"{std:.5f}\r\n" for std in self.deviations))


def test_full_release_has_no_problem(tmp_path):
    made = Release(tmp_path, 25, images=False)
    contents = tid2013.read(made.root)
    assert contents.problems == []
    assert len(contents.records) == 3000 and len(contents.pristine) == 25
    assert sum(record.distortion == "jpeg" for record in contents.records) == 125


def test_reads_back_what_the_release_says(made, tmp_path):
    dataset = build.load(tid2013, manual_dir=str(made.root.parent), data_dir=str(tmp_path / "tfds"))
    assert dataset.name == "tid2013" and len(dataset) == 240
    assert dataset.names.tolist() == [name for _, name in made.rows]
    raw = np.array([round(score, 5) for score, _ in made.rows])
    np.testing.assert_allclose(dataset.mos_raw, raw, rtol=1e-6)
    np.testing.assert_allclose(dataset.mos, raw / 9 * 100, rtol=1e-6)
    np.testing.assert_allclose(dataset.mos_std, np.round(made.deviations, 5), rtol=1e-6)
    assert dataset.references.tolist() == ["I01"] * 120 + ["I02"] * 120
    assert dataset.levels.tolist() == [1, 2, 3, 4, 5] * 48
    assert dataset.distortions[:120].tolist() == [kind for kind in tid2013.DISTORTIONS for _ in range(5)]
    assert set(dataset.parts) == {""}
    for i in (3, 5, 239):  # 3: capitals in the list, 5: capitals on disk
        file = next(p for p in made.distorted.iterdir() if p.name.lower() == dataset.names[i].lower())
        np.testing.assert_array_equal(dataset.images[i], np.asarray(Image.open(file)))
    np.testing.assert_array_equal(dataset.pristine["I02"], np.asarray(Image.open(made.references / "i02.bmp")))


def test_types_are_in_the_order_of_the_file_names():
    assert len(tid2013.DISTORTIONS) == 24
    assert tid2013.DISTORTIONS[0] == "white-noise" and tid2013.DISTORTIONS[10] == "jpeg2000"
    abbreviations = "AGN ANC SCN MN HFN IN QN GB DEN JPEG JP2K JGTE J2TE NEPN BLOCK MS CTC CCS MGN CN LCNI ICQD CHA SSR"
    assert list(tid2013.ABBREVIATIONS.values()) == abbreviations.split()


def missing_image(made):
    (made.distorted / "i01_02_3.bmp").unlink()


def missing_reference(made):
    (made.references / "i02.bmp").unlink()


def missing_list(made):
    (made.root / "mos_with_names.txt").unlink()


def missing_deviations(made):
    (made.root / "mos_std.txt").unlink()


def out_of_range(made):
    made.rows[7][0] = 9.5
    made.write_lists()


def not_a_number(made):
    made.rows[7][0] = math.nan
    made.write_lists()


def negative_deviation(made):
    made.deviations[7] = -0.1
    made.write_lists()


def other_name(made):
    made.rows[7][1] = "i26_02_3.bmp"
    made.write_lists()


def repeated(made):
    made.rows[8] = [made.rows[8][0], made.rows[7][1].upper()]
    made.write_lists()


def short(made):
    made.rows.pop()
    made.write_lists()


def flipped(made):
    for row in made.rows:
        row[0] = LOW + HIGH - row[0]
    made.write_lists()


def rescaled(made):
    for row in made.rows:
        row[0] /= 9
    made.write_lists()


def without_names(made):
    (made.root / "mos_with_names.txt").write_text("5.1\n" * 240)


def two_spellings(made):
    Image.new("RGB", (8, 8)).save(made.distorted / "I01_02_3.bmp")
    made.rows[7][1] = "I01_02_3.BMP"
    made.write_lists()


@pytest.mark.parametrize(
    "damage, said",
    [
        (missing_image, "row 8 ('i01_02_3.bmp'): no such image file in distorted_images"),
        (missing_reference, "reference 'I02.BMP': no such image file in reference_images"),
        (missing_list, "mos_with_names.txt is missing"),
        (missing_deviations, "mos_std.txt is missing"),
        (out_of_range, "row 8 ('i01_02_3.bmp'): the score is 9.5, not within 0..9"),
        (not_a_number, "row 8 ('i01_02_3.bmp'): the score is nan"),
        (negative_deviation, "row 8 ('i01_02_3.bmp'): the standard deviation is -0.1"),
        (other_name, "mos_with_names.txt, row 8: 'i26_02_3.bmp' is not an image of this release"),
        (repeated, "row 9 ('I01_02_3.BMP'): listed before, in row 8"),
        (short, "lacks 1 of the 240 images of the release: i02_24_5.bmp"),
        (short, "the lists differ in length: mos_with_names.txt has 239 rows, mos_std.txt 240"),
        (flipped, "the labels look flipped"),
        (rescaled, "scores range over 0.0269"),
        (without_names, "mos_with_names.txt does not hold a score and a name in line 1, 2, 3, 4, 5, and 235 more"),
        (two_spellings, "row 8 ('I01_02_3.BMP'): several files of distorted_images match"),
    ],
)
def test_damage_is_named(undecoded, damage, said):
    damage(undecoded)
    assert said in " | ".join(tid2013.read(undecoded.root).problems)


def test_all_problems_at_once_and_nothing_is_written(made, tmp_path):
    out_of_range(made)
    missing_reference(made)
    path = made.distorted / "i02_24_5.bmp"
    path.write_bytes(path.read_bytes()[:-30])
    (made.distorted / "i02_24_4.bmp").write_bytes((made.distorted / "i02_24_3.bmp").read_bytes())
    with pytest.raises(UserError, match="4 problems") as caught:
        build.load(tid2013, manual_dir=str(made.root), data_dir=str(tmp_path / "tfds"))
    message = str(caught.value)
    for part in ("the score is 9.5", "reference 'I02.BMP'", "identical: i02_24_3.bmp, i02_24_4.bmp"):
        assert part in message
    assert "row 240 ('i02_24_5.bmp'): the image cannot be read" in message and "\n" not in message
    assert not (tmp_path / "tfds").exists()


def test_absent_release_says_what_goes_where(tmp_path):
    with pytest.raises(UserError, match=r"no TID2013 release .*mos_with_names\.txt"):
        build.load(tid2013, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
