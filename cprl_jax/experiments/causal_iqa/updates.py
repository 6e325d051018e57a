"""CIS, CIP, MetaIQA and ERM: each a meta step `(state, batch) -> (state, metrics)`, as `training.loop.fit` takes it.

A meta step makes inner steps on batches of subsets, which move a copy phi of the parameters theta, and then moves theta
towards phi:

    inner = two_rates("adam", backbone=1e-4, head=1e-4, b2=0.9999)
    learner = Learner(module, inner, optax.sgd(0.5), seed=0)
    state = first_state(variables, learner)
    step = compile_step(cis(learner), mapped=False)
    state, metrics = step(state, batch)

A batch is a mapping of arrays [groups, batch, ...]: `image` (RGB [..., height, width, 3], uint8 or float in [0, 1]),
`mos` and `weight` (w of Eq. 6 of Causal-IQA, at least 0; 0 for padding; positive for at least one image of each group,
or the loss is NaN).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from cprl_jax.experiments.causal_iqa.learner import Learner, check_choice, running_averages, weighted_gradients
from cprl_jax.runtime import parallel
from cprl_jax.runtime.parallel import Tree
from cprl_jax.training.loop import Step
from cprl_jax.training.state import TrainState, create_state

METRICS = ("loss", "gradient_norm", "displacement")  # means over the inner steps, and the norm of phi - theta


@flax.struct.dataclass
class Inner:
    """The state of the inner steps within a meta step."""

    index: Int[Array, ""]  # how many inner steps were made
    params: Tree  # phi
    optimizer_state: Tree
    displacement: Tree  # sum over finished tasks of phi - theta; None where there is one task alone
    batch_stats: Tree  # running averages that the inner steps start from
    statistics: Tree  # sum over inner steps of their change
    loss: Float[Array, ""]  # sums over inner steps
    gradient_norm: Float[Array, ""]


class Update(NamedTuple):
    """A meta step in three pure functions of one device, which `compile_step` joins.

    `begin` takes the batch of all groups. Sequential: `step` takes that of one group after the other, [batch, ...];
    else it takes all, once.
    """

    begin: Callable[[TrainState, Mapping], Inner]
    step: Callable[[TrainState, Inner, Mapping], Inner]
    finish: Callable[[TrainState, Inner], tuple[TrainState, dict]]
    sequential: bool


def cis(learner: Learner) -> Update:
    """Causal-IQA-S (Algorithm 1): an inner step on each group in turn, then a meta step."""
    return _update(learner, sequential=True)


def cip(learner: Learner) -> Update:
    """Causal-IQA-P (Algorithm 2): one inner step on the mean of the groups' losses, then a meta step.

    All groups pass through the network as one batch.
    """
    return _update(learner, sequential=False)


def metaiqa(learner: Learner) -> Update:
    """MetaIQA (Zhu et al., CVPR 2020): tasks that each start from theta, then a meta step along their mean phi - theta.

    Groups 2 i and 2 i + 1 are the support and the query batch of task i: an inner step on the one, then on the other,
    without second-order terms.
    """
    return _update(learner, sequential=True, task_length=2)


def erm(learner: Learner) -> Update:
    """Empirical risk minimisation (Eq. 4): plain training, an optimiser step on each group (a batch of any images).

    It is CIS without a meta step and with a kept optimiser state, so theta makes as many steps as phi does in CIS.
    """
    return cis(dataclasses.replace(learner, meta=None, inner_state="kept"))


UPDATES: Mapping[str, Callable[[Learner], Update]] = {"erm": erm, "metaiqa": metaiqa, "cis": cis, "cip": cip}


def first_state(variables: Mapping, learner: Learner) -> TrainState:
    """The state before the first meta step; its parameters are theta."""
    params = variables["params"]
    meta = () if learner.meta is None else learner.meta.init(params)
    return create_state(variables, {"inner": learner.inner.init(params), "meta": meta})


def compile_step(update: Update, *, mapped: bool = True, loop: str = "auto") -> Step:
    """Compiles a meta step; its metrics are the scalars of `METRICS`.

    XLA runs the gradient of a convolution's weights inside a device loop on a CPU 11 to 56 times slower than outside
    of one. There, the loop over groups stays in Python around one compiled inner step; the numbers are the same.

    Args:
      update: made by one of `UPDATES`.
      mapped: run on every device of every process (`parallel.map_step`; the learner's axis_name is `parallel.AXIS`,
        the state comes from `parallel.replicate` and the batch from `sampling.shard`), or on one, without a named axis.
      loop: where the loop over the groups is, 'host' or 'device'; 'auto' is 'host' on a CPU. Mapped and with a device
        loop, the memory of the state is reused.

    Raises:
      ValueError: an unknown `loop`.
    """
    check_choice("loop", loop, ("auto", "host", "device"))
    on_host = loop == "host" or (loop == "auto" and parallel.platform(mapped=mapped) == "cpu")
    if not update.sequential or not on_host:

        def one_program(state: TrainState, batch: Mapping) -> tuple[TrainState, dict]:
            inner = update.begin(state, batch)
            if not update.sequential:
                return update.finish(state, update.step(state, inner, batch))
            inner, _ = jax.lax.scan(lambda inner, group: (update.step(state, inner, group), None), inner, dict(batch))
            return update.finish(state, inner)

        return (parallel.map_step if mapped else jax.jit)(one_program)

    def compiled(function):
        return parallel.map_step(function, donate=False) if mapped else jax.jit(function)

    begin = compiled(lambda state, batch: (update.begin(state, batch), {}))
    advance = compiled(lambda both, group: (update.step(*both, group), {}))
    # `weight` because a mapped function must have something that is divided among the devices.
    finish = compiled(lambda both, weight: update.finish(*both))

    def step(state: TrainState, batch: Mapping) -> tuple[TrainState, dict]:
        inner, _ = begin(state, batch)
        for index in range(batch["weight"].shape[1 if mapped else 0]):
            group = {name: values[:, index] if mapped else values[index] for name, values in batch.items()}
            inner, _ = advance((state, inner), group)
        return finish((state, inner), batch["weight"])

    return step


def _update(learner: Learner, *, sequential: bool, task_length: int = 0) -> Update:
    """Inner steps on one group after the other, or on all at once, and a meta step.

    phi starts from theta once (`task_length` 0) or every `task_length` inner steps.
    """
    reset = learner.inner_state == "reset"

    def begin(state: TrainState, batch: Mapping) -> Inner:
        zeros = jax.tree.map(jnp.zeros_like, (state.params, state.batch_stats))
        return Inner(
            index=jnp.zeros((), jnp.int32),
            params=state.params,
            optimizer_state=learner.inner.init(state.params) if reset else state.optimizer_state["inner"],
            displacement=zeros[0] if task_length else None,
            batch_stats=running_averages(learner, state.params, state.batch_stats, batch, step=state.step),
            statistics=zeros[1],
            loss=jnp.zeros((), jnp.float32),
            gradient_norm=jnp.zeros((), jnp.float32),
        )

    def step(state: TrainState, inner: Inner, batch: Mapping) -> Inner:
        if sequential:
            batch = {name: values[None] for name, values in batch.items()}  # a batch of one group
        params, optimizer_state = inner.params, inner.optimizer_state
        if task_length:
            starts = inner.index % task_length == 0
            params = jax.tree.map(lambda theta, phi: jnp.where(starts, theta, phi), state.params, params)
            if reset:
                first = learner.inner.init(state.params)
                optimizer_state = jax.tree.map(lambda a, b: jnp.where(starts, a, b), first, optimizer_state)
        loss, batch_stats, gradients = weighted_gradients(
            learner, params, inner.batch_stats, batch, step=state.step, index=inner.index
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
        return inner.replace(
            index=inner.index + 1,
            params=params,
            optimizer_state=optimizer_state,
            displacement=displacement,
            statistics=statistics,
            loss=inner.loss + loss.astype(jnp.float32),
            gradient_norm=inner.gradient_norm + optax.tree.norm(gradients).astype(jnp.float32),
        )

    def finish(state: TrainState, inner: Inner) -> tuple[TrainState, dict]:
        adapted = inner.params
        if task_length:
            tasks = inner.index // task_length
            adapted = jax.tree.map(lambda theta, total: theta + total / tasks, state.params, inner.displacement)
        difference = jax.tree.map(jnp.subtract, state.params, adapted)
        params, meta = adapted, state.optimizer_state["meta"]
        if learner.meta is not None:
            updates, meta = learner.meta.update(difference, meta, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = {
            "loss": inner.loss / inner.index,
            "gradient_norm": inner.gradient_norm / inner.index,
            "displacement": optax.tree.norm(difference).astype(jnp.float32),
        }
        batch_stats = jax.tree.map(lambda old, total: old + total / inner.index, inner.batch_stats, inner.statistics)
        optimizer_state = {"inner": state.optimizer_state["inner"] if reset else inner.optimizer_state, "meta": meta}
        new = TrainState(step=state.step + 1, params=params, batch_stats=batch_stats, optimizer_state=optimizer_state)
        return new, metrics

    return Update(begin, step, finish, sequential)
