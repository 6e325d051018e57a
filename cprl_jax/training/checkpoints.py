"""Checkpoints of a run, with Orbax: the last one, to resume from exactly, and the best one, to evaluate.

A checkpoint directory appears under its final name only when all of it is written, so a run may be killed at any
moment, also during `save`: the checkpoint before it is still there.
"""

import contextlib
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from orbax.checkpoint import checkpoint_managers

from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError, for_people
from cprl_jax.runtime.files import user_path
from cprl_jax.training.state import Tree

_NO_METRIC = -math.inf


class Checkpoints:
    """The checkpoints in one directory: the latest, and the one with the highest metric (which may be the same).

    Use it as a context manager. In a run of several processes, every process makes the same calls, and the directory
    must be one that all of them see.

    Args:
      directory: made if it is missing; holds nothing else.
      read_only: for reading beside a run that may still be going on: nothing is made, removed or written.

    Raises:
      UserError: `read_only` and there is no such directory, a process of the run does not see it, or what is in it is
        damaged.
    """

    def __init__(self, directory: str | Path, *, read_only: bool = False):
        self.directory = user_path(directory, field="the checkpoint directory").resolve()
        self._read_only = read_only
        if not read_only and parallel.is_main_process():
            self.directory.mkdir(parents=True, exist_ok=True)
        parallel.barrier("checkpoint directory made")
        if not self.directory.is_dir():
            raise UserError(
                f"there is no checkpoint directory {self.directory}; train first, or give the folder of a run that was"
                if read_only
                else f"process {parallel.process_index()} does not see {self.directory}, which process 0 made; give a "
                "--workdir on a file system that all machines of the run share"
            )
        options = ocp.CheckpointManagerOptions(
            create=False,
            enable_async_checkpointing=False,
            # What a killed run left half-written. A reader leaves it alone: it may belong to a run that is going on.
            cleanup_tmp_directories=not read_only,
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(
                [
                    checkpoint_managers.LatestN(1),
                    checkpoint_managers.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False),
                ]
            ),
            best_fn=_metric,  # the policy makes it superfluous, but without it Orbax does not write the metrics
        )
        with _reading(self.directory, "delete the damaged one in it, or all of them to train again"):
            self._manager = ocp.CheckpointManager(self.directory, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception) -> None:
        self._manager.close()

    def save(self, step: int, state: Tree, metric: float | None = None) -> None:
        """Writes a checkpoint, then removes those that are neither the latest nor the best any more.

        Args:
          step: the number of training steps that led to `state`; larger than any saved before.
          state: a pytree of arrays (JAX, NumPy, Python numbers), the same on every process.
          metric: this state's on the validation part, higher is better; None (or NaN) where it was not measured.

        Raises:
          ValueError: opened with `read_only`, or `step` is not larger than the latest.
        """
        latest = self.latest_step()
        if self._read_only:
            raise ValueError(f"the checkpoints in {self.directory} were opened with read_only=True; open them without")
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} cannot be saved after step {latest}; the next must be larger")
        leaves = _named_leaves(state)
        # Orbax refuses empty arrays; the layout describes them fully.
        arrays = {name: np.asarray(leaf) for name, leaf in leaves.items() if leaf.size}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                # Nested by name, the checkpoint reads well with Orbax alone.
                state=ocp.args.PyTreeSave(unflatten_dict(arrays, sep="/")),
                metadata=ocp.args.JsonSave({"layout": _layout(leaves), "checksums": _checksums(arrays)}),
            ),
            metrics={"metric": _NO_METRIC if metric is None or math.isnan(metric) else float(metric)},
        )

    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, None if there is none yet."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """The step of the checkpoint with the highest metric (the newest of equals), None if none has a metric."""
        metrics = {}
        for step in sorted(self._manager.all_steps()):
            with self._reading_step(step):
                metrics[step] = _metric(self._manager.metrics(step))
        best = max(metrics, key=lambda step: (metrics[step], step), default=None)
        return None if best is None or metrics[best] == _NO_METRIC else best

    def restore(self, step: int, template: Tree, *, partial: bool = False) -> Tree:
        """Reads a checkpoint.

        Args:
          step: `latest_step()` or `best_step()`.
          template: a pytree like the one saved, of arrays or `jax.ShapeDtypeStruct`s.
          partial: accept a template that names only a part of the saved state, such as `{'params': ...}`.

        Returns:
          The state, bit for bit as it was saved, on every device of this process.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or its arrays differ in name, shape or dtype from the
            template's. The first difference is named.
        """
        kept = sorted(self._manager.all_steps())
        if step not in kept:
            there = " and ".join(map(str, kept)) or "none yet"
            raise UserError(f"{self.directory} has no checkpoint of step {step}; there is {there}")
        metadata_args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
        with self._reading_step(step):
            metadata = self._manager.restore(step, args=metadata_args)["metadata"]
            layout, checksums = metadata["layout"], metadata.get("checksums", {})  # none in those of earlier versions
        leaves = _named_leaves(template)
        wanted = _layout(leaves)
        for name in wanted if partial else wanted | layout:
            if layout.get(name) != wanted.get(name):
                raise UserError(
                    f"the checkpoint {self.directory / str(step)} has {_described(name, layout)}, but this "
                    f"configuration needs {_described(name, wanted)}; use the configuration that the run was started "
                    "with, or another --workdir"
                )
        arrays = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in leaves.items() if not leaf.size}
        if stored := [name for name in leaves if name not in arrays]:
            placeholders = unflatten_dict(dict.fromkeys(stored, np.zeros((), np.int8)), sep="/")
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), placeholders)
            state_args = ocp.args.PyTreeRestore(item=placeholders, restore_args=restore_args, partial_restore=True)
            with self._reading_step(step):
                tree = self._manager.restore(step, args=ocp.args.Composite(state=state_args))["state"]
                read = flatten_dict(tree, sep="/")
                if wrong := [name for name, sum in _checksums(read).items() if checksums.get(name, sum) != sum]:
                    raise ValueError(f"{wrong[0]} has other values than were written")
            arrays |= read
        restored = parallel.replicate([arrays[name] for name in leaves])
        return jax.tree.unflatten(jax.tree.structure(template), restored)

    def _reading_step(self, step: int):
        """Where a checkpoint is read: what is wrong with it, and what may be done, become a UserError."""
        if step == self.latest_step():
            remedy = "delete it: the training then goes on from the one before it, or begins again"
        else:  # the training is done, and would not make this one again
            remedy = (
                "judge the last one, --config.evaluation.checkpoint=last --config.job=evaluate, or delete "
                f"{self.directory} to train again from the beginning"
            )
        return _reading(self.directory / str(step), remedy)


@contextlib.contextmanager
def _reading(path: Path, remedy: str) -> Iterator[None]:
    """Turns whatever a damaged checkpoint makes Orbax raise into a UserError that names it."""
    try:
        yield
    except Exception as error:  # of JSON, TensorStore, zstd: they have no common class
        if isinstance(error, FileNotFoundError):
            innocent = not path.exists()  # a training beside this process has removed it
        else:
            innocent = isinstance(error, MemoryError) or for_people(error) or parallel.lost_peer_message(error)
        if innocent:
            raise
        reason = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])[:120]
        raise UserError(f"the checkpoint {path} is damaged ({reason}); put back a copy, or {remedy}") from None


def _metric(metrics: dict[str, float] | None) -> float:
    return _NO_METRIC if metrics is None else float(metrics["metric"])


def _named_leaves(tree: Tree) -> dict[str, Any]:
    """The leaves as arrays, in the order of `jax.tree.leaves`, by their path: 'params/backbone/conv/kernel'."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    leaves = {}
    for path, leaf in paths:
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "state"
        leaves[name] = leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)  # Python numbers
    if len(leaves) < len(paths):
        raise ValueError("two leaves of the state have the same path; give the fields of its containers distinct names")
    return leaves


def _layout(leaves: dict[str, Any]) -> dict[str, list]:
    """Dtype and shape of each leaf, as JSON."""
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in leaves.items()}


def _checksums(arrays: dict[str, np.ndarray]) -> dict[str, int]:
    """CRC-32 of each array's bytes: the store itself keeps none, and a changed bit would become a weight."""
    return {name: zlib.crc32(np.ascontiguousarray(array).tobytes()) for name, array in arrays.items()}


def _described(name: str, layout: dict[str, list]) -> str:
    if name not in layout:
        return f"no {name}"
    dtype, shape = layout[name]
    return f"{name} as {dtype}[{','.join(map(str, shape))}]"
