"""One method trained on the training part of a split."""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import UInt8

from cprl_jax import models
from cprl_jax.data import photographs
from cprl_jax.data.combined import at_scales, combine
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.device_images import training_feed
from cprl_jax.data.distorted_copies import distorted_copies
from cprl_jax.data.splits import Split, rows
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.evaluation.statistics import MIN_IMAGES
from cprl_jax.evaluation.validation import make_validation
from cprl_jax.methods import METHODS
from cprl_jax.models.fitted import Images
from cprl_jax.runtime import cells, parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path, write_file
from cprl_jax.runtime.stamps import stamp
from cprl_jax.training import setup
from cprl_jax.training.loop import fit
from cprl_jax.training.optimizers import check_frozen, make_optimizer
from cprl_jax.training.state import TrainState, create_state, evaluation_variables
from cprl_jax.training.step import make_step

ADVICE = (
    "Lower config.train.backbone_learning_rate or head_learning_rate, or set config.train.clip_norm=1, and start in a "
    "new --workdir."
)

_LABEL_CROPS = 5  # of a distorted copy, whose label is their mean score


def check_training(config: ml_collections.ConfigDict, method: str, split: Split) -> None:
    """What can be known before anything is trained or written.

    Raises:
      UserError: a batch that the devices cannot share, parameters to hold that the network does not have, or too few
        validation images for a method that needs them.
    """
    if METHODS[method].calibrate and len(split.validation) < MIN_IMAGES:
        raise UserError(
            f"{method} is chosen on validation images, of which there are fewer than {MIN_IMAGES}; raise "
            f"config.dataset.validation_fraction, or leave {method} out of config.methods"
        )
    if models.network_of(config.model).fit is not None:
        return
    batch_size = setup.batch_size(config, method)
    if batch_size % parallel.device_count():
        raise UserError(
            f"the batch size of {method} is {batch_size}; it must be a multiple of {parallel.device_count()}, the "
            "number of devices"
        )
    if config.train.frozen:
        check_frozen(setup.described_variables(config, method)["params"], config.train.frozen)


def train(
    config: ml_collections.ConfigDict, method: str, *, dataset: QualityDataset, split: Split, workdir: Path
) -> None:
    """Trains one method in its folder of `workdir`, or goes on where an earlier call stopped; writes weights.npz.

    Trains on split.train, chooses the best checkpoint on split.validation; split.test is not read.

    Raises:
      TrainingDiverged: naming the step, and what was not finite.
      UserError: no training image, a start from a method without checkpoint.
    """
    if models.network_of(config.model).fit is not None:
        return _fit(config, method, dataset=dataset, split=split, workdir=workdir)
    settings, train, folder, declared = config[method], config.train, workdir / method, METHODS[method]
    train_rows, validation_rows = rows(dataset, split.train), rows(dataset, split.validation)
    steps = setup.total_steps(config, method, images=len(train_rows))
    batch_size = setup.batch_size(config, method)
    if settings.start_from == "weights":
        if not folder.exists():
            setup.warn_of_random_weights(config, method)
        variables = setup.start_variables(config, method, seed=config.seed)
    else:
        start = settings.start_from
        variables = setup.variables_after(config, method, workdir / start, start=start)
    optimizer = make_optimizer(train, steps=steps)
    module = setup.create_model(config, method, axis_name=parallel.AXIS)
    deployed = setup.create_model(config, method)
    shown, shown_rows = dataset, train_rows
    if settings.distorted_copies:
        copies = _labelled_copies(config, method, dataset, train_rows, workdir)
        shown, shown_rows = combine([dataset, copies]), [*train_rows, *range(len(dataset), len(dataset) + len(copies))]
    if tuple(train.scales) != (1.0,):
        shown = at_scales(shown, shown_rows, train.scales, cache_gib=config.dataset.cache_gib)
        shown_rows = range(len(shown))
    validation = functools.partial(make_validation, config, deployed, dataset, validation_rows)
    fit(
        create_state(variables, optimizer.init(variables["params"]), averaged=train.ema_decay > 0),
        parallel.map_step(make_step(module, optimizer, config, method=method, axis_name=parallel.AXIS)),
        training_feed(
            shown,
            shown_rows,
            batch_size=batch_size,
            crop_size=setup.crop_size(config, method),
            seed=config.seed,
            crop_on=train.crop_on,
            workers=train.workers,
        ),
        name=method,
        steps=steps,
        batch_size=batch_size,
        folder=folder,
        every=train.evaluate_every if declared.trains else steps,  # what is not trained is kept as it is in the end
        validate=validation(radius=settings.validation_radius),
        finish=_calibration(config, method, validation(radius=0.0)) if declared.calibrate else None,
        columns=("loss", *declared.metrics, "gradient_norm", "validation_srcc"),
        advice=ADVICE,
    )
    trained = setup.trained_variables(config, method, folder)
    if parallel.is_main_process():
        models.save_weights(folder / "weights.npz", trained)


