"""Which images each meta step sees: a pure function of the seed and the step, from wherever a run resumes."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from cprl_jax.experiments.causal_iqa.division import Division
from cprl_jax.runtime import parallel

_ORDER, _MEMBERS, _TASKS, _HALVES, _ALL = range(5)  # keep the streams of random numbers apart

SUPPORT_SHARE = 0.8  # as in MetaIQA's published code


def draw(
    update: str, division: Division, *, batch_size: int, seed: int, step: int, groups: int
) -> tuple[Int32[np.ndarray, "groups batch"], Float32[np.ndarray, "groups batch"]]:
    """The rows of the images of one meta step, and their weights for Eq. 6.

    'cis', 'cip': a group for each subset, shuffled every step. A subset's images come in epochs, each shuffled anew; a
    batch that the end of an epoch leaves unfilled goes on with the next one, so that in a subset smaller than the batch
    every image occurs equally often, give or take one. Weights are the division's.

    'metaiqa': `groups` / 2 tasks, each of one subset (for MetaIQA itself, of a division without content) with its
    images divided at random into support (80 %) and query images, a group each, repeated where there are too few;
    tasks come in epochs. Weights are 1.

    'erm': `groups` groups of images of any subset, in epochs over all of them. Weights are 1.

    Args:
      update: 'cis', 'cip', 'metaiqa' or 'erm'.
      division: its images of subset -1 are never drawn.
      batch_size: images in a group, over all devices and processes.
      seed: non-negative integer.
      step: number of the meta step, from 0.
      groups: the number of groups; for 'cis' and 'cip' that of the subsets.

    Returns:
      rows of the data set that was divided, and weights.

    Raises:
      ValueError: an unknown update, or a number of groups that it cannot have.
    """
    members = [np.flatnonzero(division.subsets == subset) for subset in range(len(division.names))]
    if update in ("cis", "cip"):
        if groups != len(members):
            raise ValueError(f"groups={groups}; {update} takes one for each of the {len(members)} subsets")
        order = _generator(seed, _ORDER, step).permutation(len(members))
        positions = step * batch_size + np.arange(batch_size)
        rows = np.stack([_in_epochs(members[subset], positions, seed, _MEMBERS, int(subset)) for subset in order])
        return rows.astype(np.int32), division.weights[rows]
    if update == "metaiqa":
        if groups % 2:
            raise ValueError(f"groups={groups} must be even: a support and a query batch a task")
        tasks = _in_epochs(np.arange(len(members)), step * (groups // 2) + np.arange(groups // 2), seed, _TASKS)
        halves = []
        for place, task in enumerate(tasks):
            shuffled = _generator(seed, _HALVES, step, place).permutation(members[task])
            support = max(1, min(round(SUPPORT_SHARE * len(shuffled)), len(shuffled) - 1))
            query = shuffled[min(support, len(shuffled) - 1) :]  # a single image is both
            halves += [np.resize(shuffled[:support], batch_size), np.resize(query, batch_size)]
        rows = np.stack(halves)
    elif update == "erm":
        positions = step * groups * batch_size + np.arange(groups * batch_size)
        rows = _in_epochs(np.flatnonzero(division.subsets >= 0), positions, seed, _ALL).reshape(groups, batch_size)
    else:
        raise ValueError(f"update {update!r} is unknown; allowed: cis, cip, metaiqa, erm")
    return rows.astype(np.int32), np.ones(rows.shape, np.float32)


def shard(batch: Any) -> Any:
    """Divides each group's batch among the devices: [groups, batch, ...] -> [devices, groups, batch / devices, ...].

    NumPy arrays are not copied. Raises ValueError for a batch that does not divide by the number of devices.
    """
    divided = parallel.shard(jax.tree.map(lambda values: values.swapaxes(0, 1), batch))
    return jax.tree.map(lambda values: values.swapaxes(1, 2), divided)


def _in_epochs(items: np.ndarray, positions: np.ndarray, *stream: int) -> np.ndarray:
    """The items at these positions of an endless sequence of epochs, each a permutation of the items."""
    epochs, places = np.divmod(positions, len(items))
    return np.concatenate(
        [_generator(*stream, epoch).permutation(items)[places[epochs == epoch]] for epoch in np.unique(epochs).tolist()]
    )


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(numbers))
