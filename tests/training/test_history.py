"""metrics.csv: a column for every metric, rows up to the step that a run resumes from, and nothing half-written."""

import pytest

from cprl_jax.runtime.errors import UserError
from cprl_jax.training.history import History, read_history


def write(folder, rows, *, done=0, columns=("loss",)):
    history = History(folder, done, columns)
    for step, values in rows.items():
        history.add(step, values, images_per_second=9.0)
    history.close()
    return (folder / "metrics.csv").read_text().splitlines()


def test_values_come_back_exactly(tmp_path):
    write(tmp_path, {1: {"loss": 0.1 + 0.2, "norm": 1e-30}})
    assert read_history(tmp_path) == [{"step": "1", "loss": "0.30000000000000004", "norm": "1e-30"}]
    assert list((tmp_path / "tensorboard").iterdir())
    assert read_history(tmp_path / "nothing") == []


def test_a_new_name_gets_a_column_and_rows_without_it_are_empty_there(tmp_path):
    history = History(tmp_path, 0, ("loss", "norm"))
    history.add(1, {"loss": 1.0, "norm": 2.0}, images_per_second=9.0)
    history.add(2, {"loss": 3.0, "late": 4.0, "norm": 5.0}, images_per_second=9.0)
    history.add_validation({"srcc": 0.5})
    history.add(3, {"late": 6.0, "loss": 7.0, "norm": 8.0}, images_per_second=9.0)
    history.flush()
    expected = ["step,loss,norm,late,validation_srcc", "1,1.0,2.0,,", "2,3.0,5.0,4.0,0.5", "3,7.0,8.0,6.0,"]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == expected
    history.close()
    assert not list(tmp_path.glob("*.tmp"))


def test_rows_behind_the_step_that_a_run_resumes_from_are_dropped(tmp_path):
    rows = {step: {"loss": float(step)} for step in range(1, 6)}
    whole = write(tmp_path / "whole", rows)
    write(tmp_path / "resumed", {step: {"loss": -1.0 if step > 3 else float(step)} for step in range(1, 6)})
    assert write(tmp_path / "resumed", {4: rows[4], 5: rows[5]}, done=3) == whole


@pytest.mark.parametrize("cut", range(2, 14))
def test_a_row_that_a_kill_cut_off_is_dropped(tmp_path, cut):
    """Also one whose last number is only shorter than it was."""
    write(tmp_path, {1: {"loss": 0.25}, 2: {"loss": 0.12345678}})
    path = tmp_path / "metrics.csv"
    content = path.read_bytes()
    assert content.endswith(b"2,0.12345678\r\n")
    path.write_bytes(content[:-cut])
    assert read_history(tmp_path) == [{"step": "1", "loss": "0.25"}]
    assert write(tmp_path, {2: {"loss": 3.0}}, done=1) == ["step,loss", "1,0.25", "2,3.0"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00hello\n1,2\n", b"a,b\n1,2\n", b"step,loss\nmany,2\n"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged; put back a copy, or delete it"):
        read_history(tmp_path)
    (tmp_path / "metrics.csv").write_bytes(b"")
    assert read_history(tmp_path) == []
