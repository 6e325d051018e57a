"""The training step of every method: the method's loss and one optimiser update.

A step is a pure function on one device: `(state, batch) -> (state, metrics)`. Losses are computed on the scores of all
devices (gathered over the named axis), and every random draw belongs to an example of the global batch, so that the
numbers do not depend on how many devices share the work.
"""

import contextlib
from collections.abc import Callable, Mapping

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax

from cprl_jax.losses import correlation_loss, mos_loss
from cprl_jax.methods import METHODS, Batch, Forward
from cprl_jax.training.batch_norm import running_statistics, step_of_averages, uses_batch_norm
from cprl_jax.training.optimizers import hold
from cprl_jax.training.state import TrainState, moving_average


def make_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    *,
    method: str,
    axis_name: str | None = None,
) -> Callable[[TrainState, Mapping], tuple[TrainState, dict]]:
    """Builds the step of a method.

    Args:
      module: takes (images, train) and gives scores.
      optimizer: updates the parameters.
      config: the whole configuration; `config.train` and `config[method]` say what is minimised.
      method: a name of `methods.METHODS`.
      axis_name: the named axis over which the devices average; None for a single device without pmap.

    Returns:
      `(state, batch) -> (state, metrics)`; batch: image uint8 [b, h, w, 3] and mos [b] of this device; metrics:
      scalars, the same on every device.
    """
    train, settings, declared = config.train, config[method], METHODS[method]
    root_key = jax.random.key(config.seed)

    def gather(values):
        return values if axis_name is None else jax.lax.all_gather(values, axis_name, axis=values.ndim - 1, tiled=True)

    def step(state: TrainState, batch: Mapping) -> tuple[TrainState, dict]:
        images = batch["image"].astype(jnp.float32) / 255.0
        mos = gather(batch["mos"])
        device = 0 if axis_name is None else jax.lax.axis_index(axis_name)
        step_key = jax.random.fold_in(root_key, state.step)
        example = device * images.shape[0] + jnp.arange(images.shape[0])
        keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, example)
        # The layers fold the device's place in themselves, see SortMaskConv.
        streams = {
            name: jax.random.fold_in(step_key, number)
            for number, name in enumerate(("mask", "dropout", "change"), 1 << 20)
        }

        def apply(params, batch_stats, x):
            """Scores of this device in the mode of the method, and the batch statistics after it."""
            variables = {"params": params, "batch_stats": batch_stats}
            scores, updated = module.apply(variables, x, train=declared.trains, rngs=streams, mutable=["batch_stats"])
            return scores, updated.get("batch_stats", batch_stats)

        def label_loss(scores):
            options = dict(huber_delta=train.huber_delta, fidelity_std=train.fidelity_std)
            loss = mos_loss(scores, mos, kind=train.mos_loss, **options)
            if train.correlation_weight:
                loss += train.correlation_weight * correlation_loss(scores, mos)
            return loss

        batch_norm = uses_batch_norm(lambda: apply(state.params, state.batch_stats, images))
        random = _draws_random_numbers(module, {"params": state.params, "batch_stats": state.batch_stats}, images)
        by_averages = batch_norm and settings.batch_norm == "deployed" and declared.trains
        batch_stats = state.batch_stats
        if by_averages:
            batch_stats = step_of_averages(batch_stats, apply(state.params, batch_stats, images)[1], step=state.step)
        statistics = running_statistics if by_averages else contextlib.nullcontext
        constant = jax.lax.stop_gradient(state.params)

        def loss_of(params):
            params = hold(params, train.frozen)
            updated = []  # batch statistics after each call; the first one is on the clean images

            def scores_of(x):
                scores, new = apply(params, batch_stats, x)
                updated.append(new)
                return scores

            forward = Forward(
                scores=scores_of,
                constant=lambda x: apply(constant, batch_stats, x)[0],
                deployed=lambda x: module.apply(
                    {"params": constant, "batch_stats": batch_stats}, x, train=False, rngs=streams
                ),
                is_deployed=not declared.trains or ((by_averages or not batch_norm) and not random),
                gather=gather,
                label_loss=label_loss,
                params=params,
            )
            data = Batch(images, batch["mos"], keys, step=state.step, mid=config.evaluation.mid)
            with statistics():
                loss, metrics = declared.loss(data, forward, settings)
            return loss, (metrics, batch_stats if by_averages else updated[0])

        if not declared.trains:
            loss, (metrics, batch_stats) = loss_of(state.params)
            new = {"params": state.params, "batch_stats": batch_stats}
            state = state.replace(step=state.step + 1, **new, averaged=None if state.averaged is None else new)
            return state, {"loss": loss, **metrics, "gradient_norm": jnp.zeros(())}
        (loss, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        if axis_name is not None:
            gradients = jax.lax.pmean(gradients, axis_name)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes integers and floats
            updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averaged = state.averaged
        if averaged is not None:
            new = {"params": params, "batch_stats": batch_stats}
            averaged = moving_average(averaged, new, decay=train.ema_decay)
        metrics = {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, batch_stats, optimizer_state, averaged), metrics

    return step


def _draws_random_numbers(module: nn.Module, variables: Mapping, images) -> bool:
    """Whether a network in training mode has dropout or random masks."""
    try:
        jax.eval_shape(lambda: module.apply(variables, images, train=True, mutable=["batch_stats"]))
    except flax.errors.InvalidRngError:
        return True
    return False
