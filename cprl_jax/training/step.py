"""The training step of every method: labels, causal interventions or adversarial images, one optimiser update.

A step is a pure function of one device: `(state, batch) -> (state, metrics)`. Losses are computed on the scores of all
devices (gathered over the named axis), and every random draw belongs to an example of the global batch, so that the
numbers do not depend on how many devices share the work.
"""

from collections.abc import Callable, Mapping
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Int

from cprl_jax import attacks
from cprl_jax.losses.invariance import intervention, invariance_loss, magnitudes, perturb
from cprl_jax.losses.mos import correlation_loss, mos_loss


@flax.struct.dataclass
class TrainState:
    """Everything that a run needs to go on from a step (the random draws are functions of the seed and the step)."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    optimizer_state: Any
    averaged_params: Any  # exponential moving average of params; params themselves where it is off


def create_state(variables: Mapping, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        optimizer_state=optimizer.init(params),
        averaged_params=jax.tree.map(jnp.array, params),
    )


def evaluation_variables(state: TrainState) -> dict:
    """The variables that are validated, saved for scoring and attacked."""
    return {"params": state.averaged_params, "batch_stats": state.batch_stats}


def make_optimizer(config: ml_collections.ConfigDict, *, steps: int) -> optax.GradientTransformation:
    """Adam with one learning rate for params['backbone'] and one for everything else (`config` is config.train).

    Weight decay is added to the gradient before the moments, as in the published training code (not AdamW).
    """

    def group(peak: float) -> optax.GradientTransformation:
        transforms = [optax.scale_by_adam(), optax.scale_by_learning_rate(_schedule(config, peak, steps))]
        if config.weight_decay:
            transforms.insert(0, optax.add_decayed_weights(config.weight_decay))
        return optax.chain(*transforms)

    def label(path, _):
        return "backbone" if path[0].key == "backbone" else "head"

    groups = {"backbone": group(config.backbone_learning_rate), "head": group(config.head_learning_rate)}
    optimizer = optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(label, params))
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer


def _schedule(config: ml_collections.ConfigDict, peak: float, steps: int) -> optax.Schedule:
    warmup = min(config.warmup_steps, steps - 1)
    if config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha=0.02)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup), after], [warmup])


def make_step(
    module: nn.Module,
    optimizer: optax.GradientTransformation,
    config: ml_collections.ConfigDict,
    *,
    method: str,
    axis_name: str | None = None,
) -> Callable[[TrainState, Mapping], tuple[TrainState, dict]]:
    """Builds the step of `method` ('plain', 'cprl' or 'at').

    Args:
      module: takes (images, train) and gives scores.
      optimizer: from `make_optimizer`.
      config: the whole configuration; `config.train` and `config[method]` say what is minimised.
      method: 'plain': the loss on MOS alone. 'cprl': plus the invariance loss under causal interventions. 'at': the
        loss on MOS of clean images and of images attacked by FGSM towards the wrong side of the scale (CPRL, Table 1).
      axis_name: the named axis over which the devices average; None for a single device without pmap.

    Returns:
      `(state, batch) -> (state, metrics)`; batch: image uint8 [b, h, w, 3] and mos [b] of this device; metrics:
      scalars, the same on every device.
    """
    train, settings = config.train, config[method]
    root_key = jax.random.key(config.seed)
    compute = {"plain": _plain, "cprl": _cprl, "at": _adversarial}[method]

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
            name: jax.random.fold_in(step_key, number) for number, name in enumerate(("mask", "dropout"), 1 << 20)
        }

        def forward(params, x):
            """Scores of this device in training mode, and the batch statistics after it."""
            variables = {"params": params, "batch_stats": state.batch_stats}
            scores, updated = module.apply(variables, x, train=True, rngs=streams, mutable=["batch_stats"])
            return scores, updated.get("batch_stats", state.batch_stats)

        def label_loss(scores):
            loss = mos_loss(scores, mos, kind=train.mos_loss, huber_delta=train.huber_delta)
            if train.correlation_weight:
                loss += train.correlation_weight * correlation_loss(scores, mos)
            return loss

        # One value per step, for warm-ups of epsilon and of the loss weight.
        ramp = 1.0
        if settings.get("warmup_steps"):
            ramp = jnp.minimum(1.0, (state.step + 1) / settings.warmup_steps)
        loss_of = compute(
            settings=settings,
            params=state.params,
            images=images,
            own_mos=batch["mos"],
            keys=keys,
            ramp=ramp,
            forward=forward,
            gather=gather,
            label_loss=label_loss,
            mid=config.evaluation.mid,
        )

        (loss, (metrics, batch_stats)), gradients = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        if axis_name is not None:
            gradients = jax.lax.pmean(gradients, axis_name)
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = train.ema_decay
        averaged = jax.tree.map(lambda a, p: decay * a + (1.0 - decay) * p, state.averaged_params, params)
        metrics = {"loss": loss, **metrics, "gradient_norm": optax.tree.norm(gradients)}
        return (
            TrainState(
                step=state.step + 1,
                params=params,
                batch_stats=batch_stats,
                optimizer_state=optimizer_state,
                averaged_params=averaged,
            ),
            metrics,
        )

    return step


def _plain(*, forward, gather, label_loss, images, **_):
    def loss_of(params):
        own, batch_stats = forward(params, images)
        scores = gather(own)
        loss = label_loss(scores)
        return loss, ({"mos_loss": loss, "score_std": jnp.std(scores)}, batch_stats)

    return loss_of


def _cprl(*, settings, params, images, keys, ramp, forward, gather, label_loss, **_):
    epsilon = ramp * settings.epsilon / 255.0
    delta = intervention(
        lambda x: forward(params, x)[0], images, epsilon=epsilon, steps=settings.direction_steps, keys=keys
    )
    alphas = magnitudes(jax.vmap(jax.random.fold_in, (0, None))(keys, 1), count=settings.alphas, law=settings.alpha_law)

    def loss_of(params):
        own, batch_stats = forward(params, images)
        # The same masks and dropout for both branches: what is compared is the effect of delta alone.
        moved = [forward(params, perturb(images, alpha[:, None, None, None] * delta))[0] for alpha in alphas]
        scores, perturbed = gather(own), gather(jnp.stack(moved))
        label = label_loss(scores)
        invariance = invariance_loss(scores, perturbed, norm=settings.norm, relative=settings.relative)
        loss = label + ramp * settings.weight * invariance
        if settings.mos_loss_on_interventions:
            on_interventions = jnp.mean(jnp.stack([label_loss(row) for row in perturbed]))
            loss += ramp * settings.mos_loss_on_interventions * on_interventions
        metrics = {"mos_loss": label, "invariance_loss": invariance, "score_std": jnp.std(scores)}
        return loss, (metrics, batch_stats)

    return loss_of


def _adversarial(*, settings, params, images, own_mos, forward, gather, label_loss, mid, **_):
    attacked = attacks.fgsm(
        lambda x: forward(params, x)[0],
        images,
        radius=settings.epsilon / 255.0,
        direction=attacks.reflect(own_mos, mid),
    ).images

    def loss_of(params):
        own, batch_stats = forward(params, images)
        scores = gather(own)
        label, adversarial = label_loss(scores), label_loss(gather(forward(params, attacked)[0]))
        loss = (1.0 - settings.weight) * label + settings.weight * adversarial
        return loss, ({"mos_loss": label, "adversarial_loss": adversarial, "score_std": jnp.std(scores)}, batch_stats)

    return loss_of
