"""What the tests of releases share: tiny image files, lists in MATLAB files, copies of a release to be damaged."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image


@pytest.fixture(scope="session")
def tiny_image() -> Callable[..., bytes]:
    """`tiny_image(seed, format="BMP", size=(8, 8))`: bytes of a small image file, different for every seed below 2^24.

    A BMP is a copy of the first of its size with another last pixel, which is quicker than encoding it.
    """
    templates: dict[tuple, bytes] = {}

    def make(seed: int, format: str = "BMP", size: tuple[int, int] = (8, 8)) -> bytes:
        if format != "BMP":
            return encode(seed, format, size)
        if (format, size) not in templates:
            templates[format, size] = encode(0, format, size)
        return templates[format, size][:-3] + seed.to_bytes(3, "little")

    def encode(seed: int, format: str, size: tuple[int, int]) -> bytes:
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format=format)
        return file.getvalue()

    return make


@pytest.fixture(scope="session")
def write_mat() -> Callable[..., None]:
    """`write_mat(path, names=[...], scores=[...])` writes a MATLAB file; lists of strings become columns of cells."""

    def write(path: Path, **variables) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, values in variables.items():
            if isinstance(values[0], str):
                cells = np.empty((len(values), 1), object)
                cells[:, 0] = values
                variables[name] = cells
            else:
                variables[name] = np.array([values])
        scipy.io.savemat(path, variables)

    return write


@pytest.fixture(scope="session")
def copy_tree() -> Callable[[Path, Path], Path]:
    """`copy_tree(source, target)` copies a release quickly: by hard links. Replace files, do not change them."""

    def copy(source: Path, target: Path) -> Path:
        shutil.copytree(source, target, copy_function=os.link)
        return target

    return copy


@pytest.fixture(scope="session")
def replace_file() -> Callable[[Path, bytes], None]:
    """`replace_file(path, content)`: safe for a tree made by `copy_tree`."""

    def replace(path: Path, content: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(content)

    return replace


# For sets in which every scene has all distortions and levels: `Release` of the test's module makes a tree of a number
# of scenes, and has their `reader`.


@pytest.fixture
def small(monkeypatch, request):
    """A reader that expects two scenes."""
    monkeypatch.setattr(request.module.Release.reader, "SCENES", 2)


@pytest.fixture
def made(small, tmp_path, request):
    """A release of two scenes."""
    return request.module.Release(tmp_path / "manual", 2)


@pytest.fixture
def undecoded(small, tmp_path, request):
    """The same with empty image files, which is all that `read` needs."""
    return request.module.Release(tmp_path / "manual", 2, images=False)
