"""Decoded images in a file: the pixels of the decoder, written once, completely or not at all."""

import contextlib
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from cprl_jax.data import decoded_file
from cprl_jax.data.decoded_file import DecodedImages
from cprl_jax.runtime.errors import UserError

SIZES = [(5, 7), (1, 1), (12, 3), (8, 8), (2, 30)]


class Decoder:
    """Makes images of different sizes and counts how often it is asked."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]
        self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, i):
        with self._lock:
            self.calls += 1
        return self.images[i]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "pixels"


def opened(path, decoder, **options):
    return DecodedImages(decoder, len(SIZES), path=path, **options)


def assert_holds(images, decoder):
    assert len(images) == len(SIZES)
    for i, expected in enumerate(decoder.images):
        np.testing.assert_array_equal(images[i], expected)


def test_gives_the_decoded_images(path):
    decoder = Decoder()
    images = opened(path, decoder)
    assert_holds(images, decoder)
    np.testing.assert_array_equal(images.sizes, SIZES)
    np.testing.assert_array_equal(images[-1], decoder.images[-1])
    np.testing.assert_array_equal(images[np.int64(2)], decoder.images[2])
    for index in (5, -6):
        with pytest.raises(IndexError):
            images[index]
    assert images[0].dtype == np.uint8 and not images[0].flags.writeable
    assert not any(isinstance(image, np.memmap) for image in images)
    assert path.stat().st_size == sum(image.nbytes for image in decoder.images)
    assert not list(path.parent.glob(".*.tmp"))


def test_decodes_once(path):
    decoder = Decoder()
    opened(path, decoder)
    decoder.calls = 0
    assert_holds(opened(path, decoder), decoder)
    assert decoder.calls == 0


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def _index(path):
    return path.with_name("pixels.index.npz")


def _another_length(path):
    path.unlink()
    _index(path).unlink()
    DecodedImages(Decoder(), len(SIZES) - 1, path=path)


@pytest.mark.parametrize(
    "damage",
    [
        _truncate,
        Path.unlink,
        lambda path: _index(path).unlink(),
        lambda path: _index(path).write_text("{"),
        lambda path: _index(path).write_bytes(_index(path).read_bytes()[:-20]),
        lambda path: opened(path, Decoder(), stamp="another"),
        _another_length,
    ],
)
def test_what_is_damaged_or_of_other_images_is_made_anew(path, damage):
    opened(path, Decoder())
    damage(path)
    decoder = Decoder(seed=1)
    assert_holds(opened(path, decoder), decoder)
    decoder.calls = 0
    assert_holds(opened(path, decoder), decoder)
    assert decoder.calls == 0


def test_failure_leaves_nothing_behind(path):
    decoder = Decoder()

    def failing(i):
        if i == 3:
            raise ValueError("image 3 is broken")
        return decoder(i)

    with pytest.raises(ValueError, match="image 3 is broken"):
        opened(path, failing)
    assert {file.name for file in path.parent.iterdir()} <= {"pixels.lock"}
    leftover = path.with_name(".pixels.1.tmp")  # left by a process that was killed
    leftover.write_bytes(b"x")
    assert_holds(opened(path, decoder), decoder)
    assert not leftover.exists()


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))])
def test_refuses_other_arrays(path, image):
    with pytest.raises(ValueError, match=r"uint8 \[height, width, 3\]"):
        opened(path, lambda i: image)


def test_refuses_no_images(path):
    with pytest.raises(ValueError, match="length=0"):
        DecodedImages(Decoder(), 0, path=path)


def test_too_little_room_is_told_before_decoding_everything(path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(decoded_file.shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    needed = sum(image.nbytes for image in Decoder().images)
    with pytest.raises(UserError, match=f"{needed} bytes.*pixels"):
        opened(path, Decoder())
    assert {file.name for file in path.parent.iterdir()} <= {"pixels.lock"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_that_fills_up_while_writing(path, monkeypatch):
    @contextlib.contextmanager
    def full(path):
        with open("/dev/full", "wb") as file:
            yield file

    monkeypatch.setattr(decoded_file, "writing", full)
    with pytest.raises(UserError, match="bytes.*pixels"):
        opened(path, Decoder())
    assert {file.name for file in path.parent.iterdir()} <= {"pixels.lock"}


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be stored in .*pixels.*data_dir"):
        opened(tmp_path / "file" / "pixels", Decoder())


def test_processes_make_it_once(path):
    program = """
import sys, time
import numpy as np
from cprl_jax.data.decoded_file import DecodedImages
def decode(i):
    print("decoded")
    time.sleep(0.02)
    return np.full((2, i + 1, 3), i, np.uint8)
images = DecodedImages(decode, 6, path=sys.argv[1])
assert all((images[i] == i).all() and images[i].shape == (2, i + 1, 3) for i in range(6))
"""
    command = [sys.executable, "-c", program, str(path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert sorted(output.count(b"decoded") for output in outputs) == [0, 12]  # six to know the room, six to write
