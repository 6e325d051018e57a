"""Jobs of cells: each is computed once, and again when its stamp changes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cprl_jax.runtime import cells
from cprl_jax.runtime.files import read_cache


@dataclasses.dataclass
class Cell:
    path: Path
    stamp: str


def compute(wanted, fail_at=None):
    done = []

    def one(cell):
        if cell.path.stem == fail_at:
            raise KeyboardInterrupt
        done.append(cell.path.stem)
        return {"value": np.array(cell.stamp)}

    cells.compute(wanted, one, job="test", describe=lambda cell: cell.path.stem, shared=True)
    return done


@pytest.fixture
def wanted(tmp_path):
    return [Cell(tmp_path / f"{name}.npz", "first") for name in "abc"]


def test_every_cell_is_computed_once(wanted):
    assert compute(wanted) == ["a", "b", "c"]
    assert compute(wanted) == []
    assert all(str(read_cache(cell.path, "first")["value"]) == "first" for cell in wanted)


def test_a_cell_of_another_stamp_is_computed_again(wanted):
    compute(wanted)
    wanted[1].stamp = "second"
    assert compute(wanted) == ["b"]
    assert read_cache(wanted[1].path, "first") is None


def test_an_interrupted_job_goes_on_where_it_stopped(wanted):
    with pytest.raises(KeyboardInterrupt):
        compute(wanted, fail_at="c")
    assert compute(wanted) == ["c"]


def test_file_names_never_meet():
    names = ["own:a/b", "own:a_b", "own_a_b", "a b", "a.b", "ä"]
    found = [cells.file_name(name) for name in names]
    assert len(set(found)) == len(names)
    assert found[2] == "own_a_b" and found[4] == "a.b", "a name that can be kept is kept"
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-") for name in found)
