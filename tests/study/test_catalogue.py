"""The images of a study are those of the run, byte by byte, and a run that does not fit is refused by name."""

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import file_name, write_arrays
from cprl_jax.study import catalogue as catalogue_lib
from cprl_jax.study.settings import Settings

from .conftest import CHANGES, NAMES


def decoded(catalogue, image):
    path = catalogue.folder / "images" / f"{image}.png"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == catalogue.images[image].sha256
    assert path.stat().st_size == catalogue.images[image].bytes
    return np.array(Image.open(path))


def test_pixels_are_those_of_the_run(run, store):
    catalogue = store.catalogue
    for pair in catalogue.pairs:
        (row,) = pair.candidates
        original = np.array(Image.open(run / "originals" / f"{file_name(pair.image)}.png"))
        with np.load(run / "cells" / "model" / row["fidelity"] / f"{file_name(pair.image)}.npz") as file:
            candidate = file["images"][row["candidate"]]
        np.testing.assert_array_equal(decoded(catalogue, pair.original), original)
        np.testing.assert_array_equal(decoded(catalogue, pair.perturbed), candidate)
        assert np.abs(candidate.astype(int) - original).max() == row["max_change"]


def test_what_changes_nothing_is_left_out_and_what_is_alike_is_one_pair(store, run, tmp_path):
    assert len(store.catalogue.pairs) == 2 * len(NAMES) * (len(CHANGES) - 1)
    assert store.catalogue.unchanged == 2 * len(NAMES)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for cell in (copy / "cells" / "model" / "ssim").iterdir():  # both fidelities give the same candidates
        shutil.copy(copy / "cells" / "model" / "chebyshev" / cell.name, cell)
    catalogue = catalogue_lib.open_or_make(copy, tmp_path / "alike", Settings())
    assert len(catalogue.pairs) == len(NAMES) * (len(CHANGES) - 1)
    assert all([row["fidelity"] for row in pair.candidates] == ["chebyshev", "ssim"] for pair in catalogue.pairs)


def test_plainly_different_images_are_plainly_different(store):
    for picture in store.catalogue.pictures:
        original = decoded(store.catalogue, picture.original).astype(int)
        for coarse in picture.coarse:
            assert (np.abs(decoded(store.catalogue, coarse) - original).max(axis=-1) >= 8).mean() > 0.4


def test_candidates_are_thinned_evenly_over_their_distances(run, tmp_path):
    catalogue = catalogue_lib.open_or_make(run, tmp_path, Settings(candidates=2))
    assert {row["candidate"] for pair in catalogue.pairs for row in pair.candidates} == {
        3
    }  # and 0, which changes nothing
    assert catalogue.unchanged == 2 * len(NAMES)


def test_only_known_names_lead_to_a_file(store):
    known = next(iter(store.catalogue.images))
    assert store.catalogue.content(known).startswith(b"\x89PNG")
    for name in ("", "..", "../settings.json", known[:-1], known + "\n", known.upper(), "0" * 32, "catalogue.json"):
        if name != known:
            assert store.catalogue.content(name) is None


def broken(name):
    def spoil(run):
        cell = sorted((run / "cells").rglob("*.npz"))[0]
        if name == "no table":
            (run / "report" / "candidates.csv").unlink()
        elif name == "no column":
            (run / "report" / "candidates.csv").write_text("model,image\nm,i\n")
        elif name == "no originals":
            shutil.rmtree(run / "originals")
        elif name == "no image":
            next((run / "originals").iterdir()).write_bytes(b"no image")
        elif name == "damaged cell":
            cell.write_bytes(cell.read_bytes()[:100])
        elif name == "other images":
            with np.load(cell) as file:
                write_arrays(cell, {"images": file["images"][::-1]})
        elif name == "other size":
            with np.load(cell) as file:
                write_arrays(cell, {"images": file["images"][:, :-1]})
        elif name == "path outside":
            table = run / "report" / "candidates.csv"
            table.write_text(table.read_text().replace("cells/model", "../cells/model"))

    return spoil


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no table", "finish a run of the job perceptual_attack"),
        ("no column", "no column after"),
        ("no originals", "of an earlier version; give its command again"),
        ("no image", "cannot be read"),
        ("damaged cell", "missing or damaged"),
        ("other images", "differs from originals/ by 12 grey levels, and by 0"),
        ("other size", "does not have the candidates of"),
        ("path outside", "outside of the run"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_and_leaves_no_study(run, tmp_path, name, says):
    shutil.copytree(run, tmp_path / "run")
    broken(name)(tmp_path / "run")
    with pytest.raises(UserError, match=says):
        catalogue_lib.open_or_make(tmp_path / "run", tmp_path / "study", Settings())
    with pytest.raises(UserError, match="there is no study"):
        catalogue_lib.read(tmp_path / "study")


def spoilt_images(catalogue):
    """Removes an image, cuts one off, and changes one byte of a third; returns what was there."""
    paths = sorted((catalogue.folder / "images").iterdir())
    whole = {path: path.read_bytes() for path in paths}
    paths[0].unlink()
    paths[1].write_bytes(whole[paths[1]][:-10])
    paths[2].write_bytes(whole[paths[2]][:-20] + b"!" + whole[paths[2]][-19:])
    return whole


def test_damaged_images_are_written_again_and_the_study_stays_the_same(run, store):
    catalogue = store.catalogue
    whole = spoilt_images(catalogue)
    assert catalogue_lib.open_or_make(run, catalogue.folder, store.settings) == catalogue
    assert {path: path.read_bytes() for path in (catalogue.folder / "images").iterdir()} == whole


def test_an_image_that_the_run_has_no_more_is_named_and_answers_can_still_be_read(run, store, tmp_path):
    grown = shutil.copytree(run, tmp_path / "grown")
    table = grown / "report" / "candidates.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if NAMES[0] not in line))
    spoilt_images(store.catalogue)
    with pytest.raises(UserError, match=r"images.*png is missing or damaged, and the run does not have it any more"):
        catalogue_lib.open_or_make(grown, store.catalogue.folder, store.settings)
    assert catalogue_lib.read(store.catalogue.folder) == store.catalogue


def test_a_damaged_image_is_not_handed_out(store):
    spoilt_images(store.catalogue)
    for path in sorted((store.catalogue.folder / "images").glob("*"))[:2]:
        with pytest.raises(UserError, match=f"{path.stem}.*damaged; the study's command, given again, restores it"):
            store.catalogue.content(path.stem)
