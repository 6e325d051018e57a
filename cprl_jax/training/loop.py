"""The training loop: from a split data set to the checkpoints of one method.

A run may be killed at any moment and started again with the same command: it goes on from the last checkpoint and ends
with the same parameters and metrics, bit for bit, as if it had never stopped (on the same number of devices).
"""

import csv
import math
import os
import time
from pathlib import Path

import jax
import ml_collections
import numpy as np
import tensorboardX
from absl import logging
from tqdm import tqdm

from cprl_jax import models
from cprl_jax.data.crops import draw_crops, extract
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.device_images import training_feed
from cprl_jax.data.splits import Split, rows
from cprl_jax.evaluation import statistics
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import TrainingDiverged, UserError
from cprl_jax.training.checkpoints import Checkpoints
from cprl_jax.training.step import TrainState, create_state, evaluation_variables, make_optimizer, make_step


def fit(
    config: ml_collections.ConfigDict,
    method: str,
    *,
    dataset: QualityDataset,
    split: Split,
    folder: Path,
    start_from: dict | None = None,
) -> None:
    """Trains one method, or goes on where an earlier call in the same folder stopped.

    Args:
      config: the whole configuration.
      method: 'plain', 'cprl' or 'at'.
      dataset, split: trains on split.train, selects the best checkpoint on split.validation; split.test is not read.
      folder: of this method; receives checkpoints/, metrics.csv and tensorboard/.
      start_from: variables to start from; None = published or random weights, as config.model.weights says.

    Raises:
      TrainingDiverged: naming the step, and what was not finite.
      UserError: a batch that the devices cannot share, or no training image.
    """
    train = config.train
    batch_size = _batch_size(config, method)
    train_rows, validation_rows = rows(dataset, split.train), rows(dataset, split.validation)
    steps = total_steps(config, method, images=len(train_rows))
    if batch_size % parallel.device_count():
        raise UserError(
            f"the batch size of {method} is {batch_size}; it must be a multiple of {parallel.device_count()}, the "
            "number of devices"
        )

    module = create_model(config, method, axis_name=parallel.AXIS)
    optimizer = make_optimizer(train, steps=steps)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        state, metadata = _initial_or_restored(config, method, optimizer, checkpoints, start_from)
        done = checkpoints.latest_step() or 0
        if done >= steps:
            logging.info("%s: already trained for %d steps", method, steps)
            return
        step_fn = parallel.map_step(make_step(module, optimizer, config, method=method, axis_name=parallel.AXIS))
        feed = training_feed(
            dataset,
            train_rows,
            batch_size=batch_size,
            crop_size=config[method].crop_size or train.crop_size,
            seed=config.seed,
            crop_on=train.crop_on,
            workers=train.workers,
        )
        validate = Validation(config, method, dataset=dataset, validation_rows=validation_rows)
        every = train.evaluate_every or max(1, math.ceil(steps / 20))

        state = parallel.replicate(state)
        history = History(folder, done) if parallel.is_main_process() else None
        progress = tqdm(
            total=steps,
            initial=done,
            desc=f"train {method}",
            unit="step",
            dynamic_ncols=True,
            disable=not parallel.is_main_process(),
        )
        started, seen = time.monotonic(), 0
        pending: tuple[int, dict] | None = None  # metrics of the step before, read while the devices work on this one

        def settle():
            """Reads the metrics of the pending step, checks them and writes them down."""
            nonlocal pending
            if pending is None:
                return
            number, values = pending[0], {name: float(value) for name, value in pending[1].items()}
            pending = None
            _check_finite(method, number, values)
            if history is not None:
                rate = seen / (time.monotonic() - started)
                history.add(number, values, images_per_second=rate)
                progress.set_postfix_str(f"loss {values['loss']:.3f}, {rate:.0f} images/s", refresh=False)

        with progress:
            for step, batch in zip(range(done + 1, steps + 1), feed(done), strict=False):
                state, metrics = step_fn(state, batch)
                settle()
                pending = (step, metrics)
                seen += batch_size
                progress.update()
                if step % every == 0 or step == steps:
                    settle()
                    result = validate(evaluation_variables(state))
                    if history is not None:
                        history.add_validation(step, result)
                        history.flush()
                    checkpoints.save(step, state, {"config_method": method, "steps": steps}, metric=result["selection"])
        if history is not None:
            history.close()


