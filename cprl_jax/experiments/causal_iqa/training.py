"""Training with one of the updates of Causal-IQA: from the start weights and a division to the parameters theta."""

import functools
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.pipeline import Batch, cut_crops, prefetch
from cprl_jax.experiments.causal_iqa import sampling
from cprl_jax.experiments.causal_iqa.division import Division, divide
from cprl_jax.experiments.causal_iqa.learner import Learner
from cprl_jax.experiments.causal_iqa.optimizers import interpolation, pseudo_gradient_adam
from cprl_jax.experiments.causal_iqa.updates import METRICS, UPDATES, compile_step, first_state
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.loop import fit
from cprl_jax.training.optimizers import two_rates
from cprl_jax.training.setup import create_model
from cprl_jax.training.state import evaluation_variables

ADVICE = (
    "Lower config.causal_iqa.backbone_learning_rate, head_learning_rate or meta_rate, and start in a new --workdir."
)
_CROPS = 16  # keeps the random numbers of crops apart from those of `sampling`


class Plan(NamedTuple):
    """How long a training is, in meta steps: all of it, and from one decay of the learning rates to the next."""

    steps: int
    decay_steps: int


def make_plan(config: ml_collections.ConfigDict, division: Division) -> Plan:
    """Epochs in meta steps. In an epoch as many images are seen as the division has.

    Args:
      config: config.causal_iqa, of which `meta_steps` goes before `epochs`.
      division: a meta step sees config.causal_iqa.batch_size images for each of its subsets.
    """
    options = config.causal_iqa
    epoch = division.sizes.sum() / (len(division.names) * options.batch_size)
    return Plan(
        steps=options.meta_steps or max(1, round(options.epochs * epoch)),
        decay_steps=max(1, round(options.decay_epochs * epoch)),
    )


