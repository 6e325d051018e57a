"""metrics.csv and TensorBoard: what a training measured, one row a step."""

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorboardX


class History:
    """Writes metrics.csv and tensorboard/ in the folder of a training.

    Rows behind the step that a run resumes from are dropped. A metric that no row had before gets a column of its own.

    Args:
      folder: made if it does not exist.
      done: the step that the run resumes from; 0 for a new one.
      columns: the first columns after `step`, in order.
    """

    def __init__(self, folder: Path, done: int, columns: Sequence[str] = ()):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.csv"
        self._rows: list[dict[str, str]] = []  # of which the file lacks the columns or the end
        kept = [row for row in read_history(folder) if int(row["step"]) <= done]
        self._columns = list(dict.fromkeys(["step", *(name for row in kept for name in row), *columns]))
        self._file = None
        self._rewrite(kept)
        self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, step: int, values: Mapping[str, float], *, images_per_second: float) -> None:
        """Notes the metrics of a step. Speed goes to TensorBoard alone: metrics.csv is the same in every run."""
        self._write()
        self._rows = [{"step": str(step), **{name: repr(float(value)) for name, value in values.items()}}]
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)
        self._board.add_scalar("speed/images_per_second", images_per_second, step)

    def add_validation(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the results of a validation to the row of its step, as validation_<name>."""
        for name, value in values.items():
            self._rows[-1][f"validation_{name}"] = repr(float(value))
            self._board.add_scalar(f"validation/{name}", value, step)

    def flush(self) -> None:
        """Puts everything so far on disk; called before the checkpoint of the same step is written."""
        self._write()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()
        self._board.close()

    def _write(self) -> None:
        new = [name for row in self._rows for name in row if name not in self._columns]
        if new:
            self._columns += dict.fromkeys(new)
            self._file.flush()
            self._rewrite(read_history(self._path.parent))
        self._writer.writerows(self._rows)
        self._rows = []

    def _rewrite(self, rows: Sequence[Mapping[str, str]]) -> None:
        """Writes the file anew, under a temporary name first; the open file goes on under its final one."""
        if self._file is not None:
            self._file.close()
        temporary = self._path.with_suffix(".csv.tmp")
        self._file = temporary.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self._columns, restval="")
        self._writer.writeheader()
        self._writer.writerows(rows)
        self._file.flush()
        os.replace(temporary, self._path)


def read_history(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv in the folder of a training; none without one, and without a row that a kill cut off."""
    path = folder / "metrics.csv"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return list(csv.DictReader(line for line in lines if line.endswith("\n")))
