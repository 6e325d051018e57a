"""The reader of LIVE against trees in the official layout: 982 tiny files and three lists."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from cprl_jax.data.releases import build, live
from cprl_jax.runtime.errors import UserError

SIZES = {"jp2k": 227, "jpeg": 233, "wn": 174, "gblur": 174, "fastfading": 174}
ORIGINALS = {"jp2k": 58, "jpeg": 58, "wn": 29, "gblur": 29, "fastfading": 29}
DISTORTED = {"jp2k": 169, "jpeg": 175, "wn": 145, "gblur": 145, "fastfading": 145}
SCENES = [f"scene{i:02}" for i in range(29)]


@dataclasses.dataclass
class Lists:
    """The lists of a release; change them and call `write`."""

    folder: Path
    write_mat: object
    names: list[str]
    dmos: np.ndarray
    std: np.ndarray
    orgs: np.ndarray
    other_orgs: np.ndarray
    references: list[str]

    def write(self):
        for name in ("dmos_realigned", "dmos", "refnames_all"):
            (self.folder / f"{name}.mat").unlink(missing_ok=True)
        self.write_mat(self.folder / "dmos_realigned.mat", dmos_new=self.dmos, dmos_std=self.std, orgs=self.orgs)
        self.write_mat(self.folder / "dmos.mat", dmos=self.dmos, orgs=self.other_orgs)
        # refnames_all is a row of cells, not a column
        cells = np.empty((1, len(self.references)), object)
        cells[0] = self.references
        scipy.io.savemat(self.folder / "refnames_all.mat", {"refnames_all": cells})

    def rated(self):
        return np.flatnonzero(self.orgs == 0)


@pytest.fixture(scope="module")
def sound(tmp_path_factory, tiny_image, write_mat):
    folder = tmp_path_factory.mktemp("live") / "databaserelease2"
    rng = np.random.default_rng(3)
    names, orgs = [], []
    for kind, size in SIZES.items():
        (folder / kind).mkdir(parents=True)
        mine = np.zeros(size, np.uint8)
        mine[rng.choice(size, ORIGINALS[kind], replace=False)] = 1
        for i in range(1, size + 1):
            (folder / kind / f"img{i}.bmp").write_bytes(tiny_image(len(names) + i))
        names += [f"{kind}/img{i}.bmp" for i in range(1, size + 1)]
        orgs += mine.tolist()
    (folder / "refimgs").mkdir()
    for i, scene in enumerate(SCENES):
        (folder / "refimgs" / f"{scene}.bmp").write_bytes(tiny_image(10000 + i))
    dmos = rng.uniform(0, 100, 982)
    orgs = np.array(orgs, np.uint8)
    dmos[orgs == 1] = 0
    rated = np.flatnonzero(orgs == 0)
    dmos[rated[5]], dmos[rated[9]] = -2.640015016409613, 111.7746935263145  # the lowest and the highest of the release
    references = [f"{scene}.bmp" for scene in rng.permutation(np.resize(SCENES, 982))]
    lists = Lists(folder, write_mat, names, dmos, rng.uniform(3, 12, 982), orgs, orgs.copy(), references)
    lists.write()
    return lists


@pytest.fixture
def release(sound, tmp_path, copy_tree):
    folder = tmp_path / "manual" / "databaserelease2"
    folder.mkdir(parents=True)
    for path in sound.folder.iterdir():
        if path.name in ("jp2k", "wn", "gblur", "refimgs"):  # those that tests damage
            copy_tree(path, folder / path.name)
        else:
            (folder / path.name).symlink_to(path)
    lists = ("dmos", "std", "orgs", "other_orgs", "references")
    return dataclasses.replace(sound, folder=folder, **{name: getattr(sound, name).copy() for name in lists})


def load(release, tmp_path, **options):
    return build.load(live, manual_dir=str(release.folder.parent), data_dir=str(tmp_path / "tfds"), **options)


def test_reads_back_what_the_release_says(sound, tmp_path):
    dataset = load(sound, tmp_path)
    rated = sound.rated()
    assert len(dataset) == 779 and dataset.name == "live"
    assert dataset.names.tolist() == [sound.names[i] for i in rated]
    np.testing.assert_array_equal(dataset.mos_raw, sound.dmos[rated].astype(np.float32))
    np.testing.assert_array_equal(dataset.mos_std, sound.std[rated].astype(np.float32))
    np.testing.assert_allclose(dataset.mos, 100 * (111.7747 - sound.dmos[rated]) / 114.41472, rtol=1e-5, atol=1e-4)
    assert dataset.mos[5] > 99.999 and dataset.mos[9] < 0.001  # the undamaged and the most damaged image
    assert dataset.references.tolist() == [sound.references[i].removesuffix(".bmp") for i in rated]
    names = {"jp2k": "jpeg2000", "wn": "white-noise", "gblur": "gaussian-blur", "fastfading": "fast-fading"}
    folders = [sound.names[i].split("/")[0] for i in rated]
    assert dataset.distortions.tolist() == [names.get(folder, folder) for folder in folders]
    kinds, counts = np.unique(dataset.distortions, return_counts=True)
    assert dict(zip(kinds, counts, strict=True)) == {names.get(kind, kind): n for kind, n in DISTORTED.items()}
    assert set(dataset.levels) == {0} and set(dataset.parts) == {""}
    for i in (0, 400, 778):
        np.testing.assert_array_equal(dataset.images[i], np.asarray(Image.open(sound.folder / dataset.names[i])))
    assert sorted(dataset.pristine) == SCENES
    np.testing.assert_array_equal(
        dataset.pristine["scene07"], np.asarray(Image.open(sound.folder / "refimgs" / "scene07.bmp"))
    )


def problems_of(release):
    return live.read(release.folder).problems


def test_a_sound_release_has_no_problems(release):
    assert problems_of(release) == []


def nan_score(release):
    release.dmos[release.rated()[3]] = np.nan


def score_too_high(release):
    release.dmos[release.rated()[3]] = 111.8


def score_too_low(release):
    release.dmos[release.rated()[3]] = -2.7


def unrealigned_scores(release):
    release.dmos = np.clip(release.dmos, 0, 100)


def other_direction(release):
    release.dmos = release.dmos.max() - release.dmos


def negative_deviation(release):
    release.std[release.rated()[3]] = -1


def disagreeing_originals(release):
    release.other_orgs[release.rated()[3]] = 1


def one_original_less(release):
    release.orgs[np.flatnonzero(release.orgs)[0]] = 0
    release.other_orgs = release.orgs


def short_scores(release):
    release.dmos = release.dmos[:-1]


def short_references(release):
    release.references.pop()


def unknown_reference(release):
    release.references[20] = "nowhere.bmp"


def missing_image(release):
    (release.folder / "wn" / "img100.bmp").unlink()


def missing_reference(release):
    (release.folder / "refimgs" / "scene28.bmp").unlink()


def missing_folder(release):
    shutil.rmtree(release.folder / "gblur")


@pytest.mark.parametrize(
    "damage, said",
    [
        (nan_score, "the DMOS is nan, not within -2.64002..111.775"),
        (score_too_high, "the DMOS is 111.8, not within"),
        (score_too_low, "the DMOS is -2.7, not within"),
        (unrealigned_scores, "dmos_new range over 0..100, but those of the release over -2.64002..111.775"),
        (other_direction, "the DMOS is 114.41"),
        (negative_deviation, "the standard deviation is -1.0, not a number of 0 or more"),
        (disagreeing_originals, "dmos_realigned.mat and dmos.mat disagree on orgs (0 and 1)"),
        (one_original_less, "distorted images of jp2k: 170, but the release has 169"),
        (short_scores, "rows of dmos_new: 981, but the release has 982"),
        (short_references, "rows of refnames_all: 981, but the release has 982"),
        (unknown_reference, "reference 'nowhere.bmp': no such image file in refimgs"),
        (missing_image, "row 560 ('wn/img100.bmp'): no such image file in wn"),
        (missing_reference, "reference 'scene28.bmp': no such image file in refimgs"),
        (missing_folder, "folder gblur is missing or holds no images"),
    ],
)
def test_damage_is_named(release, damage, said):
    damage(release)
    release.write()
    problems = problems_of(release)
    assert any(said in problem for problem in problems), problems
    assert not any("\n" in problem for problem in problems)


@pytest.mark.parametrize(
    "file, variable",
    [("dmos_realigned", "dmos_new"), ("dmos_realigned", "orgs"), ("dmos", "orgs"), ("refnames_all", "refnames_all")],
)
def test_lists_that_are_missing_or_others(release, write_mat, file, variable):
    path = release.folder / f"{file}.mat"
    path.unlink()
    assert f"databaserelease2/{file}.mat is missing" in problems_of(release)
    write_mat(path, other=[1.0])
    assert f"databaserelease2/{file}.mat has no variable {variable}, only other" in problems_of(release)


def test_all_problems_at_once_and_nothing_is_written(release, tmp_path, replace_file):
    nan_score(release)
    release.std = release.std[:-1]
    release.write()
    names = [release.names[i] for i in release.rated()]
    missing, truncated, original, copied = names[:3] + names[-1:]
    (release.folder / missing).unlink()
    replace_file(release.folder / truncated, (release.folder / truncated).read_bytes()[:-60])
    replace_file(release.folder / copied, (release.folder / original).read_bytes())
    replace_file(release.folder / "refimgs" / "scene03.bmp", b"")
    with pytest.raises(UserError, match="LIVE release in .* has 6 problems") as caught:
        load(release, tmp_path)
    message = str(caught.value)
    assert "\n" not in message and not (tmp_path / "tfds").exists()
    for part in (
        f"{missing!r}): no such image file",
        "rows of dmos_std: 981",
        "the DMOS is nan",
        f"{truncated!r}): the image cannot be read",
        "reference 'scene03.bmp': the image cannot be read: an empty file",
        "these image files are identical",
    ):
        assert part in message


def test_absent_release_says_what_goes_where(tmp_path):
    with pytest.raises(UserError, match=r"no LIVE release.*dmos_realigned\.mat.*manual_dir=FOLDER") as caught:
        build.load(live, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
    assert live.URL in str(caught.value)
