"""CIS, CIP, MetaIQA and plain training (ERM) as updates of parameters, optimiser states and batches.

Every method makes inner steps on batches of subsets, which move a copy phi of the parameters theta, and then one meta
step, which moves theta towards phi. In short:

    inner = optimizers.inner_optimizer(backbone_learning_rate=1e-4, head_learning_rate=1e-4)
    learner = Learner(module, inner, optimizers.interpolation(0.5), seed=0)
    state = create_state(variables, learner)
    step = compile_step(cis(learner), mapped=False)
    state, metrics = step(state, batch)

A batch is a mapping of arrays of all subsets, [groups, batch, ...]: `image` (uint8 RGB, or float in [0, 1]; of height,
width, 3), `mos` and `weight` (w of Eq. 6 of Causal-IQA, at least 0; 0 for padding; positive for at least one image of
each group, or the loss is NaN). The sizes are the same for all groups, so that one program serves all of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cprl_jax.experiments.causal_iqa.learner import Learner, in_line, running_averages, weighted_gradients
from cprl_jax.experiments.causal_iqa.optimizers import check, interpolation
from cprl_jax.runtime import parallel

Tree = Any
"""A pytree of arrays."""

LOOPS = ("auto", "host", "device")


@flax.struct.dataclass
class MetaState:
    """Everything that a run needs to go on from a meta step (random draws are functions of the seed and the step)."""

    step: Int[Array, ""]
    params: Tree  # theta
    batch_stats: Tree
    inner_optimizer_state: Tree
    meta_optimizer_state: Tree


@flax.struct.dataclass
class Inner:
    """What changes from one inner step to the next within a meta step."""

    index: Int[Array, ""]  # how many inner steps were made
    params: Tree  # phi
    optimizer_state: Tree
    displacement: Tree  # sum over finished tasks of phi - theta; None where there is one task alone
    batch_stats: Tree  # running averages that the inner steps start from
    statistics: Tree  # sum over inner steps of their change
    loss: Float[Array, ""]  # sums over inner steps
    gradient_norm: Float[Array, ""]


class Update(NamedTuple):
    """A meta step of one method in three pure functions of one device; `compile_step` joins them.

    begin(state, batch) -> inner; step(state, inner, batch) -> inner; finish(state, inner) -> (state, metrics).
    `begin` takes the batch of all groups. Sequential: `step` takes that of one group after the other, [batch, ...];
    else it takes all, once.
    """

    begin: Callable[[MetaState, Mapping], Inner]
    step: Callable[[MetaState, Inner, Mapping], Inner]
    finish: Callable[[MetaState, Inner], tuple[MetaState, dict]]
    sequential: bool


# -------------------------------------------------------------------------------------------------- methods


def cis(learner: Learner) -> Update:
    """Causal-IQA-S (Algorithm 1): an inner step on each group in turn, then a meta step.

    Without content, with distortion levels or with mixed distortions it is the same update of other subsets.
    """
    return _update(learner, _alone, sequential=True)


def cip(learner: Learner) -> Update:
    """Causal-IQA-P (Algorithm 2): one inner step on the mean of the groups' losses, then a meta step.

    All groups go through the network as one batch.
    """
    return _update(learner, lambda batch: batch, sequential=False)


def metaiqa(learner: Learner) -> Update:
    """MetaIQA (Zhu et al., CVPR 2020): tasks that each start from theta, then a meta step along the mean of their ways.

    Groups 2 i and 2 i + 1 are the support and the query batch of task i: an inner step on the one, then on the other,
    without second-order terms.
    """
    return _update(learner, _alone, sequential=True, task_length=2)


def erm(learner: Learner) -> Update:
    """Empirical risk minimisation (Eq. 4): an optimiser step on the weighted mean over all images, no meta step."""
    learner = dataclasses.replace(learner, meta=interpolation(1.0), inner_state="kept")
    return _update(learner, _as_one_group, sequential=False)


METHODS = {"cis": cis, "cip": cip, "metaiqa": metaiqa, "erm": erm}


# -------------------------------------------------------------------------------------------------- their state


def create_state(variables: Mapping, learner: Learner) -> MetaState:
    """The state before the first meta step."""
    params = variables["params"]
    return MetaState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        inner_optimizer_state=learner.inner.init(params),
        meta_optimizer_state=learner.meta.init(params),
    )


def evaluation_variables(state: MetaState) -> dict:
    """The variables that are validated, saved for scoring and fine-tuned: theta, not phi."""
    return {"params": state.params, "batch_stats": state.batch_stats}


# -------------------------------------------------------------------------------------------------- programs


def in_one_program(update: Update) -> Callable[[MetaState, Mapping], tuple[MetaState, dict]]:
    """`(state, batch) -> (state, metrics)` of one device, with a device loop over the groups; to be compiled."""

    def step(state: MetaState, batch: Mapping) -> tuple[MetaState, dict]:
        inner = update.begin(state, batch)
        if update.sequential:
            inner, _ = jax.lax.scan(lambda inner, group: (update.step(state, inner, group), None), inner, dict(batch))
        else:
            inner = update.step(state, inner, batch)
        return update.finish(state, inner)

    return step


def compile_step(
    update: Update, *, mapped: bool = True, loop: str = "auto"
) -> Callable[[MetaState, Mapping], tuple[MetaState, dict]]:
    """Compiles a meta step.

    XLA runs the gradient of a convolution's weights inside a device loop on a CPU 11 to 56 times slower than outside
    of one. There, the loop over groups stays in Python around one compiled inner step; the numbers are the same.

    Args:
      update: of `cis`, `cip`, `metaiqa` or `erm`.
      mapped: run on every device of every process (`parallel.map_step`; the learner's axis_name is `parallel.AXIS`,
        the state comes from `parallel.replicate` and the batch from `sampling.shard`), or on one, without a named axis.
      loop: over the groups: 'host', 'device', or 'auto': 'host' on a CPU.

    Returns:
      `(state, batch) -> (state, metrics)`. Metrics are scalars: `loss` and `gradient_norm`, means over the inner steps;
      `displacement`, the norm of phi - theta. Mapped and with a device loop, the memory of `state` is reused.

    Raises:
      ValueError: unknown `loop`.
    """
    check("loop", loop, LOOPS)
    if not update.sequential or loop == "device" or (loop == "auto" and jax.default_backend() != "cpu"):
        return (parallel.map_step if mapped else jax.jit)(in_one_program(update))

    def compiled(function):
        return parallel.map_step(function, donate=False) if mapped else jax.jit(function)

    begin = compiled(lambda state, batch: (update.begin(state, batch), {}))
    advance = compiled(lambda both, group: (update.step(*both, group), {}))
    # `weight` because a mapped function must have something that is divided among the devices.
    finish = compiled(lambda both, weight: update.finish(*both))

    def step(state: MetaState, batch: Mapping) -> tuple[MetaState, dict]:
        inner, _ = begin(state, batch)
        for index in range(batch["weight"].shape[1 if mapped else 0]):
            group = {name: values[:, index] if mapped else values[index] for name, values in batch.items()}
            inner, _ = advance((state, inner), group)
        return finish((state, inner), batch["weight"])

    return step


# -------------------------------------------------------------------------------------------------- internals


def _alone(group: Mapping) -> dict:
    """One group's batch, as a batch of one group."""
    return {name: values[None] for name, values in group.items()}


