"""metrics.csv and TensorBoard: what a training measured, one row per step."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorboardX

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file


class History:
    """Keeps the metrics of a training, and writes them to metrics.csv and tensorboard/ in its folder.

    Rows behind the step that a run resumes from are dropped. A metric that no earlier row has gets a new column.

    Args:
      folder: made if it does not exist.
      done: the step that the run resumes from; 0 for a new one.
      columns: the first columns after `step`, in order.
    """

    def __init__(self, folder: Path, done: int, columns: Sequence[str] = ()):
        self._path = folder / "metrics.csv"
        self._rows: list[dict] = [row for row in read_history(folder) if int(row["step"]) <= done]
        self._columns = dict.fromkeys(["step", *(name for row in self._rows for name in row), *columns])
        self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)

    def add(self, step: int, values: Mapping[str, float], *, images_per_second: float) -> None:
        """Adds the metrics of a step. Speed goes to TensorBoard alone: metrics.csv is the same in every run."""
        self._rows.append({"step": step})
        self._add(values, "", "train")
        self._board.add_scalar("speed/images_per_second", images_per_second, step)

    def add_validation(self, values: Mapping[str, float]) -> None:
        """Adds the results of a validation to the last row, as validation_<name>."""
        self._add(values, "validation_", "validation")

    def _add(self, values: Mapping[str, float], prefix: str, board: str) -> None:
        row = self._rows[-1]
        row |= {f"{prefix}{name}": float(value) for name, value in values.items()}
        self._columns |= dict.fromkeys(row)
        for name, value in values.items():
            self._board.add_scalar(f"{board}/{name}", value, row["step"])

    def flush(self) -> None:
        """Puts everything so far on disk; called before the checkpoint of the same step is written."""
        file = io.StringIO()
        writer = csv.DictWriter(file, self._columns, restval="")
        writer.writeheader()
        writer.writerows(self._rows)
        write_file(self._path, file.getvalue())
        self._board.flush()

    def close(self) -> None:
        self.flush()
        self._board.close()


def read_history(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv in the folder of a training; none without one, and without a row that a kill cut off.

    Raises:
      UserError: it is no such file.
    """
    path = folder / "metrics.csv"
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        [int(row["step"]) for row in rows]
    except (ValueError, KeyError, TypeError, csv.Error):
        raise UserError(f"{path} is damaged; put back a copy, or delete it: only its curves are lost") from None
    return rows
