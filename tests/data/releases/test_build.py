"""Building any release once and reading it back: pristine photographs, options, caches, and no TensorFlow."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from cprl_jax.data.dataset import decode_rgb
from cprl_jax.data.releases import build
from cprl_jax.data.releases._common import Contents, Record
from cprl_jax.runtime.errors import UserError

toy = types.ModuleType("toy")
toy.NAME, toy.TITLE, toy.BUILDER, toy.FOLDERS, toy.URL = (
    "toy",
    "Toy",
    "ToyBuilder",
    ("toy_release",),
    "https://example.org",
)
toy.CITATION, toy.HOW_TO_UNPACK, toy.MAY_BE_IDENTICAL = "Nobody", "unpack it there", ("blur",)
toy.looks_like = lambda folder: (folder / "references").is_dir()


def read(release, scores="plain"):
    images = sorted(release.glob("*.bmp"))
    scale = {"plain": 1.0, "double": 2.0}[scores]
    records = tuple(
        Record(
            row=7 - i,  # in another order than the files
            name=path.name,
            path=path,
            mos=scale * 10 * i,
            mos_raw=5.0 - i,
            mos_std=0.25 * i,
            reference=f"scene{i // 2}",
            distortion="blur",
            level=i % 2 + 1,
            part=("train", "validation", "test", "")[i],
        )
        for i, path in enumerate(images)
    )
    return Contents(records, {path.stem: path for path in sorted(release.glob("references/*.bmp"))}, [])


toy.read = read


@pytest.fixture
def folder(tmp_path, tiny_image):
    release = tmp_path / "manual" / "toy_release"
    (release / "references").mkdir(parents=True)
    for i in range(4):
        (release / f"image{i}.bmp").write_bytes(tiny_image(i))
    for i in range(2):
        (release / "references" / f"scene{i}.bmp").write_bytes(tiny_image(10 + i, size=(12, 8)))
    return release


def load(folder, tmp_path, **options):
    return build.load(toy, manual_dir=str(folder.parent), data_dir=str(tmp_path / "tfds"), **options)


def test_every_column_and_the_pristine_photographs(folder, tmp_path):
    dataset = load(folder, tmp_path)
    assert dataset.name == "toy"
    assert dataset.names.tolist() == ["image3.bmp", "image2.bmp", "image1.bmp", "image0.bmp"]  # by row
    assert dataset.mos.tolist() == [30, 20, 10, 0] and dataset.mos_raw.tolist() == [2, 3, 4, 5]
    assert dataset.mos_std.tolist() == [0.75, 0.5, 0.25, 0]
    assert dataset.references.tolist() == ["scene1", "scene1", "scene0", "scene0"]
    assert dataset.distortions.tolist() == ["blur"] * 4 and dataset.levels.tolist() == [2, 1, 2, 1]
    assert dataset.parts.tolist() == ["", "test", "validation", "train"]
    assert list(dataset.pristine) == ["scene0", "scene1"] and "scene2" not in dataset.pristine
    assert dataset.pristine["scene1"].shape == (8, 12, 3)
    for name, image in zip(dataset.names, dataset.images, strict=True):
        np.testing.assert_array_equal(image, decode_rgb((folder / name).read_bytes()))
    for scene, image in dataset.pristine.items():
        np.testing.assert_array_equal(image, decode_rgb((folder / "references" / f"{scene}.bmp").read_bytes()))
    with pytest.raises(KeyError):
        dataset.pristine["scene2"]


def test_a_changed_photograph_is_built_anew(folder, tmp_path, tiny_image):
    load(folder, tmp_path)
    (folder / "references" / "scene0.bmp").write_bytes(tiny_image(99))
    assert load(folder, tmp_path).pristine["scene0"].shape == (8, 8, 3)


def test_options_have_builds_of_their_own(folder, tmp_path):
    assert load(folder, tmp_path).mos.max() == 30
    assert load(folder, tmp_path, scores="double").mos.max() == 60
    for scores, best in ((None, 30), ("double", 60)):  # without a release, the one build of the same options
        options = {"scores": scores} if scores else {}
        assert build.load(toy, data_dir=str(tmp_path / "tfds"), **options).mos.max() == best
    with pytest.raises(UserError, match="no Toy release"):
        build.load(toy, data_dir=str(tmp_path / "tfds"), scores="triple")


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_caches_give_the_same_images(folder, tmp_path, cache):
    for _ in range(2):
        dataset = load(folder, tmp_path, cache=cache, cache_gib=1e-7)
        assert [len(dataset.images), len(dataset.pristine)] == [4, 2]
        for name, image in zip(dataset.names, dataset.images, strict=True):
            np.testing.assert_array_equal(image, decode_rgb((folder / name).read_bytes()))
    assert dataset.pristine["scene0"].shape == (8, 12, 3)


@pytest.mark.parametrize("options", [{"cache": "tape"}, {"cache_gib": -1.0}, {"cache_gib": float("nan")}])
def test_wrong_caches(folder, tmp_path, options):
    with pytest.raises(ValueError, match="must be 'memory' or 'disk', and 0 or more"):
        load(folder, tmp_path, **options)


def test_identical_images(folder, tmp_path, tiny_image):
    (folder / "image1.bmp").write_bytes(tiny_image(0))  # another level of the same scene: warned of, in this release
    assert len(load(folder, tmp_path)) == 4
    (folder / "image2.bmp").write_bytes(tiny_image(0))  # another scene
    with pytest.raises(UserError, match="these image files are identical: image0.bmp, image1.bmp, image2.bmp"):
        load(folder, tmp_path)


def test_broken_photograph(folder, tmp_path):
    (folder / "references" / "scene1.bmp").write_bytes(b"BM")
    with pytest.raises(UserError, match="Toy release in .* has a problem.*reference 'scene1.bmp': the image cannot be"):
        load(folder, tmp_path)


def test_an_absent_and_an_empty_release(folder, tmp_path):
    with pytest.raises(UserError, match="get toy_release from https://example.org and unpack it there, or name"):
        build.load(toy, manual_dir=str(tmp_path), data_dir=str(tmp_path / "tfds"))
    for path in folder.glob("*.bmp"):
        path.unlink()
    with pytest.raises(UserError, match="Toy release in .* has a problem.*no rated images"):
        load(folder, tmp_path)


def test_no_loader_imports_tensorflow_or_opencv(release, tmp_path):
    root = Path(__file__).parents[3]
    modules = [path.stem for path in sorted((root / "cprl_jax/data/releases").glob("[!_]*.py"))]
    assert {"live", "livec", "mlive"} <= set(modules)
    program = (
        f"import sys; from cprl_jax.data.releases import {', '.join(modules)};"
        f"data = build.load(livec, manual_dir={str(release.manual_dir)!r}, data_dir={str(tmp_path / 'tfds')!r});"
        "assert data.images[0].shape == (32, 32, 3); assert 'tensorflow_datasets' in sys.modules;"
        "sys.exit(bool({'tensorflow', 'cv2'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


ABSENT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1].split("+")))  # importing one raises ImportError
from cprl_jax import attacks, data, score
from cprl_jax.data import embedded, own
from cprl_jax.data.releases import build, livec
try:
    assert len(own.load(sys.argv[2])) == 1
    build.load(livec, manual_dir=sys.argv[2], data_dir=sys.argv[3])
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.sampled
@pytest.mark.parametrize("module", ["array_record", "tensorflow_datasets"])
def test_only_releases_need_packages_that_are_not_made_for_every_system(release, tmp_path, module):
    root = Path(__file__).parents[3]
    image = next(path for path in sorted(release.images.iterdir()) if path.suffix == ".bmp")
    (release.manual_dir / "labels.csv").write_text(f"image,mos\n{image.relative_to(release.manual_dir)},3\n")
    names = "+".join([module, f"{module}.python", f"{module}.python.array_record_module"])
    command = [sys.executable, "-c", ABSENT, names, str(release.manual_dir), str(tmp_path / "tfds")]
    done = subprocess.run(command, check=True, cwd=root, capture_output=True, text=True)
    assert done.stdout.startswith("UserError LIVE-C needs") and done.stdout.count("\n") == 1
    assert "needs the packages tensorflow_datasets and array_record" in done.stdout and module in done.stdout
    assert not (tmp_path / "tfds").exists()