def total_steps(config: ml_collections.ConfigDict, method: str, *, images: int) -> int:
    """Optimiser steps of a method: its own, config.train.steps, or whole epochs of `images` training images."""
    if images == 0:
        raise UserError("the training part of the split is empty; lower config.dataset.test_fraction")
    train = config.train
    epochs = train.epochs * train.crops_per_epoch * images // _batch_size(config, method)
    return config[method].steps or train.steps or max(1, epochs)


def _batch_size(config: ml_collections.ConfigDict, method: str) -> int:
    return config[method].batch_size or config.train.batch_size


def create_model(config: ml_collections.ConfigDict, method: str, *, axis_name: str | None = None):
    """The network of a method: config.model, with SortMask only where the method asks for it."""
    model = config.model.copy_and_resolve_references()
    if not config[method].sort_mask:
        model.sort_mask.rate = 0.0
    return models.create(model, axis_name=axis_name)


def best_variables(config: ml_collections.ConfigDict, method: str, folder: Path) -> tuple[dict, int]:
    """The variables to evaluate, from the best or last checkpoint as config.evaluation says, and their step.

    Raises:
      UserError: no checkpoint.
    """
    with Checkpoints(folder / "checkpoints", read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        if config.evaluation.checkpoint == "best":
            step = checkpoints.best_step() or step  # without validation images no checkpoint is better than another
        if step is None:
            raise UserError(f"no checkpoint of {method} in {folder}; run with --config.job=train_and_evaluate first")
        optimizer = make_optimizer(config.train, steps=1)
        template = jax.eval_shape(lambda: create_state(_initialize(config, method, seed=config.seed), optimizer))
        state, _ = checkpoints.restore(step, template)
        return evaluation_variables(state), step


def start_variables(config: ml_collections.ConfigDict, method: str, *, seed: int) -> dict:
    """The variables before training: config.model.weights, what they lack at random; all at random without weights.

    Raises:
      UserError: weights that cannot be read, or are those of another network.
    """
    variables = _initialize(config, method, seed=seed)
    if not config.model.weights:
        return variables
    return models.load_weights(variables, config.model.weights, config_model=config.model)


def _initialize(config: ml_collections.ConfigDict, method: str, *, seed: int) -> dict:
    module = create_model(config, method)
    return models.initialize(module, jax.random.key(seed), config.train.crop_size)


def _initial_or_restored(config, method, optimizer, checkpoints: Checkpoints, start_from) -> tuple[TrainState, dict]:
    latest = checkpoints.latest_step()
    if latest is not None:
        template = jax.eval_shape(lambda: create_state(_initialize(config, method, seed=config.seed), optimizer))
        logging.info("%s: going on from step %d", method, latest)
        return checkpoints.restore(latest, template)
    variables = start_from
    if variables is None:
        variables = start_variables(config, method, seed=config.seed)
        if not config.model.weights:
            logging.warning(
                "%s starts from random weights: no config.model.weights given. Expect a clearly lower accuracy, and "
                "many more steps to reach it, than from weights trained on ImageNet.",
                method,
            )
    return create_state(variables, optimizer), {}


class Validation:
    """Scores the validation images, attacked too where the method asks for it."""

    def __init__(self, config, method, *, dataset: QualityDataset, validation_rows: np.ndarray):
        evaluation = config.evaluation
        self._radius = config[method].validation_radius / 255.0
        self._mos = dataset.mos[validation_rows]
        self._count = len(validation_rows)
        if self._count == 0:
            return
        crops = draw_crops(
            dataset,
            validation_rows,
            crops=config.train.validation_crops,
            crop_size=evaluation.crop_size,
            seed=config.seed,
        )
        self._crops = extract(crops, dataset, config.train.validation_crops)
        module = create_model(config, method)
        self._scorer = Scorer(module, batch_size=evaluation.batch_size, pgd_steps=5, mid=evaluation.mid)

    def __call__(self, variables: dict) -> dict[str, float | None]:
        """Returns validation_srcc, validation_attacked_srcc (5 steps of PGD) and `selection`, the higher the better."""
        if self._count < 3:  # a correlation of fewer images says nothing: no best checkpoint, the last one counts
            return {"selection": None}
        clean = statistics.srcc(self._scorer.scores(variables, self._crops), self._mos)
        result = {"validation_srcc": clean, "selection": clean}
        if self._radius:
            attacked = self._scorer.attack(variables, self._crops, self._mos, attack="pgd", radius=self._radius)
            result["validation_attacked_srcc"] = statistics.srcc(attacked["after"], self._mos)
            result["selection"] = (clean + result["validation_attacked_srcc"]) / 2
        if not math.isfinite(result["selection"]):  # constant scores
            result["selection"] = -1.0
        return result


class History:
    """metrics.csv and TensorBoard, one row a step; what lies after the step that a run resumes from is dropped."""

    COLUMNS = (
        "step",
        "loss",
        "mos_loss",
        "invariance_loss",
        "adversarial_loss",
        "score_std",
        "gradient_norm",
        "validation_srcc",
        "validation_attacked_srcc",
    )

    def __init__(self, folder: Path, done: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.csv"
        kept = [row for row in read_history(folder) if int(row["step"]) <= done]
        temporary = self._path.with_suffix(".csv.tmp")
        self._file = temporary.open("w", newline="")
        self._writer = csv.DictWriter(self._file, self.COLUMNS, restval="")
        self._writer.writeheader()
        self._writer.writerows(kept)
        self._file.flush()
        os.replace(temporary, self._path)  # the open file goes on under its final name
        self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"), purge_step=done + 1)
        self._row: dict | None = None

    def add(self, step: int, values: dict[str, float], *, images_per_second: float) -> None:
        """Notes the metrics of a step. Speed goes to TensorBoard alone: metrics.csv is the same in every run."""
        self._write_row()
        self._row = {"step": step, **{name: repr(value) for name, value in values.items()}}
        for name, value in values.items():
            self._board.add_scalar(f"train/{name}", value, step)
        self._board.add_scalar("speed/images_per_second", images_per_second, step)

    def add_validation(self, step: int, result: dict[str, float | None]) -> None:
        """Adds the validation to the row of its step."""
        for name, value in result.items():
            if name in self.COLUMNS and value is not None:
                self._row[name] = repr(float(value))
                self._board.add_scalar(name.replace("validation_", "validation/"), value, step)

    def flush(self) -> None:
        """Puts everything so far on disk; called before the checkpoint of the same step is written."""
        self._write_row()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        self.flush()
        self._file.close()
        self._board.close()

    def _write_row(self) -> None:
        if self._row is not None:
            self._writer.writerow(self._row)
            self._row = None


def read_history(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv in a method's folder, empty if there is none; a row cut off by a kill is left out."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and (row["step"] or "").isdigit()]


def _check_finite(method: str, step: int, values: dict[str, float]) -> None:
    wrong = [name for name, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingDiverged(
            f"{method} diverged at step {step}: {', '.join(f'{name} = {values[name]}' for name in wrong)}. The "
            "parameters before this step are in the last checkpoint. Lower config.train.backbone_learning_rate or "
            "head_learning_rate, or set config.train.clip_norm=1, and start in a new --workdir."
        )
