"""What configs/tables.py and configs/defences.py run."""

import ml_collections

from cprl_jax.config.presets import BACKBONES, cprl_experiment, parse_argument, parse_methods, set_cprl
from cprl_jax.data import DATASETS
from cprl_jax.experiments.cprl import paper_tables
from cprl_jax.methods import METHODS
from cprl_jax.models import NETWORKS

SMALL = ("efficientnet_lite", "squeezenet", "compact")  # networks that train in minutes on two cores
PRINTED = {
    3: ("fgsm", "pgd"),
    4: ("target_free", "perceptual", "universal", "fgsm"),
    5: ("fgsm", "pgd"),
    6: ("fgsm", "pgd"),
}
"""The attacks of each of the paper's tables."""
BEYOND = ("ensemble", "reach")
"""What is asked besides: the worst of several attacks, and how low any order could be brought."""

CORE = ("plain", "plain_longer", "at_pgd", "cprl_loss", "cprl")
RIVALS = ("at", "at_pgd", "nt", "sat", "lwta", "denoise", "meansparse")
DEFENCES = ("plain", "plain_longer", *RIVALS, "cprl_loss", "cprl", "sort_mask", "cprl_v1")
ATTACKED = ("fgsm", "pgd", "target_free", "score_reflection", "perceptual", "universal", "square", *BEYOND)


def paper_table(argument: str | None) -> ml_collections.ConfigDict:
    """One of CPRL's tables: see configs/tables.py.

    Raises:
      UserError: an unknown key or value.
    """
    choices = {"table": tuple(map(str, paper_tables.TABLES)), "rows": None}
    config, values = _experiment(argument, choices, network=paper_tables.NETWORK, dataset="livec")
    config.job = "paper_table"
    config.paper_table.number = int(values.get("table", "3"))
    config.paper_table.rows = tuple(filter(None, values.get("rows", "").split("+")))
    paper_tables.rows(config)  # refuses one that the table does not have
    config.model.nima.output = "scalar"  # not all of the data sets have distributions of opinions
    config.evaluation.attacks = (*PRINTED[config.paper_table.number], *BEYOND)
    return config


def defences(argument: str | None) -> ml_collections.ConfigDict:
    """Every defence on one network under every attack: see configs/defences.py.

    Raises:
      UserError: an unknown key or value, or a method that there is none of.
    """
    config, values = _experiment(argument, {"methods": None}, network="efficientnet_lite", dataset="own")
    named = values.get("methods", "all")
    asked = {"core": CORE, "all": DEFENCES}.get(named)
    config.methods = asked or parse_methods(named)
    config.evaluation.attacks = ATTACKED
    config.evaluation.radii = (1.0, 2.0)
    config.evaluation.crops = 1
    return config


def _experiment(argument, choices, *, network: str, dataset: str) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    """CPRL's experiment with the rivals beside it, on the data set and network that the argument names."""
    shared = {"dataset": tuple(DATASETS), "network": BACKBONES, "schedule": ("paper", "short")}
    values = parse_argument(argument, shared | choices)
    network = values.get("network", network)
    schedule = values.get("schedule", "short" if network in SMALL else "paper")
    config = cprl_experiment(values.get("dataset", dataset), f"backbone={network},schedule={schedule}")
    if network == "efficientnet_lite":
        config.model.weights = "imagenet"
        config.model.efficientnet_lite.fold_batch_norm = True
    if schedule == "short" and config.dataset.name != "embedded":
        _small_photographs(config)
    for name in (*RIVALS, "sort_mask", "cprl_v1"):
        if schedule == "short":
            # From the plain model, for as many image gradients as CPRL: what differs is the method.
            config[name].start_from = "plain"
            config[name].as_long_as = "cprl" if METHODS[name].trains else ""
    return config, values


def _small_photographs(config: ml_collections.ConfigDict) -> None:
    """Crops of 128 pixels of photographs at 192; docs/papers.md tells what the settings were chosen on."""
    config.dataset.resize = 192
    side = min(128, NETWORKS[config.model.name].module.largest_image or 128)
    for block in ("train", "plain", "plain_longer"):
        config[block].update(batch_size=16, crop_size=side)
    config.evaluation.crop_size = side
    config.evaluation.perceptual.steps = 50
    set_cprl(config, steps=400, weight=36.0)
    config.denoise.update(attack_steps=1, stages=(2, 3))
    config.cprl_v1.weight = 12.0
    config.nt.weight = 1e-5
