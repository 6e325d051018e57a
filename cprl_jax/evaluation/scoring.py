"""Scores of images by a trained model, clean and attacked, on every device of every process."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8
from tqdm import tqdm

from cprl_jax import attacks, fidelity, models
from cprl_jax.attacks.gradients import as_constant, evaluate
from cprl_jax.evaluation.table_attacks import Batch, Condition
from cprl_jax.runtime import parallel
from cprl_jax.runtime.cells import Parts

_BLOCK_BYTES = 2**29  # size of the crops that are cut out at once

Crops = UInt8[np.ndarray, "images crops size size 3"]
"""Or what is indexed like it by rows, and has its `shape`: `cprl_jax.data.crops.Crops`."""


class Scorer:
    """Scores and attacks crops of images in batches of one shape, in float32.

    Results do not depend on the batch size or on the number of devices, but for rounding. Images are cut into crops
    block by block, 0.5 GB at a time.

    Args:
      module: the network.
      batch_size: crops at once, a device.
      mid: the score that divides good images from bad ones, for attacks that push scores to the other side.
      seed: determines random starts and the like.
    """

    def __init__(self, module: nn.Module, *, batch_size: int, mid: float = 50.0, seed: int = 0):
        self._batch_size, self._mid, self._seed = batch_size, mid, seed
        self._score_fn = functools.partial(models.score_fn, module)
        self._score = _on_devices(self._clean)
        self._attacks: dict[str, Callable] = {}

    def scores(self, variables: Mapping, crops: Crops, *, progress: str = "") -> Float[np.ndarray, " images"]:
        """Clean scores: the mean over an image's crops.

        Args:
          variables: the network's parameters and batch statistics.
          crops: uint8 RGB.
          progress: name of the progress bar; '' for none.
        """
        return self._by_blocks(self._score, variables, crops, {}, progress)["scores"].mean(axis=1)

    def attack(
        self,
        variables: Mapping,
        crops: Crops,
        mos: Float[np.ndarray, " images"],
        condition: Condition,
        *,
        prepared: Any = (),
        rows: Int[np.ndarray, " chosen"] | None = None,
        keep_images: bool = False,
        parts: Parts | None = None,
        progress: str = "",
    ) -> dict[str, np.ndarray]:
        """Attacks every crop by itself.

        Args:
          variables, crops: as for `scores`.
          mos: labels of the images, 0..100.
          condition: the attack, its radius and its settings.
          prepared: what the attack's `prepare` returned.
          rows: the images to attack; None for all.
          keep_images: also return the attacked crops.
          parts: keeps batches that took long, for a run that is killed to go on after them; stamped with all that the
            attack depends on but rows and crops.
          progress: name of the progress bar; '' for none.

        Returns:
          For every attacked image, means over its crops of `before` and `after` (scores), `after_8bit` (score once the
          attacked crop is rounded to 8 bits inside the radius: that of a saved file), `ssim`, `zero_gradient_fraction`
          and what else the attack returns; `max_change`, the largest over its crops, in [0, 1] pixel units; and
          `images` [images, crops, size, size, 3].
        """
        program = f"{condition.label} {sorted(condition.settings.items())}"
        if program not in self._attacks:  # a new function would be compiled anew on several devices
            # Not under jit here: the attacks compile their step, and loop over it in the way that suits the device.
            any_radius = dataclasses.replace(condition, radius=0.0)  # an attack reads that of the batch
            self._attacks[program] = _on_devices(functools.partial(self._attacked, any_radius))
        radius = np.full(len(mos), condition.radius / 255.0, np.float32)
        per_image = {"mos": np.asarray(mos, np.float32), "radius": radius}
        without = () if keep_images else ("images",)
        tree = variables, prepared
        options = {"without": without, "rows": rows, "kept": parts}
        result = self._by_blocks(self._attacks[program], tree, crops, per_image, progress, **options)
        largest = result.pop("max_change").max(axis=1)
        result.setdefault("zero_gradient_fraction", np.full_like(result["before"], np.nan))  # none was asked for
        kept = {"images": result.pop("images")} if keep_images else {}
        return {name: values.mean(axis=1) for name, values in result.items()} | {"max_change": largest} | kept

    def _clean(self, variables, batch):
        return {"scores": evaluate(as_constant(self._score_fn(variables)), batch["image"])}

    def _attacked(self, condition: Condition, tree, batch):
        variables, prepared = tree
        score_fn, images = self._score_fn(variables), batch["image"]
        keys = _keys(self._seed, batch["row"], batch["crop"])
        target = Batch(images=images, mos=batch["mos"], radius=batch["radius"], keys=keys, mid=self._mid)
        result = condition.attack.run(score_fn, target, condition, prepared)
        limit = batch["radius"] if condition.attack.has_radius else jnp.ones_like(batch["radius"])
        rounded = attacks.round_to_8_bit(result.images, images, limit)
        return {
            **{name: value for name, value in result._asdict().items() if value is not None},
            "after_8bit": evaluate(as_constant(score_fn), rounded),
            "ssim": fidelity.ssim(result.images, images),
        }

    def _by_blocks(
        self,
        function: Callable,
        tree,
        crops: Crops,
        per_image: Mapping[str, np.ndarray],
        progress: str,
        *,
        without=(),
        rows: np.ndarray | None = None,
        kept: Parts | None = None,
    ) -> dict[str, np.ndarray]:
        """Applies a function to all crops of all images, or of those in `rows`; its outputs, [images, crops, ...].

        The function gets `tree` and batches of `image` (a crop in [0, 1]), `row` and `crop` (the crop's place in
        `crops`) and what there is `per_image`. `kept` keeps what it returned for a batch, besides the arrays in
        `without`.
        """
        count, parts = crops.shape[1], []
        chosen = np.arange(crops.shape[0]) if rows is None else rows
        batches = math.ceil(len(chosen) * count / (self._batch_size * parallel.device_count()))
        hidden = not progress or not parallel.is_main_process()
        with tqdm(total=batches, desc=progress, unit="batch", dynamic_ncols=True, leave=False, disable=hidden) as bar:
            at_once = max(1, _BLOCK_BYTES // math.prod(crops.shape[1:]))  # images
            for start in range(0, len(chosen), at_once):
                rows = chosen[start : start + at_once]
                cut = crops[rows]
                arrays = {name: np.repeat(values[rows], count) for name, values in per_image.items()}
                arrays |= {"row": np.repeat(rows, count), "crop": np.tile(np.arange(count), len(rows))}
                arrays["image"] = cut.reshape(-1, *cut.shape[2:])
                out = self._run(function, tree, arrays, bar, without, kept)
                parts.append({name: values.reshape(-1, count, *values.shape[1:]) for name, values in out.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _run(self, function: Callable, tree, arrays: Mapping[str, np.ndarray], bar: tqdm, without, kept: Parts | None):
        """Applies a function to this process's share of the rows, batch by batch, and gathers all rows."""
        total = len(arrays["image"])
        processes, index = parallel.process_count(), parallel.process_index()
        share = math.ceil(total / processes)  # the same number of batches everywhere
        rows = np.minimum(np.arange(share * index, share * (index + 1)), total - 1)
        at_once = self._batch_size * parallel.local_device_count()
        parts: dict[str, list] = {}
        starts = range(0, share, at_once)

        def run(start: int) -> dict[str, np.ndarray]:
            padded = rows[np.minimum(np.arange(start, start + at_once), share - 1)]
            batch = {name: values[padded] for name, values in arrays.items()}
            batch["image"] = batch["image"] / np.float32(255)

            def compute():
                out = function(tree, batch)
                return {name: np.asarray(values) for name, values in out.items() if name not in without}

            place = [batch["row"], batch["crop"]]
            out = kept.compute(place, compute) if kept else compute()
            return {name: values[: share - start] for name, values in out.items()}

        # Where one program leaves cores of a CPU idle, several share them. The first batch, which compiles, is alone.
        with ThreadPoolExecutor(parallel.programs_at_once()) as pool:
            for out in itertools.chain([run(starts[0])], pool.map(run, starts[1:])):
                for name, values in out.items():
                    parts.setdefault(name, []).append(values)
                bar.update()
        return {name: parallel.gather(np.concatenate(values))[:total] for name, values in parts.items()}


@jax.jit
def _keys(seed, rows: Array, crops: Array) -> Key[Array, " batch"]:
    fold = jax.vmap(jax.random.fold_in)
    return fold(jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), rows), crops)


def _on_devices(function: Callable) -> Callable:
    """`function(tree, batch)` on all local devices; called as it is where there is one device."""
    if parallel.local_device_count() == 1:
        return function
    mapped = parallel.map_batch(function)
    return lambda tree, batch: parallel.unshard(mapped(tree, parallel.shard(batch)))
