"""The set that is made out of photographs: what is in it, where it is kept, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import distorted, weak_labels
from cprl_jax.data.decode import decode_photograph
from cprl_jax.runtime.errors import UserError


@pytest.fixture
def photographs(tmp_path):
    """Two photographs, one with a comma in its name."""
    random = np.random.default_rng(0)
    (tmp_path / "photographs").mkdir()
    for name in ("a, b.png", "c.png"):
        rough = random.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(rough).resize((40, 32)).save(tmp_path / "photographs" / name)
    return tmp_path / "photographs"


def test_photographs_belong_to_the_set_and_their_distortions_are_ranked(photographs, tmp_path):
    options = {"distortions": ("kadid/gaussian-blur", "kadid/jpeg"), "data_dir": str(tmp_path), "workers": 1}
    dataset = distorted.load(photographs, **options)
    assert len(dataset) == 2 * (1 + 2 * 5)
    undistorted = dataset.levels == 0
    assert undistorted.sum() == 2 and np.all(dataset.mos[undistorted] == 100)
    assert set(dataset.references) == {"a, b", "c"}
    for name in ("a, b", "c"):
        (row,) = np.flatnonzero(undistorted & (dataset.references == name))
        original = decode_photograph((photographs / f"{name}.png").read_bytes())
        np.testing.assert_array_equal(dataset.images[row], original)
        np.testing.assert_array_equal(dataset.pristine[name], original)
        for distortion in ("kadid/gaussian-blur", "kadid/jpeg"):
            rows = np.flatnonzero((dataset.references == name) & (dataset.distortions == distortion))
            expected = [
                np.mean(
                    [
                        weak_labels.RULES[rule].score(dataset.images[row], original)
                        for rule in ("ours", "ssim", "gmsd", "psnr")
                    ]
                )
                for row in rows
            ]
            np.testing.assert_allclose(dataset.mos[rows], expected, rtol=1e-5)
            assert (
                dataset.mos[rows[np.argmin(dataset.levels[rows])]] > dataset.mos[rows[np.argmax(dataset.levels[rows])]]
            )
    (folder,) = (tmp_path / "distorted").iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")}
    again = distorted.load(photographs, **options)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.png")} == before
    np.testing.assert_array_equal(again.mos, dataset.mos)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path):
    for folder, message in (
        ("", "needs undistorted photographs: --config.dataset.photographs=FOLDER"),
        (tmp_path / "none", "config.dataset.photographs: there are no photographs in .*none; give the folder of some"),
        (tmp_path, "config.dataset.photographs: there are no photographs in"),
    ):
        with pytest.raises(UserError, match=message):
            distorted.load(folder)
