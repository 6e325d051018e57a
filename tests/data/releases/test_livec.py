"""The LIVE-C loader against releases that the test writes: sound ones, damaged ones, changed ones."""

import io
import logging
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from cprl_jax.data.releases import build, livec
from cprl_jax.runtime.errors import UserError

SAMPLE = Path(__file__).parents[4] / "shared" / "data" / "livec_sample"


def load(release, data_dir):
    return build.load(livec, manual_dir=str(release.manual_dir), data_dir=str(data_dir))


def builds(data_dir):
    return sorted(data_dir.glob("live_challenge/*/2.0.0"))


def test_reads_back_what_the_release_says(release, tmp_path):
    dataset = load(release, tmp_path / "tfds")
    assert dataset.name == "livec"
    assert dataset.names.tolist() == release.names[7:]  # the seven training images are left out, the order is kept
    np.testing.assert_array_equal(dataset.mos, release.mos[7:].astype(np.float32))
    np.testing.assert_array_equal(dataset.mos_raw, dataset.mos)
    np.testing.assert_array_equal(dataset.mos_std, release.std[7:].astype(np.float32))
    np.testing.assert_array_equal(dataset.references, dataset.names)
    assert set(dataset.distortions) == {""} and set(dataset.levels) == {0} and set(dataset.parts) == {""}
    assert not dataset.pristine
    for name, image in zip(dataset.names, dataset.images, strict=True):
        with Image.open(release.images / name) as original:
            np.testing.assert_array_equal(image, np.asarray(original.convert("RGB")))
        assert image.dtype == np.uint8


def test_exif_orientation_is_ignored(release, tmp_path):
    image = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees to show"
    image.save(release.images / "11.JPG", format="JPEG", exif=exif)
    dataset = load(release, tmp_path / "tfds")
    assert dataset.images[1].shape == (2, 4, 3)


def test_manual_dir_may_be_the_release_itself(release, tmp_path):
    dataset = build.load(livec, manual_dir=str(release.root), data_dir=str(tmp_path / "tfds"))
    assert len(dataset) == 10


def test_default_manual_dir_is_tfds_own(release, tmp_path):
    data_dir = tmp_path / "tfds"
    (data_dir / "downloads").mkdir(parents=True)
    shutil.copytree(release.manual_dir, data_dir / "downloads" / "manual")
    assert len(build.load(livec, data_dir=str(data_dir))) == 10
    shutil.rmtree(data_dir / "downloads")  # what was built still reads
    assert len(build.load(livec, data_dir=str(data_dir))) == 10


def test_a_build_is_reused(release, tmp_path):
    load(release, tmp_path / "tfds")
    (made,) = builds(tmp_path / "tfds")
    written = {path: path.stat().st_mtime_ns for path in made.iterdir()}
    moved = tmp_path / "elsewhere"
    release.manual_dir.rename(moved)  # where the release lies and when it was copied does not matter
    build.load(livec, manual_dir=str(moved), data_dir=str(tmp_path / "tfds"))
    assert builds(tmp_path / "tfds") == [made]
    assert written == {path: path.stat().st_mtime_ns for path in made.iterdir()}


@pytest.mark.parametrize("change", ["score", "deviation", "row", "pixel"])
def test_a_changed_release_is_never_read_from_the_old_build(release, tmp_path, change):
    before = load(release, tmp_path / "tfds")
    if change == "score":
        release.mos[9] += 1
    elif change == "deviation":
        release.std[9] += 1
    elif change == "row":
        release.names.pop()
        release.mos, release.std = release.mos[:-1], release.std[:-1]
    else:
        path = release.images / "10.bmp"  # stays as long as it was
        path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    release.write_lists()
    after = load(release, tmp_path / "tfds")
    assert len(builds(tmp_path / "tfds")) == 2
    assert (
        len(before) != len(after)
        or (before.mos != after.mos).any()
        or (before.mos_std != after.mos_std).any()
        or any((a != b).any() for a, b in zip(before.images, after.images, strict=True))
    )
    with pytest.raises(UserError, match="no LIVE-C release"):  # two builds, and nothing says which
        build.load(livec, data_dir=str(tmp_path / "tfds"))