def _as_one_group(batch: Mapping) -> dict:
    return {name: in_line(values)[None] for name, values in batch.items()}


def _update(
    learner: Learner, grouped: Callable[[Mapping], Mapping], *, sequential: bool, task_length: int = 0
) -> Update:
    """Inner steps on `grouped(batch)` ([groups, batch, ...]) and a meta step.

    phi starts from theta once (`task_length` 0) or every `task_length` inner steps.
    """
    reset = learner.inner_state == "reset"

    def begin(state: MetaState, batch: Mapping) -> Inner:
        zeros = jax.tree.map(jnp.zeros_like, (state.params, state.batch_stats))
        return Inner(
            index=jnp.zeros((), jnp.int32),
            params=state.params,
            optimizer_state=learner.inner.init(state.params) if reset else state.inner_optimizer_state,
            displacement=zeros[0] if task_length else None,
            batch_stats=running_averages(learner, state.params, state.batch_stats, batch, step=state.step),
            statistics=zeros[1],
            loss=jnp.zeros((), jnp.float32),
            gradient_norm=jnp.zeros((), jnp.float32),
        )

    def step(state: MetaState, inner: Inner, batch: Mapping) -> Inner:
        params, optimizer_state = inner.params, inner.optimizer_state
        if task_length:
            starts = inner.index % task_length == 0
            params = _where(starts, state.params, params)
            if reset:
                optimizer_state = _where(starts, learner.inner.init(state.params), optimizer_state)
        loss, batch_stats, gradients = weighted_gradients(
            learner, params, inner.batch_stats, grouped(batch), step=state.step, index=inner.index
        )
        updates, optimizer_state = learner.inner.update(gradients, optimizer_state, params)
        if learner.schedule is not None:
            factor = learner.schedule(state.step)
            updates = jax.tree.map(lambda update: (factor * update).astype(update.dtype), updates)
        params = optax.apply_updates(params, updates)
        displacement = inner.displacement
        if task_length:
            ends = (inner.index + 1) % task_length == 0
            moved = jax.tree.map(lambda theta, phi: jnp.where(ends, phi - theta, 0), state.params, params)
            displacement = jax.tree.map(jnp.add, displacement, moved)
        # Sums of changes: what never changes (the constants of an input normalisation) stays as it is, bit for bit.
        statistics = jax.tree.map(
            lambda total, new, old: total + (new - old), inner.statistics, batch_stats, inner.batch_stats
        )
        return Inner(
            index=inner.index + 1,
            params=params,
            optimizer_state=optimizer_state,
            displacement=displacement,
            batch_stats=inner.batch_stats,
            statistics=statistics,
            loss=inner.loss + loss.astype(jnp.float32),
            gradient_norm=inner.gradient_norm + optax.tree.norm(gradients).astype(jnp.float32),
        )

    def finish(state: MetaState, inner: Inner) -> tuple[MetaState, dict]:
        adapted = inner.params
        if task_length:
            tasks = inner.index // task_length
            adapted = jax.tree.map(lambda theta, total: theta + total / tasks, state.params, inner.displacement)
        params, meta_optimizer_state = learner.meta.update(state.params, adapted, state.meta_optimizer_state)
        moved = jax.tree.map(jnp.subtract, adapted, state.params)
        metrics = {
            "loss": inner.loss / inner.index,
            "gradient_norm": inner.gradient_norm / inner.index,
            "displacement": optax.tree.norm(moved).astype(jnp.float32),
        }
        new = MetaState(
            step=state.step + 1,
            params=params,
            batch_stats=jax.tree.map(lambda old, total: old + total / inner.index, inner.batch_stats, inner.statistics),
            inner_optimizer_state=state.inner_optimizer_state if reset else inner.optimizer_state,
            meta_optimizer_state=meta_optimizer_state,
        )
        return new, metrics

    return Update(begin, step, finish, sequential)


def _where(condition: Array, first: Tree, second: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), first, second)