def make_learner(config: ml_collections.ConfigDict, plan: Plan) -> Learner:
    """Network, optimisers and loss of config.causal_iqa, for a step that is mapped over all devices.

    Dropout is a function of config.seed and the step, in trainings of other seeds as well: they share their programs,
    and differ in their start and their batches.
    """
    options = config.causal_iqa
    if options.meta_update == "adam":
        meta = pseudo_gradient_adam(options.meta_rate, b2=options.meta_beta2)
    else:
        meta = interpolation(options.meta_rate)
    return Learner(
        create_model(config, "plain", axis_name=parallel.AXIS),
        two_rates(
            options.inner_optimizer,
            backbone=options.backbone_learning_rate,
            head=options.head_learning_rate,
            b2=options.beta2,
        ),
        meta,
        loss=options.loss,
        seed=config.seed,
        inner_state=options.inner_state,
        batch_norm=options.batch_norm,
        axis_name=parallel.AXIS,
        schedule=lambda step: jnp.float32(options.decay) ** (step // plan.decay_steps),
    )


class Trainer:
    """Trains with one configuration. Each update is compiled once, whatever data, division and seed it then gets.

    The programs depend on shapes alone: they are compiled again for another number of subsets (on a CPU, where
    `updates.compile_step` loops over the subsets outside of the program, that of 'cip' and the pass for running
    averages alone).

    Args:
      config: config.causal_iqa says how, config.model with which network, config.train.crop_size on which crops.
      plan: how long.

    Raises:
      UserError: batches that the devices cannot share.
    """

    def __init__(self, config: ml_collections.ConfigDict, plan: Plan):
        size, devices = config.causal_iqa.batch_size, parallel.device_count()
        if size % devices:
            raise UserError(
                f"config.causal_iqa.batch_size is {size}; it must be a multiple of {devices}, the number of devices"
            )
        self._config, self.plan = config, plan
        self._learner = make_learner(config, plan)
        self._step = functools.cache(lambda update: compile_step(UPDATES[update](self._learner)))

    def train(
        self,
        update: str,
        dataset: QualityDataset,
        division: Division,
        *,
        seed: int,
        variables: dict,
        folder: Path | None = None,
    ) -> tuple[dict, list[dict[str, Any]]]:
        """Trains on the images that the division uses.

        All updates see as many images in a meta step: config.causal_iqa.batch_size for each subset of the division.
        (MetaIQA's are in pairs, so that it sees one batch more where the subsets are odd in number. Its tasks are the
        distortions.)

        Args:
          update: 'erm', 'metaiqa', 'cis' or 'cip'.
          dataset: that was divided.
          division: of the training images; the others are in subset -1.
          seed: of the batches and crops.
          variables: to start from.
          folder: keeps checkpoints and metrics, and a training that stopped there goes on, see `training.loop.fit`.
            None: nothing is kept.

        Returns:
          the variables of theta after the last meta step, and in the main process a row of `step` and `updates.METRICS`
          for each meta step.

        Raises:
          TrainingDiverged: naming the meta step, and what was not finite.
        """
        options, groups = self._config.causal_iqa, len(division.names)
        if update == "metaiqa":
            groups += groups % 2
            division = divide(
                dataset.distortions,
                division.responsibilities,
                content=False,
                rows=np.flatnonzero(division.subsets >= 0),
                smallest=options.smallest_subset,
            )
        batches = group_batches(
            dataset,
            division,
            update,
            groups=groups,
            batch_size=options.batch_size,
            crop_size=self._config.train.crop_size,
            seed=seed,
        )
        state, history = fit(
            first_state(variables, self._learner),
            self._step(update),
            lambda done: _feed(batches, groups, start_step=done, threads=self._config.train.workers),
            name=f"{update}, seed {seed}",
            steps=self.plan.steps,
            batch_size=groups * options.batch_size,
            folder=folder,
            every=options.evaluate_every or math.ceil(self.plan.steps / 10),
            columns=METRICS,
            unit="meta step",
            advice=ADVICE,
        )
        return jax.device_get(evaluation_variables(state)), history


def group_batches(
    dataset: QualityDataset, division: Division, update: str, *, groups: int, batch_size: int, crop_size: int, seed: int
) -> grain.MapDataset[Batch]:
    """The batches of all groups, one after the other: `groups` elements are a meta step.

    Crops are placed at random and mirrored with probability one half, as in `pipeline.training_batches`. An element
    depends on the arguments and its position alone.

    Args:
      dataset, division, update, groups, batch_size, seed: as for `sampling.draw`; batch_size counts all processes.
      crop_size: height and width of the crops in pixels.

    Returns:
      a dataset of this process's share of batches: `{'image': uint8 [share, crop_size, crop_size, 3],
      'mos': float32 [share], 'weight': float32 [share]}` with share = batch_size / processes.
    """
    share_size = batch_size // parallel.process_count()
    share = slice(parallel.process_index() * share_size, (parallel.process_index() + 1) * share_size)

    @functools.lru_cache(maxsize=8)
    def drawn(step: int) -> tuple[np.ndarray, np.ndarray]:
        return sampling.draw(update, division, batch_size=batch_size, seed=seed, step=step, groups=groups)

    def make(index: int) -> Batch:
        step, group = divmod(index, groups)
        rows, weights = (values[group, share] for values in drawn(step))
        # Drawn for the whole batch: the pixels of a share do not depend on how many shares there are.
        uniform = np.random.Generator(np.random.PCG64([seed, _CROPS, index])).random((batch_size, 3))[share]
        images = cut_crops(dataset.images, rows, uniform, crop_size=crop_size)
        return {"image": images, "mos": dataset.mos[rows], "weight": weights}

    # An element is a group, not a meta step: of a hundred groups, two meta steps a core would fill the memory.
    return grain.MapDataset.range(sys.maxsize // groups * groups).map(make)


def _feed(batches: grain.MapDataset, groups: int, *, start_step: int, threads: int) -> Iterator[Batch]:
    """The batches of meta steps start_step, start_step + 1, ..., divided among the devices, made ahead by threads."""
    iterator = prefetch(batches, start_step * groups, threads=threads)
    try:
        while True:
            made = list(itertools.islice(iterator, groups))
            yield sampling.shard({name: np.stack([group[name] for group in made]) for name in made[0]})
    finally:
        iterator.close()  # its threads end with the loop that reads the feed