def test_names_match_without_regard_to_case(release, tmp_path):
    (release.images / "11.JPG").rename(release.images / "11.jpg")
    dataset = load(release, tmp_path / "tfds")
    assert dataset.names[1] == "11.JPG"


def remove_image(release):
    (release.images / "16.JPG").unlink()


def truncate_jpeg(release):
    path = release.images / "16.JPG"
    path.write_bytes(path.read_bytes()[:-200])


def truncate_bmp(release):
    path = release.images / "17.bmp"
    path.write_bytes(path.read_bytes()[:-50])


def empty_image(release):
    (release.images / "16.JPG").write_bytes(b"")


def not_an_image(release):
    (release.images / "16.JPG").write_text("<html>please log in</html>")


def sixteen_bits(release):
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(release.images / "grey.png")


def repeat_name(release):
    release.names[14] = release.names[13]


def repeat_name_in_other_case(release):
    release.names[13] = "16.jpg"
    release.names[14] = "16.JPG"


def ambiguous_case(release):
    release.names[13] = "16.Jpg"
    shutil.copy(release.images / "16.JPG", release.images / "16.jpg")


def nan_score(release):
    release.mos[13] = np.nan


def score_too_large(release):
    release.mos[13] = 100.5


def score_negative(release):
    release.mos[13] = -0.1


def infinite_score(release):
    release.mos[13] = np.inf


def nan_deviation(release):
    release.std[13] = np.nan


def short_scores(release):
    release.mos = release.mos[:-1]


def no_name(release):
    release.names[13] = ""


def training_images_left_out(release):
    release.names, release.mos, release.std = release.names[7:], release.mos[7:], release.std[7:]


def only_training_images(release):
    release.names, release.mos, release.std = release.names[:7], release.mos[:7], release.std[:7]


@pytest.mark.parametrize(
    "damage, said",
    [
        (remove_image, r"row 14 \('16\.JPG'\): no such image file"),
        (truncate_jpeg, r"row 14 \('16\.JPG'\): the image cannot be read: .*[Tt]runcated"),
        (truncate_bmp, r"row 15 \('17\.bmp'\): the image cannot be read: .*[Tt]runcated"),
        (empty_image, r"row 14 \('16\.JPG'\): the image cannot be read: an empty file"),
        (not_an_image, r"row 14 \('16\.JPG'\): the image cannot be read: not an image"),
        (sixteen_bits, r"row 12 \('grey\.png'\): .*8 bits"),
        (repeat_name, r"row 15 \('16\.JPG'\): listed before, in row 14"),
        (repeat_name_in_other_case, r"row 15 \('16\.JPG'\): listed before, in row 14"),
        (ambiguous_case, r"row 14 \('16\.Jpg'\): several files .*16\.JPG, 16\.jpg"),
        (nan_score, r"row 14 \('16\.JPG'\): the score is nan"),
        (score_too_large, r"row 14 \('16\.JPG'\): the score is 100\.5, not within 0\.\.100"),
        (score_negative, r"row 14 \('16\.JPG'\): the score is -0\.1"),
        (infinite_score, r"row 14 \('16\.JPG'\): the score is inf"),
        (nan_deviation, r"row 14 \('16\.JPG'\): the standard deviation is nan"),
        (short_scores, r"lists differ in length: AllImages_release has 17 rows, AllMOS_release 16"),
        (no_name, r"AllImages_release\.mat holds no image name in row 14"),
        (training_images_left_out, r"row 1 \('10\.bmp'\): the first 7 rows must be the study's training images"),
        (only_training_images, r"only 7 rows"),
    ],
)
def test_damage_is_named_and_nothing_is_written(release, tmp_path, damage, said):
    damage(release)
    release.write_lists()
    with pytest.raises(UserError, match=said) as caught:
        load(release, tmp_path / "tfds")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "tfds").exists()


