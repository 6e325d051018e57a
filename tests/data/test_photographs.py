"""Folders of photographs: all that is wrong with one at once, and the middle of each brought to one size."""

import hashlib
import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import photographs
from cprl_jax.runtime.errors import UserError


def save(path, height=32, width=48, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def test_find_and_read(tmp_path, caplog):
    pixels = save(tmp_path / "roof.v1.PNG")
    save(tmp_path / ".hidden.png", 1, 1)
    (tmp_path / "notes.txt").write_text("no photograph")
    (tmp_path / "folder.png").mkdir()
    digest = hashlib.sha256((tmp_path / "roof.v1.PNG").read_bytes()).hexdigest()
    assert photographs.find(tmp_path, size=None) == {"roof.v1": (tmp_path / "roof.v1.PNG", digest)}
    np.testing.assert_array_equal(photographs.read(tmp_path / "roof.v1.PNG", None), pixels)
    shutil.copy(tmp_path / "roof.v1.PNG", tmp_path / "another.png")
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert len(photographs.find(tmp_path, size=None)) == 2
    assert "identical files" in caplog.text


def test_image_files(tmp_path, caplog, monkeypatch):
    for name in ("b.png", "a.TIF", "._b.png", ".hidden.jpg", "c.heic", "notes.txt"):
        (tmp_path / name).write_bytes(b"no image")
    (tmp_path / "c.png").mkdir()
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere")
    with caplog.at_level(logging.WARNING, logger="absl"):
        files = photographs.image_files(tmp_path)
    assert [path.name for path in files] == ["a.TIF", "b.png", "gone.png"]  # what cannot be read is not passed over
    assert len(caplog.records) == 1 and "skipped: 2, c.heic, notes.txt" in caplog.text

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(UserError, match="the folder .* cannot be read: Permission denied"):
        photographs.image_files(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_among_the_photographs_is_named(tmp_path):
    """Whoever opens it would wait for ever."""
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png cannot be read: it is not a file, but a device, pipe or socket"):
        photographs.find(tmp_path, size=None)
    with pytest.raises(UserError, match=r"b\.png cannot be read: it is not a file"):
        photographs.read(tmp_path / "b.png", None)


def test_a_photograph_that_is_gone_is_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png cannot be read: .*No such file"):
        photographs.read(tmp_path / "gone.png", None)


def test_size(tmp_path):
    wide, upright = np.zeros((32, 60, 3), np.uint8), np.full((90, 40, 3), 200, np.uint8)
    wide[:, 10:50] = upright[29:61] = 100  # the middle, 40 x 32
    for name, pixels in (("wide.png", wide), ("upright.png", upright)):
        Image.fromarray(pixels).save(tmp_path / name)
        read = photographs.read(tmp_path / name, (20, 16))
        assert read.shape == (16, 20, 3)
        assert np.all(read[3:-3, 3:-3] == 100)  # the filter sees a little of what lies beyond the cut


def test_all_wrong_photographs_at_once(tmp_path):
    for name, side in (("a.png", 32), ("A.bmp", 32), ("small.png", 15), ("b .png", 32)):
        save(tmp_path / name, side, side)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(UserError) as raised:
        photographs.find(tmp_path, size=None)
    message = str(raised.value)
    for text in ("a.png and A.bmp", "small.png has 15x15 pixels", "'b .png': rename", "broken.jpg cannot be read"):
        assert text in message
    assert "\n" not in message
    with pytest.raises(UserError) as raised:
        photographs.find(tmp_path, size=(64, 64))
    assert "small.png" not in str(raised.value)


def test_folders_without_photographs(tmp_path):
    with pytest.raises(UserError, match=r"no photographs in .*\.bmp, \.jpeg"):
        photographs.find(tmp_path, size=None)
    with pytest.raises(UserError, match="there is no folder.*--images=DIR"):
        photographs.find(tmp_path / "nowhere", size=None)
