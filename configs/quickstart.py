"""The whole story in minutes, without any download: `make quickstart`.

Trains a compact network on the embedded data set (photographs and procedural scenes, five degrees of six distortions,
labels from a full-reference formula: no human opinion), once plainly and once with CPRL, attacks both with FGSM and
PGD, and writes runs/quickstart/report/report.html.
"""

from cprl_jax import config as config_lib


def get_config(argument: str | None = None):
    values = config_lib.parse_argument(argument, {"methods": None})
    config = config_lib.default()
    config.methods = config_lib.parse_methods(values.get("methods", "plain+cprl"))
    config.dataset.name = "embedded"
    config.model.name = "compact"
    return config
