"""The contact sheet of all distortions."""

import re

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import distortion_sheet
from cprl_jax.data.distortions import distort


def test_tiles_stand_where_they_should():
    image = np.random.default_rng(0).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    names = ["jpeg", "contrast", "white-noise"]
    drawn = np.asarray(distortion_sheet.contact_sheet(image, names, columns=2))
    height, width = drawn.shape[0] // 2, drawn.shape[1] // 2

    def contains(cell, tile):
        windows = np.lib.stride_tricks.sliding_window_view(cell, tile.shape)
        return bool((windows == tile).all(axis=(-3, -2, -1)).any())

    for name, (row, column) in zip(names, [(0, 0), (1, 0), (0, 1)], strict=True):
        cell = drawn[row * height :, column * width :][:height, :width]
        assert contains(cell, image)
        for level in (1, 5):
            assert contains(cell, distort(image, name, level=level, key=0))


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_command(suffix, tmp_path, capsys):
    out = tmp_path / f"sheet.{suffix}"
    assert distortion_sheet.main([f"--out={out}", "--family=embedded", "--size=64"]) == 0
    assert "6 distortions" in capsys.readouterr().out
    with Image.open(out) as drawn:
        assert drawn.width >= 6 * 32 and np.asarray(drawn).std() > 20
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_own_photograph(tmp_path):
    Image.new("L", (50, 40), 200).save(tmp_path / "grey.png")
    options = [f"--image={tmp_path / 'grey.png'}", "--family=mlive", "--size=32"]
    assert distortion_sheet.main([f"--out={tmp_path / 'a.png'}", *options]) == 0
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=a.gif"], "--out=a.gif .*.png"),
        (["--out=a.png", "--size=8"], "--size=8 .*32 to 512"),
        (["--out=a.png", "--shrink=0"], "--shrink=0 .*1 to 4"),
        (["--out=a.png", "--image=missing.png"], "missing.png"),
        (["--out=a.png", "--family=live"], "embedded"),
    ],
)
def test_refusals(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert distortion_sheet.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and re.search(message, error)
    assert not list(tmp_path.iterdir())
