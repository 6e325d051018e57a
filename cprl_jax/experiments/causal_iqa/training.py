"""Training with one of the updates of Causal-IQA: from the start weights and a division to the parameters theta.

A training whose checkpoints are kept may be killed at any moment: the same call goes on from the last checkpoint and
ends with the same parameters and metrics, bit for bit (on the same number of devices).
"""

import dataclasses
import functools
import itertools
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from tqdm import tqdm

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.pipeline import Batch, cut_crops, prefetch
from cprl_jax.experiments.causal_iqa import sampling
from cprl_jax.experiments.causal_iqa.division import Division, divide
from cprl_jax.experiments.causal_iqa.learner import Learner
from cprl_jax.experiments.causal_iqa.optimizers import inner_optimizer, interpolation, pseudo_gradient_adam
from cprl_jax.experiments.causal_iqa.updates import METHODS, MetaState, Update, cis, compile_step, create_state
from cprl_jax.experiments.causal_iqa.updates import evaluation_variables as of_theta
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import TrainingDiverged, UserError
from cprl_jax.training.checkpoints import Checkpoints
from cprl_jax.training.loop import History, create_model, read_history
from cprl_jax.training.loop import start_variables as of_network

_CROPS = 16  # keeps the random numbers of crops apart from those of `sampling`


class Plan(NamedTuple):
    """How long a training is, in meta steps: all of it, and from one decay of the learning rates to the next."""

    steps: int
    decay_steps: int


class MetaHistory(History):
    """metrics.csv and TensorBoard, one row a meta step."""

    COLUMNS = ("step", "loss", "gradient_norm", "displacement")


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


