"""Datasets, splits and the input pipeline.

`load` gives a `QualityDataset` by its name in a config; `splits` divides it, `pipeline` makes training batches of it
and `crops` the fixed crops to test on.
"""

from typing import TYPE_CHECKING

from cprl_jax.data.dataset import QualityDataset
from cprl_jax.errors import UserError

if TYPE_CHECKING:
    from ml_collections import ConfigDict

READABLE = ("embedded", "livec")
PLANNED = {"live": "LIVE (release 2)", "vcl": "VCL@FER", "koniq": "KonIQ-10k"}


def load(config_dataset: "ConfigDict") -> QualityDataset:
    """Loads the dataset that `config.dataset` describes.

    Args:
      config_dataset: `name` is one of `READABLE`; 'livec' also reads `manual_dir` and `data_dir` (see `livec.load`),
        'embedded' reads `seed`, `image_size`, `scenes` and `levels` (see `embedded.make_embedded`).

    Raises:
      UserError: a name that is unknown or cannot be read yet, or whatever the dataset's loader finds wrong.
    """
    name = config_dataset.name
    # Imported where they are needed: TFDS takes a moment, and nobody needs both.
    if name == "embedded":
        from cprl_jax.data.embedded import make_embedded

        options = {option: config_dataset[option] for option in ("seed", "image_size", "scenes", "levels")}
        return make_embedded(**options)
    if name == "livec":
        from cprl_jax.data import livec

        return livec.load(manual_dir=config_dataset.manual_dir, data_dir=config_dataset.data_dir)
    if name in PLANNED:
        raise UserError(
            f"config.dataset.name={name!r}: the loader of {PLANNED[name]} is not part of this version yet; "
            f"choose one of {', '.join(READABLE)}"
        )
    raise UserError(f"config.dataset.name={name!r} is not a dataset; choose one of {', '.join([*READABLE, *PLANNED])}")