@pytest.mark.parametrize("variable", ["AllImages_release", "AllMOS_release", "AllStdDev_release"])
@pytest.mark.parametrize("damage", ["missing", "garbage", "other variable", "wrong type"])
def test_damaged_list(release, tmp_path, variable, damage):
    path = release.data / f"{variable}.mat"
    path.unlink()
    said = {
        "missing": f"{variable}.mat is missing",
        "garbage": f"{variable}.mat is not a readable MATLAB file",
        "other variable": f"{variable}.mat has no variable {variable}, only dmos",
        "wrong type": f"{variable}.mat holds no (number|image name) in row 1, 2",
    }[damage]
    if damage == "garbage":
        path.write_bytes(b"no mat file" * 100)
    elif damage == "other variable":
        scipy.io.savemat(path, {"dmos": np.zeros((1, 17))})
    elif damage == "wrong type":
        wrong = np.zeros((17, 1)) if variable == "AllImages_release" else np.full((1, 17), 1j)
        scipy.io.savemat(path, {variable: wrong})
    with pytest.raises(UserError, match=said):
        load(release, tmp_path / "tfds")
    assert not (tmp_path / "tfds").exists()


def test_all_problems_at_once(release, tmp_path):
    nan_score(release)
    release.mos[14] = 101
    release.write_lists()
    truncate_bmp(release)
    (release.images / "18.JPG").unlink()
    (release.data / "AllStdDev_release.mat").unlink()
    with pytest.raises(UserError) as caught:
        load(release, tmp_path / "tfds")
    message = str(caught.value)
    for part in ("5 problems", "'16.JPG'): the score", "'17.bmp'): the score", "'18.JPG'): no such", "AllStdDev"):
        assert part in message
    assert "'17.bmp'): the image cannot be read" in message


def test_many_problems_are_counted(release, tmp_path):
    shutil.rmtree(release.images)
    release.images.mkdir()
    count = 60
    release.names += [f"more{i}.bmp" for i in range(count)]
    release.mos = np.append(release.mos, np.full(count, 50))
    release.std = np.append(release.std, np.full(count, 5))
    release.write_lists()
    with pytest.raises(UserError, match=r"70 problems.*and 50 more"):
        load(release, tmp_path / "tfds")


def test_absent_release_says_what_goes_where(tmp_path):
    with pytest.raises(UserError, match=r"ChallengeDB_release.*--config\.dataset\.manual_dir") as caught:
        build.load(livec, manual_dir=str(tmp_path / "nowhere"), data_dir=str(tmp_path / "tfds"))
    assert livec.URL in str(caught.value) and str(tmp_path / "nowhere") in str(caught.value)
    assert not (tmp_path / "tfds").exists()


def test_no_place_to_write(release, tmp_path):
    (tmp_path / "tfds").write_text("a file where the folder should go")
    with pytest.raises(UserError, match=r"could not be written.*--config\.dataset\.data_dir"):
        load(release, tmp_path / "tfds")


def test_a_full_release_has_the_published_range(release, monkeypatch):
    monkeypatch.setattr(livec, "FULL_ROWS", len(release.names))
    release.mos[7], release.mos[8] = livec.SCORES
    release.write_lists()
    assert livec.read(release.root).problems == []
    release.mos = 100 - release.mos  # another direction
    release.write_lists()
    (problem,) = livec.read(release.root).problems
    assert "AllMOS_release range over 7.568..96.58" in problem and "3.42..92.432" in problem


