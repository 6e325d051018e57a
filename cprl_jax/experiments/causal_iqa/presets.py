"""What configs/causal_iqa.py and configs/leave_one_out.py share: the paper's network, schedule and arguments."""

from collections.abc import Mapping, Sequence

import ml_collections

from cprl_jax.config.defaults import default
from cprl_jax.config.fields import ALL, UPDATES
from cprl_jax.config.presets import parse_argument
from cprl_jax.runtime.errors import UserError


def paper(
    job: str, argument: str | None, allowed: Mapping[str, Sequence[str] | None]
) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    """The settings of Sec. 4.2 of Causal-IQA, and the parsed arguments.

    Args:
      job: 'causal_iqa' or 'leave_one_out'.
      argument: the configuration file's; updates, clusters, content, levels, reduction and backbone are applied here.
      allowed: the keys besides these, see `parse_argument`.

    Raises:
      UserError: an unknown key or value.
    """
    shared = {
        "updates": None,
        "clusters": tuple("12345"),
        "content": ("true", "false"),
        "levels": ("true", "false"),
        "reduction": ("tsne", "pca", "none"),
        "backbone": ("resnet18", "resnet34", "resnet50", "squeezenet"),
    }
    values = parse_argument(argument, shared | dict(allowed))
    config = default()
    config.job = job
    config.dataset.resize, config.train.crop_size, config.evaluation.crop_size = 256, 224, 224
    config.evaluation.crops = 5  # more would show nearly the same of 256 pixels
    options = config.causal_iqa
    options.updates = parse_updates(values.get("updates"))
    options.clusters = int(values.get("clusters", "2"))
    options.content = values.get("content", "true") == "true"
    options.levels = values.get("levels", "false") == "true"
    options.reduction = values.get("reduction", "tsne")
    backbone = values.get("backbone", "resnet18")
    if backbone == "squeezenet":
        # For a laptop: a small network, smaller crops, and so few steps that they have to be longer.
        config.model.name = backbone
        config.train.crop_size, config.evaluation.crops = 160, 3
        options.batch_size, options.meta_steps = 4, 50
        options.backbone_learning_rate, options.head_learning_rate, options.beta2 = 2e-4, 2e-3, 0.999
    else:
        config.model.name, config.model.backbone = "metaiqa", backbone
        # Its last layer is a sigmoid: 0..1 becomes 0..100.
        config.model.score_mean, config.model.score_std, config.model.dropout = 0.0, 100.0, 0.5
        options.batch_size = 32
    return config, values


def parse_updates(value: str | None) -> tuple[str, ...]:
    """'erm+cis' -> ('erm', 'cis'); None -> all updates. Raises UserError for an unknown or repeated update."""
    updates = UPDATES if value is None else tuple(value.split("+"))
    ALL["causal_iqa.updates"].check("updates", updates)
    if len(set(updates)) < len(updates):
        raise UserError(f"updates {value!r}: name each once")
    return updates