def start_variables(config: ml_collections.ConfigDict, seed: int) -> dict:
    """The variables before training, as `train.start_variables` gives them; a warning where they are random.

    Raises:
      UserError: weights that cannot be read, or are those of another network.
    """
    variables = of_network(config, "plain", seed=seed)
    if not config.model.weights:
        logging.warning(
            "training starts from random weights (seed %d): no config.model.weights given. Expect a clearly lower "
            "accuracy than from weights trained on ImageNet, and content clusters of a network that has not seen any "
            "content.",
            seed,
        )
    return variables


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
    inner = inner_optimizer(
        options.inner_optimizer,
        backbone_learning_rate=options.backbone_learning_rate,
        head_learning_rate=options.head_learning_rate,
        b2=options.beta2,
    )
    return Learner(
        create_model(config, "plain", axis_name=parallel.AXIS),
        inner,
        meta,
        loss=options.loss,
        seed=config.seed,
        inner_state=options.inner_state,
        batch_norm=options.batch_norm,
        axis_name=parallel.AXIS,
        schedule=lambda step: jnp.float32(options.decay) ** (step // plan.decay_steps),
    )


def make_update(update: str, learner: Learner) -> Update:
    """The update of a name of `updates.METHODS`.

    'erm' makes an optimiser step on each group of its batch, as plain training does: as many as CIS makes inner steps.
    """
    if update == "erm":
        return cis(dataclasses.replace(learner, meta=interpolation(1.0), inner_state="kept"))
    return METHODS[update](learner)


class Trainer:
    """Trains with one configuration. Each update is compiled once, whatever data, division and seed it then gets.

    The programs depend on shapes alone: they are compiled again for another number of subsets (on a CPU, where
    `updates.compile_step` loops over the subsets outside of the program, that of 'cip' and the pass for running
    averages alone).

    Args:
      config: config.causal_iqa says how, config.model with which network, config.train.crop_size on which crops.
      plan: how long.

    Raises:
      UserError: batches that the devices cannot share, or an optimiser option out of its range.
    """

    def __init__(self, config: ml_collections.ConfigDict, plan: Plan):
        size, devices = config.causal_iqa.batch_size, parallel.device_count()
        if size % devices:
            raise UserError(
                f"config.causal_iqa.batch_size is {size}; it must be a multiple of {devices}, the number of devices"
            )
        self._config, self.plan = config, plan
        try:
            self._learner = make_learner(config, plan)
        except ValueError as error:  # of the optimisers
            raise UserError(f"config.causal_iqa: {error}") from error
        self._step = functools.cache(lambda update: compile_step(make_update(update, self._learner)))

    def train(
        self,
        update: str,
        dataset: QualityDataset,
        division: Division,
        *,
        seed: int,
        variables: dict,
        folder: Path | None = None,
    ) -> tuple[dict, list[dict]]:
        """Trains on the images that the division uses.

        All updates see as many images in a meta step: config.causal_iqa.batch_size for each subset of the division.
        (MetaIQA's are in pairs, so that it sees one batch more where the subsets are odd in number. Its tasks are the
        distortions.)

        Args:
          update: 'erm', 'metaiqa', 'cis' or 'cip'.
          dataset: that was divided.
          division: of the training images; the others are in subset -1.
          seed: of the batches and crops.
          variables: to start from, see `start_variables`.
          folder: receives checkpoints/, metrics.csv and tensorboard/; a training that stopped there goes on. None:
            nothing is kept.

        Returns:
          the variables of theta after the last meta step, and the metrics of every meta step (`step`, `loss`,
          `gradient_norm`, `displacement`; in the main process).

        Raises:
          TrainingDiverged: naming the meta step, and what was not finite.
        """
        options = self._config.causal_iqa
        groups = len(division.names)
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
        name = f"{update}, seed {seed}"
        if folder is None:
            rows: list[dict] = []
            state = create_state(variables, self._learner)
            state = self._loop(update, name, state, 0, batches, groups, note=rows.append)
            return jax.device_get(of_theta(state)), rows
        with Checkpoints(folder / "checkpoints") as checkpoints:
            done = checkpoints.latest_step() or 0
            if done:
                logging.info("%s: going on from meta step %d of %d", name, done, self.plan.steps)
                template = jax.eval_shape(lambda: create_state(variables, self._learner))
                state, _ = checkpoints.restore(done, template)
            else:
                state = create_state(variables, self._learner)
            if done < self.plan.steps:
                state = self._kept_loop(update, name, state, done, batches, groups, checkpoints, folder)
        return jax.device_get(of_theta(state)), read_history(folder)

    def _kept_loop(self, update, name, state, done, batches, groups, checkpoints, folder) -> MetaState:
        """The loop with its metrics and checkpoints on disk."""
        steps = self.plan.steps
        every = self._config.causal_iqa.evaluate_every or max(1, math.ceil(steps / 10))
        history = MetaHistory(folder, done) if parallel.is_main_process() else None
        images = groups * self._config.causal_iqa.batch_size
        started = time.monotonic()

        def note(row: dict) -> None:
            if history is not None:
                rate = (row["step"] - done) * images / (time.monotonic() - started)
                history.add(row["step"], {n: v for n, v in row.items() if n != "step"}, images_per_second=rate)

        def keep(step: int, state: MetaState) -> None:
            if history is not None:
                history.flush()
            checkpoints.save(step, state, {"update": update, "steps": steps})

        try:
            return self._loop(update, name, state, done, batches, groups, note=note, keep=keep, every=every)
        finally:
            if history is not None:
                history.close()

    def _loop(
        self,
        update: str,
        name: str,
        state: MetaState,
        done: int,
        batches: grain.MapDataset,
        groups: int,
        *,
        note: Callable[[dict], None],
        keep: Callable[[int, MetaState], None] | None = None,
        every: int = 0,
    ) -> MetaState:
        """Meta steps done + 1, ... to the last. `note` gets the metrics of each, `keep` some of the states."""
        steps, step_fn = self.plan.steps, self._step(update)
        state = parallel.replicate(state)
        pending: tuple[int, dict] | None = None  # metrics of the step before, read while the devices work on this one
        progress = tqdm(
            total=steps,
            initial=done,
            desc=f"train {name}",
            unit="meta step",
            dynamic_ncols=True,
            leave=keep is not None,
            disable=not parallel.is_main_process(),
        )

        def settle() -> None:
            nonlocal pending
            if pending is None:
                return
            step, values = pending[0], {key: float(value) for key, value in pending[1].items()}
            pending = None
            _check_finite(name, step, values)
            note({"step": step, **values})
            progress.set_postfix_str(f"loss {values['loss']:.3f}", refresh=False)

        with progress:
            for step, batch in zip(
                range(done + 1, steps + 1),
                _feed(batches, groups, start_step=done, threads=self._config.train.workers),
                strict=False,
            ):
                state, metrics = step_fn(state, sampling.shard(batch))
                settle()
                pending = (step, metrics)
                progress.update()
                if keep is not None and (step % every == 0 or step == steps):
                    settle()
                    keep(step, state)
            settle()
        return state


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
        own = {} if update in ("cis", "cip") else {"groups": groups}  # theirs are the subsets
        return sampling.draw(update, division, batch_size=batch_size, seed=seed, step=step, **own)

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
    """The batches of meta steps start_step, start_step + 1, ...: [groups, share, ...], made ahead by threads."""
    iterator = prefetch(batches, start_step * groups, threads=threads)
    try:
        while True:
            made = list(itertools.islice(iterator, groups))
            yield {name: np.stack([group[name] for group in made]) for name in made[0]}
    finally:
        iterator.close()  # its threads end with the loop that reads the feed


def _check_finite(name: str, step: int, values: dict[str, float]) -> None:
    wrong = [f"{key} = {value}" for key, value in values.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingDiverged(
            f"{name} diverged at meta step {step}: {', '.join(wrong)}. Lower config.causal_iqa.backbone_learning_rate, "
            "head_learning_rate or meta_rate, and start in a new --workdir."
        )