def test_unlisted_and_identical_images_are_warned_of(release, tmp_path, caplog):
    shutil.copy(release.images / "11.JPG", release.images / "extra.JPG")
    shutil.copy(release.images / "16.JPG", release.images / "18.JPG")
    (release.images / "trainingImages" / "t3.bmp").unlink()
    (release.images / "Thumbs.db").write_bytes(b"x")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(load(release, tmp_path / "tfds")) == 10
    warnings = " | ".join(record.getMessage() for record in caplog.records)
    assert "1 images" in warnings and "extra.JPG" in warnings and "Thumbs" not in warnings
    assert "identical: 16.JPG, 18.JPG" in warnings
    assert "t3.bmp" in warnings


def test_leftovers_of_a_killed_build_are_removed(release, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(build.builder_of(livec), "_generate_examples", _fail)
        with pytest.raises(RuntimeError, match="out of luck"):
            load(release, tmp_path / "tfds")
    assert builds(tmp_path / "tfds") == []
    (folder,) = (tmp_path / "tfds" / "live_challenge").iterdir()
    leftover = folder / "incomplete.ABCDEF_2.0.0"
    leftover.mkdir()
    (leftover / "half.array_record").write_bytes(b"half")
    assert len(load(release, tmp_path / "tfds")) == 10
    assert not leftover.exists()


def _fail(self, records):
    raise RuntimeError("out of luck")


def test_damaged_build_says_so(release, tmp_path):
    load(release, tmp_path / "tfds")
    (made,) = builds(tmp_path / "tfds")
    for path in made.glob("*.array_record*"):
        path.unlink()
    with pytest.raises(UserError, match="damaged.*delete it") as caught:
        load(release, tmp_path / "tfds")
    assert "\n" not in str(caught.value)


def test_processes_that_build_together(release, tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        options = [(str(release.manual_dir), str(tmp_path / "tfds"))] * 2
        assert pool.starmap(_count, options) == [10, 10]
    assert len(builds(tmp_path / "tfds")) == 1
    assert not list((tmp_path / "tfds").rglob("incomplete.*"))


def _count(manual_dir, data_dir):
    return len(build.load(livec, manual_dir=manual_dir, data_dir=data_dir))


def test_builder_works_as_a_plain_tfds_builder(release, tmp_path):
    import tensorflow_datasets as tfds

    builder = build.builder_of(livec)(data_dir=tmp_path / "tfds", file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=release.manual_dir)
    builder.download_and_prepare(download_config=config)
    (example,) = (e for e in builder.as_data_source(split="train") if e["name"] == b"10.bmp")
    assert example["row"] == 8 and example["image"].shape == (32, 32, 3)
    nan_score(release)
    release.write_lists()
    other = build.builder_of(livec)(data_dir=tmp_path / "other", file_format="array_record")
    with pytest.raises(UserError, match="row 14"):
        other.download_and_prepare(download_config=config)


@pytest.mark.skipif(not SAMPLE.is_dir(), reason="the LIVE-C sample is not at hand")
def test_real_sample(tmp_path):
    dataset = build.load(livec, manual_dir=str(SAMPLE), data_dir=str(tmp_path / "tfds"))
    data = SAMPLE / "ChallengeDB_release" / "Data"
    mos = scipy.io.loadmat(data / "AllMOS_release.mat")["AllMOS_release"][0]
    std = scipy.io.loadmat(data / "AllStdDev_release.mat")["AllStdDev_release"][0]
    names = [cell[0][0] for cell in scipy.io.loadmat(data / "AllImages_release.mat")["AllImages_release"]]
    assert len(dataset) == 450
    assert dataset.names.tolist() == names[7:]
    np.testing.assert_array_equal(dataset.mos, mos[7:].astype(np.float32))
    np.testing.assert_array_equal(dataset.mos_std, std[7:].astype(np.float32))
    for i in (0, 449):
        file_bytes = (SAMPLE / "ChallengeDB_release" / "Images" / names[7 + i]).read_bytes()
        np.testing.assert_array_equal(dataset.images[i], np.asarray(Image.open(io.BytesIO(file_bytes))))
