"""Datasets by the names that they have in a config."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from cprl_jax.config.field import Field
from cprl_jax.data import combined, releases
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.releases._common import Release
from cprl_jax.runtime.errors import UserError

_FILES = (file.name for file in pkgutil.iter_modules(releases.__path__) if file.name != "build" and file.name[0] != "_")
RELEASES: Mapping[str, Release] = {name: importlib.import_module(f"{releases.__name__}.{name}") for name in _FILES}
"""Official releases, each a file of releases/ that nothing else names."""

DATASETS = ("embedded", *RELEASES, "own", "distorted")
FIELDS: Mapping[str, Field] = {
    name: field for release in RELEASES.values() for name, field in getattr(release, "OPTIONS", {}).items()
}
"""Fields of config.dataset that the releases declare as OPTIONS."""

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def load(config_dataset: "ConfigDict") -> QualityDataset:
    """Loads the dataset that `config.dataset` describes.

    Args:
      config_dataset: `name` is one of `DATASETS`, or several joined by + (see `combined.combine`); with `resize` every
        image is resized to that many pixels a side (see `combined.resize`). The official releases read `manual_dir`,
        `data_dir`, `cache` and `cache_gib` (see `releases.build.load`), and their `OPTIONS`; 'own' reads these
        four, `labels`, `mos_worst` and `mos_best` (see `own.load`); 'distorted' reads the four, keeping the set in
        `manual_dir`, and `photographs`, `distortions` and `label` (see `distorted.load`); 'embedded' reads `seed`,
        `image_size`, `scenes` and `levels` (see `embedded.make_embedded`).

    Raises:
      UserError: a name that is unknown, or whatever the dataset's loader finds wrong.
    """
    names = str(config_dataset.name).split("+")
    if unknown := [name for name in names if name not in DATASETS]:
        raise UserError(f"config.dataset.name={unknown[0]!r} is not a dataset; choose one of {', '.join(DATASETS)}")
    size = config_dataset.resize
    cache = {option: config_dataset[option] for option in ("cache", "cache_gib")}
    if size:  # resized images are kept in memory, not those that they are made from
        cache["cache_gib"] = 0.0
    datasets = [_load(name, config_dataset, cache) for name in names]
    dataset = datasets[0] if len(datasets) == 1 else combined.combine(datasets)
    return combined.resize(dataset, size, cache_gib=config_dataset.cache_gib) if size else dataset


def computed_labels(config_dataset: "ConfigDict") -> list[str]:
    """Which of its data sets have labels that a formula computed; of a folder, as far as its labels.csv says so."""
    from cprl_jax.data import own

    def are_computed(name: str) -> bool:
        if name == "own":
            return own.has_computed_labels(config_dataset.manual_dir, config_dataset.labels)
        return name in ("embedded", "distorted")

    return list(filter(are_computed, str(config_dataset.name).split("+")))


def _load(name: str, config_dataset: "ConfigDict", cache: dict) -> QualityDataset:
    # Imported where they are needed: TFDS is slow to import, and a run rarely needs all of them.
    if name == "embedded":
        from cprl_jax.data.embedded import make_embedded

        options = {option: config_dataset[option] for option in ("seed", "image_size", "scenes", "levels")}
        return make_embedded(**options)
    if name == "own":
        from cprl_jax.data import own

        options = {option: config_dataset[option] for option in ("labels", "mos_worst", "mos_best", "data_dir")}
        return own.load(config_dataset.manual_dir, **options, **cache)
    if name == "distorted":
        from cprl_jax.data import distorted

        options = {option: config_dataset[option] for option in ("distortions", "label", "data_dir")}
        return distorted.load(config_dataset.photographs, keep=config_dataset.manual_dir, **options, **cache)
    from cprl_jax.data.releases import build

    options = {option: config_dataset[option] for option in getattr(RELEASES[name], "OPTIONS", {})}
    folders = {option: config_dataset[option] for option in ("manual_dir", "data_dir")}
    return build.load(RELEASES[name], **folders, **cache, **options)
