"""Jobs of cells: each is computed once, and again when its stamp changes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from cprl_jax.runtime import cells, parallel
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

    read = cells.compute(wanted, one, job="test", describe=lambda cell: cell.path.stem, shared=True)
    assert [str(arrays["value"]) for arrays in read] == [cell.stamp for cell in wanted]
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


def test_each_process_computes_its_share_and_reads_all_without_the_large_arrays(wanted, monkeypatch):
    monkeypatch.setattr(parallel, "process_count", lambda: 2)
    monkeypatch.setattr(parallel, "barrier", lambda name: None)
    shares = []
    for process in range(2):
        monkeypatch.setattr(parallel, "process_index", lambda process=process: process)
        done = []
        read = cells.compute(
            wanted,
            lambda cell, done=done: done.append(cell.path.stem) or {"small": np.ones(1), "large": np.ones(9)},
            job="test",
            describe=str,
            shared=False,
            without=("large",),
        )
        shares.append(done)
    assert shares == [["a", "c"], ["b"]]
    assert [[*arrays] for arrays in read] == [["small"]] * 3


def test_a_result_is_computed_once_for_each_stamp(tmp_path):
    computed = []

    def one():
        computed.append(None)
        return {"value": np.arange(3)}

    for stamp, count in (("first", 1), ("first", 1), ("second", 2)):
        np.testing.assert_array_equal(cells.cached(tmp_path / "a.npz", stamp, one)["value"], np.arange(3))
        assert len(computed) == count


def test_parts_of_a_killed_cell_are_read_back_and_removed_with_it(wanted, monkeypatch):
    cell, done = wanted[0], []

    def one(cell, fail_at=None):
        def part(place):
            if place == fail_at:
                raise KeyboardInterrupt
            done.append(place)
            return {"value": np.array([place])}

        parts = cells.Parts(cell.path, cell.stamp)
        found = [parts.compute(place, lambda place=place: part(place)) for place in range(3)]
        return {"value": np.concatenate([arrays["value"] for arrays in found])}

    options = {"job": "test", "describe": str, "shared": True}
    monkeypatch.setattr(cells, "_LONG", -1.0)
    with pytest.raises(KeyboardInterrupt):
        cells.compute([cell], lambda cell: one(cell, fail_at=2), **options)
    assert done == [0, 1]
    (read,) = cells.compute([cell], one, **options)
    assert done == [0, 1, 2]
    np.testing.assert_array_equal(read["value"], [0, 1, 2])
    assert [path.name for path in cell.path.parent.iterdir()] == ["a.npz"]


def test_parts_are_of_one_stamp_and_one_place_and_quick_ones_are_not_kept(wanted, monkeypatch):
    first, second = (cells.Parts(wanted[0].path, stamp) for stamp in ("first", "second"))
    first.compute(0, lambda: {"value": np.array(1)})
    assert not first.folder.exists()
    monkeypatch.setattr(cells, "_LONG", -1.0)
    first.compute(0, lambda: {"value": np.array(1)})
    assert first.compute(0, lambda: {"value": np.array(2)})["value"] == 1
    assert first.compute(1, lambda: {"value": np.array(3)})["value"] == 3
    assert second.compute(0, lambda: {"value": np.array(4)})["value"] == 4
