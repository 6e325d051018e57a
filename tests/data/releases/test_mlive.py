"""The reader of MLIVE against trees in the official layout: two parts of 225 tiny images each."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data.releases import build, mlive
from cprl_jax.runtime.errors import UserError

FOLDERS = {"Part 1": ("blurjpeg", "jpeg"), "Part 2": ("blurnoise", "noise")}
SCENES = [f"scene{i}" for i in range(15)]


@dataclasses.dataclass
class Part:
    """One part of a release; change its lists and call `write`."""

    folder: object
    write_mat: object
    names: list[str]
    references: list[str]
    reference_of: np.ndarray
    dmos: np.ndarray

    def write(self):
        for name in ("Imagelists.mat", "Scores.mat"):
            (self.folder / name).unlink(missing_ok=True)
        lists = {"distimgs": self.names, "refimgs": self.references, "ref4dist": self.reference_of}
        self.write_mat(self.folder / "Imagelists.mat", **lists)
        self.write_mat(self.folder / "Scores.mat", DMOSscores=self.dmos, Zscores=self.dmos / 100)


def make_part(root, part, tiny_image, write_mat, rng):
    image_folder, second = FOLDERS[part]
    kinds = [f"_blur{i}" for i in (1, 2, 3)] + [f"_{second}{i}" for i in (1, 2, 3)]
    kinds += [f"_blur{i}_{second}{j}" for i in (1, 2, 3) for j in (1, 2, 3)]
    names = [f"{scene}{kind}.bmp" for scene in SCENES for kind in sorted(kinds)]
    images = root / part / image_folder
    images.mkdir(parents=True)
    for name in names + [f"{scene}.bmp" for scene in SCENES]:
        distinct = name if "_blur" in name and second not in name else name + part  # the blurred ones are in both parts
        (images / name).write_bytes(tiny_image(int.from_bytes(distinct.encode(), "big") % 16777213))
    dmos = rng.uniform(10, 80, len(names))
    dmos[20], dmos[30] = {"Part 1": (5.0, 84.42105), "Part 2": (0.61111, 84.66667)}[part]
    order = rng.permutation(15)
    reference_of = np.array([np.flatnonzero(order == i // 15)[0] + 1 for i in range(225)], np.uint8)
    lists = Part(root / part, write_mat, names, [f"{SCENES[i]}.bmp" for i in order], reference_of, dmos)
    lists.write()
    return lists


@pytest.fixture(scope="module")
def sound(tmp_path_factory, tiny_image, write_mat):
    root = tmp_path_factory.mktemp("mlive") / "LIVEmultidistortiondatabase" / "To_Release"
    rng = np.random.default_rng(5)
    return {part: make_part(root, part, tiny_image, write_mat, rng) for part in FOLDERS}


@pytest.fixture
def release(sound, tmp_path, copy_tree):
    copies = {}
    for part, lists in sound.items():
        folder = copy_tree(lists.folder, tmp_path / "LIVEmultidistortiondatabase" / part)
        columns = {name: getattr(lists, name).copy() for name in ("names", "references", "reference_of", "dmos")}
        copies[part] = dataclasses.replace(lists, folder=folder, **columns)
    return copies


def problems_of(release):
    return mlive.read(release["Part 1"].folder.parent).problems


def test_reads_back_what_the_release_says(sound, tmp_path):
    root = sound["Part 1"].folder.parent
    dataset = build.load(mlive, manual_dir=str(root.parent.parent), data_dir=str(tmp_path / "tfds"))
    one, two = sound["Part 1"], sound["Part 2"]
    kept = [i for i, name in enumerate(two.names) if "noise" in name]
    assert len(dataset) == 405 and len(kept) == 180
    assert dataset.names.tolist() == one.names + [two.names[i] for i in kept]
    dmos = np.concatenate([one.dmos, two.dmos[kept]])  # for an image that is in both parts, the score of Part 1
    np.testing.assert_array_equal(dataset.mos_raw, dmos.astype(np.float32))
    np.testing.assert_allclose(dataset.mos, 100 - dmos, rtol=1e-6)
    assert np.isnan(dataset.mos_std).all()
    assert dataset.references.tolist() == [name.split("_")[0] for name in dataset.names]
    labels = dict(zip(dataset.names, zip(dataset.distortions, dataset.levels, strict=True), strict=True))
    assert labels["scene3_blur3.bmp"] == ("blur", 3)
    assert labels["scene3_jpeg2.bmp"] == ("jpeg", 2)
    assert labels["scene3_noise1.bmp"] == ("noise", 1)
    assert labels["scene3_blur1_jpeg1.bmp"] == ("blur-jpeg", 1)
    assert labels["scene3_blur3_noise2.bmp"] == ("blur-noise", 4)
    assert labels["scene3_blur3_noise3.bmp"] == ("blur-noise", 5)
    assert sorted(dataset.pristine) == sorted(SCENES)
    np.testing.assert_array_equal(dataset.images[-1], Image.open(root / "Part 2" / "blurnoise" / dataset.names[-1]))
    np.testing.assert_array_equal(dataset.pristine["scene4"], Image.open(root / "Part 1" / "blurjpeg" / "scene4.bmp"))


def test_where_the_release_may_lie(release):
    manual = release["Part 1"].folder.parent.parent
    folder = manual / "LIVEmultidistortiondatabase"
    assert build.find_release(mlive, manual) == build.find_release(mlive, folder) == folder
    folder.rename(manual / "To_Release")
    assert build.find_release(mlive, manual) == manual / "To_Release"
    assert mlive.read(manual / "To_Release").problems == []


def nan_score(part):
    part.dmos[3] = np.nan


def score_too_high(part):
    part.dmos[3] = 101


def other_direction(part):
    part.dmos = 100 - part.dmos


def one_row_less(part):
    part.names.pop()
    part.dmos, part.reference_of = part.dmos[:-1], part.reference_of[:-1]


def short_scores(part):
    part.dmos = part.dmos[:-1]


def wrong_reference(part):
    part.reference_of[3] = part.reference_of[3] % 15 + 1


def no_reference(part):
    part.reference_of[3] = 99


def repeated_name(part):
    part.names[3] = part.names[2]


def strange_name(part):
    part.names[3] = "scene0_blur9.bmp"


def missing_image(part):
    (part.folder / "blurnoise" / part.names[3]).unlink()


def missing_reference(part):
    (part.folder / "blurnoise" / "scene8.bmp").unlink()


def missing_list(part):
    (part.folder / "Scores.mat").unlink()
    part.write = lambda: None


@pytest.mark.parametrize(
    "damage, said",
    [
        (nan_score, "Part 2, row 4 ('scene0_blur1_noise3.bmp'): the DMOS is nan, not within 0..100"),
        (score_too_high, "the DMOS is 101.0, not within 0..100"),
        (other_direction, "DMOSscores of Part 2 range over 15.3333..99.3889, but those of the release"),
        (one_row_less, "rows of Part 2/Imagelists.mat: 224, but the release has 225"),
        (short_scores, "distimgs of Part 2 has 225 rows, DMOSscores of Part 2 224"),
        (wrong_reference, "Part 2, row 4 ('scene0_blur1_noise3.bmp'): ref4dist is"),
        (no_reference, "ref4dist is 99 (no photograph), not scene0.bmp"),
        (repeated_name, "Part 2, row 4 ('scene0_blur1_noise2.bmp'): listed before, in Part 2, row 3"),
        (strange_name, "Part 2, row 4 ('scene0_blur9.bmp'): the name is not SCENE_blurN_noiseN.bmp"),
        (missing_image, "Part 2, row 4 ('scene0_blur1_noise3.bmp'): no such image file in blurnoise"),
        (missing_reference, "reference 'scene8.bmp': no such image file in blurnoise"),
        (missing_list, "Part 2/Scores.mat is missing"),
    ],
)
def test_damage_is_named(release, damage, said):
    assert problems_of(release) == []
    damage(release["Part 2"])
    release["Part 2"].write()
    problems = problems_of(release)
    assert any(said in problem for problem in problems), problems


def test_all_problems_at_once_and_nothing_is_written(release, tmp_path, replace_file):
    one, two = release["Part 1"], release["Part 2"]
    nan_score(one)
    one.write()
    two.dmos[0] = -1
    two.write()
    replace_file(two.folder / "blurnoise" / two.names[5], b"no image")
    original = (one.folder / "blurjpeg" / one.names[1]).read_bytes()
    replace_file(one.folder / "blurjpeg" / one.names[2], original)
    with pytest.raises(UserError, match="MLIVE release in .* has 4 problems") as caught:
        build.load(mlive, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
    assert "\n" not in str(caught.value) and not (tmp_path / "tfds").exists()
    for part in ("the DMOS is nan", "the DMOS is -1.0", f"{two.names[5]!r}): the image cannot be read", "identical"):
        assert part in str(caught.value)
