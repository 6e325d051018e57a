"""Stand-ins for datasets: a small LIVE-C release on disk and a small dataset in memory."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image

from cprl_jax.data.dataset import QualityDataset

NAMES = [f"t{i}.bmp" for i in range(1, 8)]
NAMES += ["10.bmp", "11.JPG", "12.jpg", "13.jpeg", "grey.png", "alpha.png", "16.JPG", "17.bmp", "18.JPG", "19.bmp"]
SIZES = {"12.jpg": (40, 24), "17.bmp": (20, 30)}  # width, height; the others are 32 x 32


class Release:
    """A folder laid out as the official release; change the lists and call `write_lists`, or change the files."""

    def __init__(self, folder: Path):
        self.manual_dir = folder
        self.root = folder / "ChallengeDB_release"
        self.images = self.root / "Images"
        self.data = self.root / "Data"
        self.data.mkdir(parents=True)
        (self.images / "trainingImages").mkdir(parents=True)
        rng = np.random.default_rng(7)
        self.names = list(NAMES)
        self.mos = np.round(rng.uniform(3.4, 92.4, len(NAMES)), 5)
        self.std = np.round(rng.uniform(10, 25, len(NAMES)), 5)
        for row, name in enumerate(NAMES):
            width, height = SIZES.get(name, (32, 32))
            mode = {"grey.png": "L", "alpha.png": "RGBA"}.get(name, "RGB")
            small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            folder = self.images / "trainingImages" if row < 7 else self.images
            small.resize((width, height), Image.Resampling.BICUBIC).convert(mode).save(folder / name)
        self.write_lists()

    def write_lists(self):
        cells = np.empty((len(self.names), 1), object)
        cells[:, 0] = self.names
        scipy.io.savemat(self.data / "AllImages_release.mat", {"AllImages_release": cells})
        scipy.io.savemat(self.data / "AllMOS_release.mat", {"AllMOS_release": np.array([self.mos], float)})
        scipy.io.savemat(self.data / "AllStdDev_release.mat", {"AllStdDev_release": np.array([self.std], float)})


@pytest.fixture(scope="session")
def _pristine_release(tmp_path_factory):
    return Release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def release(_pristine_release, tmp_path):
    """A release of 10 rated images that the test may damage."""
    copy = Release.__new__(Release)
    copy.__dict__.update(_pristine_release.__dict__)
    copy.manual_dir = tmp_path / "manual"
    shutil.copytree(_pristine_release.manual_dir, copy.manual_dir)
    copy.root = copy.manual_dir / "ChallengeDB_release"
    copy.images, copy.data = copy.root / "Images", copy.root / "Data"
    copy.names, copy.mos, copy.std = list(copy.names), copy.mos.copy(), copy.std.copy()
    return copy


@pytest.fixture
def make_dataset():
    """Makes a dataset of `scenes` scenes, each in `versions` versions; a pixel tells its image, row and column."""

    def make(scenes=10, versions=1, size=(40, 50), name="toy"):
        count = scenes * versions
        images = []
        for i in range(count):
            rows, columns = np.mgrid[: size[0], : size[1]]
            images.append(np.stack([np.full(size, i), rows, columns], axis=-1).astype(np.uint8))
        return QualityDataset(
            name=name,
            images=images,
            names=[f"image{i:03}.png" for i in range(count)],
            mos=np.linspace(0, 100, count),
            mos_raw=np.linspace(1, 5, count),
            mos_std=np.full(count, np.nan),
            references=[f"scene{i // versions}" for i in range(count)],
            distortions=["blur"] * count,
            levels=[i % versions + 1 for i in range(count)],
        )

    return make
