"""A run of the perceptual attack as its folder is, without having attacked anything; and a server of a study of it."""

import numpy as np
import pytest
from PIL import Image

from cprl_jax.report.table import csv_text
from cprl_jax.runtime.files import file_name, write_arrays, write_file
from cprl_jax.study import bundle, records, simulate
from cprl_jax.study import catalogue as catalogue_lib
from cprl_jax.study import settings as settings_lib
from cprl_jax.study.store import Store

NAMES = ("barn.png", "coast <b>.png", "dunes.png")  # one of them tries to be HTML, and needs another file name
CHANGES = (0, 2, 6, 12)  # grey levels; the first candidate of each is its original again
SHORT = {"trials": 6, "repeats": 1, "catches": 1, "training": 2, "block": 5, "stimulus_ms": 30, "gap_ms": 20}
SHORT |= {"break_seconds": 0}


def write_run(folder, *, height=48, width=64):
    """Three images, one model, two fidelities, four candidates each: of the 24, 6 change nothing."""
    rows = []
    for number, name in enumerate(NAMES):
        random = np.random.default_rng(number)
        coarse = random.integers(30, 220, (4, 5, 3), dtype=np.uint8)
        original = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        (folder / "originals").mkdir(parents=True, exist_ok=True)
        Image.fromarray(original).save(folder / "originals" / f"{file_name(name)}.png")
        for fidelity in ("chebyshev", "ssim"):
            signs = random.choice([-1, 1], original.shape)
            images = np.stack([np.clip(original + change * signs, 0, 255).astype(np.uint8) for change in CHANGES])
            path = folder / "cells" / "model" / fidelity / f"{file_name(name)}.npz"
            write_arrays(path, {"images": images})
            for candidate, change in enumerate(CHANGES):
                numbers = {"distance": change / 255, "ssim": 1 - change / 100, "max_change": float(change)}
                numbers |= {"before": 5.0, "after": 5.0 + change / 10}
                names = {"model": "model", "fidelity": fidelity, "image": name, "candidate": candidate}
                rows.append(names | numbers | {"file": path.relative_to(folder).as_posix()})
    write_file(folder / "report" / "candidates.csv", csv_text(rows, ("model",)))
    return folder


@pytest.fixture(autouse=True)
def libraries(tmp_path_factory, monkeypatch):
    """Empty files in the place of jsPsych where `make study` was not given: only a browser would miss it."""
    if bundle.missing():
        monkeypatch.setattr(bundle, "VENDOR", write_libraries(tmp_path_factory.mktemp("vendor")))


def write_libraries(folder):
    for name in bundle.missing():
        (folder / name).write_text("")
    (folder / "package-lock.json").write_bytes((bundle.WEB / "package-lock.json").read_bytes())
    return folder


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The run's folder, which tests only read."""
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def make_store(run, tmp_path):
    """A function from settings to an empty store of a short study."""
    stores = []

    def make(name="study", **settings):
        folder = tmp_path / name
        chosen = settings_lib.settle(folder, SHORT | settings)
        stores.append(Store(folder, chosen, catalogue_lib.open_or_make(run, folder, chosen)))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store):
    return make_store()


def token(number):
    return f"{number:064x}"


def record_of(step, answer="same", **changes):
    """What a page would send for a step."""
    if step["kind"] != "trial":
        return simulate.PAGES[step["kind"]] | changes
    examples = {"integer": 1, "number": 16.7, "text": "x", "boolean": False, "numbers": [1000, 500, 1000]}
    record = {column.name: examples[column.type] for column in records.fields("trial")}
    return record | {"answer": answer, "input": "key"} | changes
