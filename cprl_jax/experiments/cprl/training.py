"""One method trained on the training part of a split."""

from pathlib import Path

import ml_collections

from cprl_jax import models
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.device_images import training_feed
from cprl_jax.data.splits import Split, rows
from cprl_jax.evaluation.validation import make_validation
from cprl_jax.methods import METHODS
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.training import setup
from cprl_jax.training.loop import fit
from cprl_jax.training.optimizers import make_optimizer
from cprl_jax.training.state import create_state
from cprl_jax.training.step import make_step

ADVICE = (
    "Lower config.train.backbone_learning_rate or head_learning_rate, or set config.train.clip_norm=1, and start in a "
    "new --workdir."
)


def train(
    config: ml_collections.ConfigDict, method: str, *, dataset: QualityDataset, split: Split, workdir: Path
) -> None:
    """Trains one method in its folder of `workdir`, or goes on where an earlier call stopped; writes weights.npz.

    Trains on split.train, chooses the best checkpoint on split.validation; split.test is not read.

    Raises:
      TrainingDiverged: naming the step, and what was not finite.
      UserError: a batch that the devices cannot share, no training image, or a start from a method without checkpoint.
    """
    settings, train, folder = config[method], config.train, workdir / method
    train_rows, validation_rows = rows(dataset, split.train), rows(dataset, split.validation)
    steps = setup.total_steps(config, method, images=len(train_rows))
    batch_size = setup.batch_size(config, method)
    if batch_size % parallel.device_count():
        raise UserError(
            f"the batch size of {method} is {batch_size}; it must be a multiple of {parallel.device_count()}, the "
            "number of devices"
        )
    if settings.start_from == "weights":
        if not folder.exists():
            setup.warn_of_random_weights(config, method)
        variables = setup.start_variables(config, method, seed=config.seed)
    else:
        start = settings.start_from
        variables = setup.variables_after(config, method, workdir / start, start=start)
    optimizer = make_optimizer(train, steps=steps)
    module = setup.create_model(config, method, axis_name=parallel.AXIS)
    fit(
        create_state(variables, optimizer.init(variables["params"]), averaged=train.ema_decay > 0),
        parallel.map_step(make_step(module, optimizer, config, method=method, axis_name=parallel.AXIS)),
        training_feed(
            dataset,
            train_rows,
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
        every=train.evaluate_every,
        validate=make_validation(
            config, setup.create_model(config, method), dataset, validation_rows, radius=settings.validation_radius
        ),
        columns=("loss", *METHODS[method].metrics, "gradient_norm", "validation_srcc"),
        advice=ADVICE,
    )
    trained = setup.trained_variables(config, method, folder)
    if parallel.is_main_process():
        models.save_weights(folder / "weights.npz", trained)
