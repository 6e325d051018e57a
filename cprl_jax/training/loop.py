"""The training loop: the only one, of every method and of every paper's experiment.

A run may be killed at any moment and started again with the same command: it goes on from the last checkpoint and ends
with the same parameters and metrics, bit for bit, as if it had never stopped (on the same number of devices).
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import TrainingDiverged
from cprl_jax.training.checkpoints import Checkpoints
from cprl_jax.training.history import History, read_history
from cprl_jax.training.state import TrainState, evaluation_variables

Step = Callable[[TrainState, Any], tuple[TrainState, Mapping[str, Any]]]


def fit(
    state: TrainState,
    step_fn: Step,
    batches: Callable[[int], Iterator[Any]],
    *,
    name: str,
    steps: int,
    batch_size: int,
    folder: Path | None = None,
    every: int = 0,
    validate: Callable[[Mapping], Mapping[str, float]] | None = None,
    finish: Callable[[TrainState], tuple[TrainState, Mapping[str, float]]] | None = None,
    columns: Sequence[str] = (),
    unit: str = "step",
    advice: str = "",
) -> tuple[TrainState, list[dict[str, Any]]]:
    """Trains for a number of steps, or goes on where an earlier call in the same folder stopped.

    Args:
      state: the one before the first step.
      step_fn: `(state, batch) -> (state, metrics)` on all devices, see `parallel.map_step`. Metrics are scalars, `loss`
        among them; they are read while the devices work on the next step.
      batches: `(done) -> batches`, those of the steps after the first `done`.
      name: the training's, for messages.
      steps: how many in all.
      batch_size: images per step.
      folder: receives checkpoints/, metrics.csv and tensorboard/. None: nothing is kept.
      every: steps between validations and checkpoints; 0 for a twentieth of the training.
      validate: `(evaluation_variables) -> numbers`, of which `selection` chooses the best checkpoint, higher is better
        (NaN: the training has diverged); without it no checkpoint is better than another.
      finish: `(state) -> (state, numbers)` after the last step; metrics.csv keeps the numbers beside the validation's.
      columns: the first columns of metrics.csv.
      unit: what a step is called.
      advice: what to do when the training diverges, one sentence.

    Returns:
      the state after the last step, and the rows of metrics.csv in the main process.

    Raises:
      TrainingDiverged: naming the step, and what was not finite.
    """
    every = every or max(1, math.ceil(steps / 20))
    rows: list[dict] = []
    checkpoints, history, done = None, None, 0
    with contextlib.ExitStack() as stack:
        if folder is not None:
            checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints"))
            done = checkpoints.latest_step() or 0
            if done:
                state = checkpoints.restore(done, state)
            if done >= steps:
                logging.info("%s: already trained for %d %ss", name, done, unit)
                return state, read_history(folder)
            if done:
                logging.info("%s: going on from %s %d of %d", name, unit, done, steps)
            if parallel.is_main_process():
                history = stack.enter_context(contextlib.closing(History(folder, done, columns)))
        state = parallel.replicate(state)
        pending: tuple[int, Mapping] | None = None  # metrics of the step before
        started = time.monotonic()
        look = {"dynamic_ncols": True, "leave": folder is not None, "disable": not parallel.is_main_process()}
        progress = stack.enter_context(tqdm(total=steps, initial=done, desc=f"train {name}", unit=unit, **look))

        def diverged(step: int, cause: str) -> TrainingDiverged:
            kept = checkpoints.latest_step() if checkpoints else None
            last = f" The last checkpoint is of {unit} {kept}." if kept else ""
            return TrainingDiverged(f"{name} diverged at {unit} {step}: {cause}.{last} {advice}".strip())

        def settle() -> None:
            """Reads, checks and records the metrics of the pending step."""
            nonlocal pending
            if pending is None:
                return
            step, values = pending[0], {key: float(value) for key, value in pending[1].items()}
            pending = None
            if wrong := [f"{key} = {value}" for key, value in values.items() if not math.isfinite(value)]:
                raise diverged(step, ", ".join(wrong))
            rate = (step - done) * batch_size / (time.monotonic() - started)
            if history is not None:
                history.add(step, values, images_per_second=rate)
            elif folder is None:
                rows.append({"step": step, **values})
            progress.set_postfix_str(f"loss {values['loss']:.3f}, {rate:.0f} images/s", refresh=False)

        for step, batch in zip(range(done + 1, steps + 1), batches(done), strict=False):
            state, metrics = step_fn(state, batch)
            settle()
            pending = (step, metrics)
            progress.update()
            if step < steps and (checkpoints is None or step % every):
                continue
            settle()
            state, found = finish(state) if finish and step == steps else (state, {})
            # The metrics of a step are those before its update, which may have been too long.
            variables = jax.device_get((state.params, state.batch_stats))
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables)):
                raise diverged(step, "its variables are not finite")
            if checkpoints is None:
                continue
            result = {**(validate(evaluation_variables(state)) if validate else {}), **found}
            selection = result.pop("selection", None)
            if selection is not None and math.isnan(selection):
                raise diverged(step, "its scores of the validation images are not finite")
            if history is not None:
                history.add_validation(result)
                history.flush()
            checkpoints.save(step, state, metric=selection)
    return state, rows if folder is None else read_history(folder)
