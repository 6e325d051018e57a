"""The embedded dataset as a whole: the same everywhere, ordered, labelled, split by scene, no network."""

import hashlib
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import embedded, splits
from cprl_jax.data.embedded import DISTORTION_NAMES, contact_sheet, make_embedded
from cprl_jax.runtime.errors import UserError

SMALL = {"seed": 0, "image_size": 64, "scenes": 14, "progress": False}


@pytest.fixture(scope="module")
def dataset():
    return make_embedded(**SMALL)


def checksum(dataset):
    digest = hashlib.sha256(np.asarray(dataset.images).tobytes() + dataset.mos.tobytes())
    digest.update("\n".join(dataset.names).encode())
    return digest.hexdigest()


def ladders(dataset):
    """Labels from the undistorted view down to level 5, for every view and distortion."""
    mos = dict(zip(dataset.names, dataset.mos, strict=True))
    for view in dataset.names[dataset.levels == 0]:
        for kind in DISTORTION_NAMES:
            yield [mos[view], *(mos[f"{view}_{kind}_{level}"] for level in range(1, 6))]


def test_columns(dataset):
    views = np.count_nonzero(dataset.levels == 0)
    assert dataset.name == "embedded" and len(dataset) == views * 31 and views > 14
    assert dataset.images.dtype == np.uint8 and dataset.images.shape == (len(dataset), 64, 64, 3)
    assert dataset.mos.dtype == np.float32 and np.isnan(dataset.mos_std).all()
    np.testing.assert_array_equal(dataset.mos, dataset.mos_raw)
    assert len(set(dataset.names)) == len(dataset) and len(set(dataset.references)) == 14
    for name, scene, kind, level in zip(
        dataset.names, dataset.references, dataset.distortions, dataset.levels, strict=True
    ):
        view, *rest = name.split("_")
        assert rest == ([kind, str(level)] if level else []) and (kind in DISTORTION_NAMES) == (level > 0)
        assert scene == view if scene[-1].isdecimal() else scene == view.rpartition("-")[0]


def test_labels(dataset):
    assert np.all((dataset.mos >= 0) & (dataset.mos <= 100))
    undistorted = dataset.levels == 0
    assert np.all(dataset.mos[undistorted] == 100) and dataset.mos[~undistorted].max() < 100
    # Nearly uniform: no fifth of the range is starved or crowded.
    share = np.histogram(dataset.mos[~undistorted], bins=5, range=(0, 100))[0] / np.count_nonzero(~undistorted)
    assert share.min() > 0.1 and share.max() < 0.35
    # Comparable: the same level costs about the same whatever the distortion.
    for level, (low, high) in enumerate([(75, 97), (50, 85), (33, 70), (18, 50), (6, 30)], start=1):
        for kind in DISTORTION_NAMES:
            median = np.median(dataset.mos[(dataset.levels == level) & (dataset.distortions == kind)])
            assert low < median < high, (kind, level)


def test_labels_fall_level_by_level(dataset):
    falls = [bool(np.all(np.diff(ladder) < 0)) for ladder in ladders(dataset)]
    assert np.mean(falls) >= 0.95


def test_scenes_are_not_torn_apart(dataset):
    split = splits.make_split(dataset, seed=0)
    scene = dict(zip(dataset.names, dataset.references, strict=True))
    parts = [{scene[name] for name in part} for part in (split.train, split.validation, split.test)]
    assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == 14


def test_same_bytes_in_another_process():
    arguments = {"seed": 3, "image_size": 32, "scenes": 6, "levels": 2, "progress": False}
    program = (
        "import hashlib, numpy as np\n"
        "from cprl_jax.data.embedded import make_embedded\n"
        f"d = make_embedded(**{arguments})\n"
        "h = hashlib.sha256(np.asarray(d.images).tobytes() + d.mos.tobytes())\n"
        "h.update('\\n'.join(d.names).encode())\n"
        "print(h.hexdigest())\n"
    )
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    ours = make_embedded(**arguments)
    assert output.strip() == checksum(ours)
    assert checksum(make_embedded(**arguments | {"seed": 4})) != checksum(ours)


def test_a_scene_does_not_depend_on_the_others(dataset):
    fewer = make_embedded(**SMALL | {"scenes": 3, "levels": 3})
    rows = {name: row for row, name in enumerate(dataset.names)}
    for row, name in enumerate(fewer.names):
        np.testing.assert_array_equal(fewer.images[row], dataset.images[rows[name]])
        assert fewer.mos[row] == dataset.mos[rows[name]]


@pytest.mark.parametrize(
    ("levels", "numbers"), [(1, [3]), (2, [1, 5]), (3, [1, 3, 5]), (4, [1, 2, 4, 5]), (5, [1, 2, 3, 4, 5])]
)
def test_levels(levels, numbers):
    tiny = make_embedded(seed=0, image_size=32, scenes=2, levels=levels, progress=False)
    assert sorted(set(tiny.levels)) == [0, *numbers]


def test_no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the embedded dataset reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert len(make_embedded(image_size=32, scenes=5, levels=1, progress=False)) > 5 * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"levels": 0}, "levels=0.*1 to 5"),
        ({"levels": 6}, "levels=6.*1 to 5"),
        ({"scenes": 0}, "scenes=0"),
        ({"image_size": 16}, "image_size=16.*32 to 256"),
        ({"seed": -2}, "seed=-2"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        make_embedded(**SMALL | arguments)


def test_contact_sheet(dataset, tmp_path):
    contact_sheet(dataset, tmp_path / "sheet.png", blocks=2)
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 2 * 6 * 64 and sheet.height >= 6 * 64
        assert np.asarray(sheet).std() > 20


def test_command(tmp_path, capsys):
    out = tmp_path / "sheet.png"
    assert embedded.main([f"--out={out}", "--image_size=32", "--scenes=2", "--levels=1"]) == 0
    assert out.is_file() and "2 scenes" in capsys.readouterr().out
    assert embedded.main([f"--out={out}", "--levels=9"]) == 2
    assert capsys.readouterr().err.startswith("error: levels=9")


@pytest.mark.slow
def test_defaults():
    full = make_embedded(progress=False)
    assert len(full) == 85 * 31 and len(set(full.references)) == 64
    assert np.mean([bool(np.all(np.diff(ladder) < 0)) for ladder in ladders(full)]) >= 0.99
    counts = np.histogram(full.mos, bins=10, range=(0, 100))[0]
    assert counts[1:].min() > 0.08 * len(full) and counts.max() < 0.2 * len(full)
    for seed in range(3):
        assert len(splits.make_split(full, seed=seed).test) >= 300
