"""Optimisers with one learning rate for the trunk of a network and another for its head."""

import jax
import ml_collections
import optax


def two_rates(
    kind: str,
    *,
    backbone: optax.ScalarOrSchedule,
    head: optax.ScalarOrSchedule,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """'adam' or 'sgd', with one learning rate for params['backbone'] and one for everything else.

    Args:
      kind: the optimiser of both groups.
      backbone, head: learning rates or schedules.
      b2: decay of Adam's second moments.
      weight_decay: added to the gradient before the moments, as in the published training code (not AdamW).
      clip_norm: largest norm of the whole gradient; 0 for any.

    Raises:
      ValueError: unknown `kind`.
    """
    if kind not in ("adam", "sgd"):
        raise ValueError(f"kind is {kind!r}; allowed: 'adam', 'sgd'")

    def group(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
        decay = [optax.add_decayed_weights(weight_decay)] if weight_decay else []
        scale = [optax.scale_by_adam(b2=b2)] if kind == "adam" else []
        return optax.chain(*decay, *scale, optax.scale_by_learning_rate(learning_rate))

    def label(path, _):
        return "backbone" if path[0].key == "backbone" else "head"

    groups = {"backbone": group(backbone), "head": group(head)}
    optimizer = optax.partition(groups, lambda params: jax.tree_util.tree_map_with_path(label, params))
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def make_optimizer(train: ml_collections.ConfigDict, *, steps: int) -> optax.GradientTransformation:
    """The optimiser that config.train describes, for a training of `steps` steps."""
    return two_rates(
        "adam",
        backbone=_schedule(train, train.backbone_learning_rate, steps),
        head=_schedule(train, train.head_learning_rate, steps),
        weight_decay=train.weight_decay,
        clip_norm=train.clip_norm,
    )


def _schedule(train: ml_collections.ConfigDict, peak: float, steps: int) -> optax.Schedule:
    warmup = min(train.warmup_steps, steps - 1)
    if train.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha=0.02)
    else:
        after = optax.constant_schedule(peak)
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(peak / warmup, peak, warmup), after], [warmup])