def _labelled_copies(
    config: ml_collections.ConfigDict, method: str, dataset: QualityDataset, train_rows: np.ndarray, workdir: Path
) -> QualityDataset:
    """Distorted copies of the training photographs, labelled by the model that the method starts from."""
    settings = config[method]
    copies = distorted_copies(
        dataset, train_rows, settings.distorted_copies, seed=config.seed, cache_gib=config.dataset.cache_gib
    )
    start = settings.start_from
    # By what training depends on: settings of the evaluation may change before a run goes on.
    size = {"crops": _LABEL_CROPS, "crop_size": setup.crop_size(config, start)}
    teacher, variables = setup.create_model(config, start), setup.trained_variables(config, start, workdir / start)
    crops = Crops(copies, range(len(copies)), **size, seed=config.seed)

    def label():
        scorer = Scorer(teacher, batch_size=config.evaluation.batch_size)
        return {"mos": scorer.scores(variables, crops, progress=f"label copies for {method}").clip(0, 100)}

    # Not of the pixels, which would all be computed to ask for it: a run's photographs do not change.
    draws = [copies.names.tolist(), copies.distortions.tolist(), copies.levels.tolist(), config.seed]
    labels = stamp(module=teacher, variables=variables, copies=draws, size=size)
    mos = cells.cached(workdir / method / "distorted_copies.npz", labels, label)["mos"]
    return dataclasses.replace(copies, mos=mos, mos_raw=mos)


def _fit(
    config: ml_collections.ConfigDict, method: str, *, dataset: QualityDataset, split: Split, workdir: Path
) -> None:
    """The same for a network that is fitted: one crop of each image, as the evaluation cuts them; writes fit.json too.

    A method that does not train has the parameters of the one that it starts from; config.model.weights are taken as
    they are.
    """
    folder, network = workdir / method, models.network_of(config.model)
    if (folder / "weights.npz").exists():
        logging.info("%s: already fitted", method)
        return
    module, start, numbers = setup.create_model(config, method), config[method].start_from, {}
    variables = setup.start_variables(config, method, seed=config.seed)
    if start != "weights":
        variables = setup.trained_variables(config, start, workdir / start)
    elif not config.model.weights and parallel.is_main_process():
        size = {"crops": 1, "crop_size": config.evaluation.crop_size, "seed": config.seed}
        parts = [rows(dataset, part) for part in (split.train, split.validation)]
        images = [Images(Crops(dataset, part, **size), dataset.mos[part], dataset.references[part]) for part in parts]
        pristine = functools.partial(pristine_photographs, config, dataset, parts[0])
        variables, numbers = network.fit(module, *images, pristine=pristine, seed=config.seed)
        logging.info("%s: fitted; %s", method, ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
    if parallel.is_main_process():
        write_file(folder / "fit.json", json.dumps(numbers, indent=1))
        models.save_weights(folder / "weights.npz", variables)
    parallel.barrier("fitted")


def pristine_photographs(
    config: ml_collections.ConfigDict, dataset: QualityDataset, train_rows: np.ndarray
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """The undistorted photographs of config.train.pristine, or of the training scenes.

    Raises:
      UserError: there are none, or one that cannot be read.
    """
    if not config.train.pristine:
        if scenes := [name for name in np.unique(dataset.references[train_rows]) if name in dataset.pristine]:
            return [dataset.pristine[name] for name in scenes]
        raise UserError(
            f"{config.model.name} is fitted to undistorted photographs, and the data set {dataset.name} has none: give "
            "a folder of some, --config.train.pristine=DIR"
        )
    folder = user_path(config.train.pristine, field="config.train.pristine")
    paths = photographs.image_files(folder) if folder.is_dir() else []
    if not paths:
        raise UserError(f"config.train.pristine: there are no photographs in {folder}; give the folder of some")
    return [photographs.read(path) for path in paths]


def _calibration(config: ml_collections.ConfigDict, method: str, validate: Callable[[Mapping], Mapping]):
    """What the method makes of the state after the last step, for `fit`; `validate` measures clean images."""

    def calibrate(state: TrainState) -> tuple[TrainState, Mapping[str, float]]:
        variables, numbers = METHODS[method].calibrate(
            evaluation_variables(state), lambda variables: validate(variables)["srcc"], config[method]
        )
        return state.replace(**variables, averaged=None if state.averaged is None else variables), numbers

    return calibrate
