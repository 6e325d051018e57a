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
import optax

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.pipeline import Batch, cut_crops, prefetch
from cprl_jax.experiments.causal_iqa import sampling
from cprl_jax.experiments.causal_iqa.division import Division, divide
from cprl_jax.experiments.causal_iqa.learner import Learner
from cprl_jax.experiments.causal_iqa.updates import METRICS, UPDATES, compile_step, first_state
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.loop import fit
from cprl_jax.training.optimizers import two_rates
from cprl_jax.training.setup import create_model
from cprl_jax.training.state import evaluation_variables

ADVICE = "Lower config.causal_iqa.backbone_learning_rate, head_learning_rate or meta_rate; start in a new --workdir."
_CROPS = 16  # keeps the random numbers of crops apart from those of `sampling`


class Plan(NamedTuple):
    """Meta steps of a training, and from one decay of the learning rates to the next."""

    steps: int
    decay_steps: int


def make_plan(config: ml_collections.ConfigDict, division: Division) -> Plan:
    """The plan of config.causal_iqa, of which `meta_steps` goes before `epochs`.

    An epoch sees as many images as the division has, a meta step `batch_size` images for each of its subsets.
    """
    options = config.causal_iqa
    epoch = division.sizes.sum() / (len(division.names) * options.batch_size)
    steps = options.meta_steps or max(1, round(options.epochs * epoch))
    return Plan(steps=steps, decay_steps=max(1, round(options.decay_epochs * epoch)))


def make_learner(config: ml_collections.ConfigDict, plan: Plan) -> Learner:
    """Network, optimisers and loss of config.causal_iqa, for a step that is mapped over all devices.

    Dropout is a function of config.seed and the step, in trainings of other seeds as well: they share their programs,
    and differ in their start and their batches.
    """
    options = config.causal_iqa
    if options.meta_update == "adam":
        meta = optax.adam(options.meta_rate, b2=options.meta_beta2)
    else:
        meta = optax.sgd(options.meta_rate) if options.meta_rate < 1 else None
    rates = {"backbone": options.backbone_learning_rate, "head": options.head_learning_rate}
    return Learner(
        create_model(config, "plain", axis_name=parallel.AXIS),
        two_rates(options.inner_optimizer, **rates, b2=options.beta2),
        meta,
        loss=options.loss,
        seed=config.seed,
        inner_state=options.inner_state,
        batch_norm=options.batch_norm,
        axis_name=parallel.AXIS,
        schedule=lambda step: jnp.float32(options.decay) ** (step // plan.decay_steps),
    )


class Trainer:
    """Trains with one configuration; raises UserError for batches that the devices cannot share.

    Each update is compiled once for a number of subsets, whatever data, division and seed it gets. (On a CPU, where
    `updates.compile_step` loops over the subsets outside of the program, the number matters only to 'cip' and to the
    pass for running averages.)
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
        (MetaIQA takes batches in pairs: one more where the subsets are odd in number. Its tasks are the distortions.)

        Args:
          update: one of `UPDATES`.
          dataset: the data set that was divided.
          division: its images of subset -1 are not used.
          seed: determines the batches and crops.
          variables: those before training.
          folder: as for `training.loop.fit`.

        Returns:
          the variables of theta after the last meta step, and in the main process a row of `step` and `updates.METRICS`
          for each meta step.

        Raises:
          TrainingDiverged: naming the meta step, and what was not finite.
        """
        options, groups = self._config.causal_iqa, len(division.names)
        if update == "metaiqa":
            groups += groups % 2
            used, smallest = np.flatnonzero(division.subsets >= 0), options.smallest_subset
            soft = division.responsibilities
            division = divide(dataset.distortions, soft, content=False, rows=used, smallest=smallest)
        sizes = {"groups": groups, "batch_size": options.batch_size, "crop_size": self._config.train.crop_size}
        batches = group_batches(dataset, division, update, **sizes, seed=seed)
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

    Crops of `crop_size` pixels a side are placed at random and mirrored with probability one half, as in
    `pipeline.training_batches`; for the other arguments see `sampling.draw`. An element depends on the arguments and
    its position alone.

    Returns:
      this process's share of the batches: `{'image': uint8 [share, crop_size, crop_size, 3], 'mos': float32 [share],
      'weight': float32 [share]}` with share = batch_size / processes.
    """
    size, index = batch_size // parallel.process_count(), parallel.process_index()
    share = slice(index * size, (index + 1) * size)

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
