"""Optimisers with one learning rate for the trunk of a network, another for its head, and parameters that are held."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import ml_collections
import optax

from cprl_jax.config.field import listed
from cprl_jax.runtime.errors import UserError


def hold(params: Mapping[str, Any], frozen: Sequence[str]) -> Mapping[str, Any]:
    """The parameters, those whose dotted name contains one of `frozen` as constants, without gradients."""

    def held(path, value):
        return jax.lax.stop_gradient(value) if _is_frozen(path, frozen) else value

    return jax.tree_util.tree_map_with_path(held, params)


def check_frozen(params: Mapping[str, Any], frozen: Sequence[str]) -> None:
    """Raises UserError where one of config.train.frozen is in the name of no parameter, or none is left to train."""
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for part in frozen:
        if not any(_is_frozen(path, [part]) for path in paths):
            some = map(_dotted, paths[:: max(1, len(paths) // 6)])
            raise UserError(
                f"config.train.frozen: no parameter of this network has {part!r} in its name; "
                f"some of them: {listed(some)}"
            )
    if all(_is_frozen(path, frozen) for path in paths):
        raise UserError(f"config.train.frozen={tuple(frozen)!r} holds every parameter of this network; hold fewer")


def _dotted(path) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_frozen(path, frozen: Sequence[str]) -> bool:
    return any(part in _dotted(path) for part in frozen)


def two_rates(
    kind: str,
    *,
    backbone: optax.ScalarOrSchedule,
    head: optax.ScalarOrSchedule,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """'adam' or 'sgd', with one learning rate for params['backbone'] and one for everything else.

    Args:
      kind: the optimiser of both groups.
      backbone, head: learning rates or schedules.
      b2: decay of Adam's second moments.
      weight_decay: added to the gradient before the moments, as in the published training code (not AdamW).
      clip_norm: largest norm of the whole gradient; 0 for any.
      frozen: parameters that stay as they are, see `hold`.

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
        if _is_frozen(path, frozen):
            return "frozen"
        return "backbone" if path[0].key == "backbone" else "head"

    groups = {"backbone": group(backbone), "head": group(head)}
    if frozen:
        groups["frozen"] = optax.set_to_zero()
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
        frozen=train.frozen,
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
