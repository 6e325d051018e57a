"""What the trainings of a job share: data, contents of the scenes, start weights, and how test images are scored."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float, Float32

from cprl_jax import models
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import CachedImages, QualityDataset, each_image, listing
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.experiments.causal_iqa import division as division_lib
from cprl_jax.experiments.causal_iqa.division import Contents, Division
from cprl_jax.experiments.causal_iqa.features import backbone_features
from cprl_jax.experiments.causal_iqa.saliency import saliency
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import read_cache, write_cache
from cprl_jax.runtime.stamps import stamp
from cprl_jax.training import setup

# Fields of config.causal_iqa that say which trainings there are and what is shown of them, not what a training gives.
FREE = ("updates", "seeds", "held_out", "saliency", "evaluate_every")


class Study:
    """The images of a job, divided, and a network to train on them.

    Args:
      config: the whole configuration.
      dataset: the data set to train and test on.
      rows: the images that at least one training uses. Their scenes are clustered.
      folder: keeps the clusters.

    Attributes:
      seeds: one for each training of an update.
      module: the network.
      start: seed -> the variables before training.
      contents: the clusters.

    Raises:
      UserError: weights that cannot be read, scenes without an undistorted image, too few of them.
    """

    def __init__(self, config: ml_collections.ConfigDict, dataset: QualityDataset, rows: np.ndarray, *, folder: Path):
        self._config, self._dataset = config, dataset
        self.seeds = tuple(range(config.seed, config.seed + config.causal_iqa.seeds))
        self.module = setup.create_model(config, "plain")
        self.start = functools.cache(lambda seed: setup.start_variables(config, "plain", seed=seed))
        setup.warn_of_random_weights(config, "every training")
        self._scorer = Scorer(self.module, batch_size=config.evaluation.batch_size)
        by_image = config.causal_iqa.features_of == "images"
        self.contents = parallel.main_process_first(lambda: self._find_contents(rows, by_image, folder))
        clustered = self.contents.of((dataset.names if by_image else dataset.references)[rows])
        self._responsibilities = np.full((len(dataset), clustered.shape[1]), 1 / clustered.shape[1])
        self._responsibilities[rows] = clustered

    @functools.cached_property
    def stamp(self) -> str:
        """What a training depends on besides its update, its seed, its start, its length and which images it uses."""
        config, dataset = self._config, self._dataset
        logging.info("reading all %d images of %s: results depend on their pixels", len(dataset), dataset.name)
        columns = {name: getattr(dataset, name) for name in ("names", "references", "distortions", "levels", "mos")}
        return stamp(
            module=self.module,
            pixels=_pixel_stamps(dataset.images),
            contents=self.contents,
            seed=config.seed,
            crop_size=config.train.crop_size,
            causal_iqa={name: value for name, value in config.causal_iqa.items() if name not in FREE},
            **columns,
        )

    def divide(self, rows: np.ndarray) -> Division:
        """The subsets of some of the images that train, as config.causal_iqa says."""
        options = self._config.causal_iqa
        return division_lib.divide(
            self._dataset.distortions,
            self._responsibilities,
            rows=rows,
            content=options.content,
            levels=self._dataset.levels if options.levels else None,
            smallest=options.smallest_subset,
        )

    def crops(self, rows: np.ndarray, dataset: QualityDataset | None = None) -> Crops:
        """The config.evaluation.crops crops of images of this data set, or of another one."""
        evaluation = self._config.evaluation
        options = {"crops": evaluation.crops, "crop_size": evaluation.crop_size, "seed": self._config.seed}
        return Crops(dataset or self._dataset, rows, **options)

    def scores(self, variables: Mapping, crops: Crops) -> Float[np.ndarray, " images"]:
        """Each image's mean score over its crops."""
        return self._scorer.scores(variables, crops)

    def saliency(
        self, variables: Mapping, rows: np.ndarray, dataset: QualityDataset | None = None
    ) -> list[Float32[np.ndarray, "size size"]]:
        """Saliency maps of the first crop of each image, of this data set or another one."""
        score_fn, crops = models.score_fn(self.module, variables), self.crops(rows, dataset)
        return [np.asarray(saliency(score_fn, crops[row][:1] / np.float32(255)))[0] for row in range(len(rows))]

    def shown(
        self, update: str, row: int, saliency_map: np.ndarray, dataset: QualityDataset | None = None
    ) -> dict[str, Any]:
        """A saliency map and its image, for the report."""
        image = self.crops(np.array([row]), dataset)[0][0]
        name = str((dataset or self._dataset).names[row])
        return {"name": name, "update": update, "image": image, "map": saliency_map}

    def described(self, division: Division) -> dict[str, Any]:
        """The division, for the report."""
        return {
            "points": self.contents.embedding,
            "clusters": self.contents.responsibilities.argmax(axis=1),
            "names": list(self.contents.names),
            "sizes": dict(zip(division.names, division.sizes.tolist(), strict=True)),
            "report": list(division.report),
        }

    def _find_contents(self, rows: np.ndarray, by_image: bool, folder: Path) -> Contents:
        """The clusters of scenes, or of images as if each were a scene; read back where they were found before."""
        config, dataset = self._config, self._dataset
        if by_image:
            names = owners = dataset.names[rows].tolist()
            images = CachedImages(lambda index: dataset.images[int(rows[index])], len(rows), cache_bytes=0)
        else:
            names = sorted({*dataset.references[rows].tolist()})
            images, owners = undistorted(dataset, names)
        settings = {name: config.causal_iqa[name] for name in ("clusters", "reduction", "dimensions")}
        settings["seed"] = config.seed
        network = {"module": self.module, "variables": self.start(config.seed), "image_size": config.train.crop_size}
        contents_stamp = stamp(pixels=_pixel_stamps(images), owners=owners, **network, **settings)
        path = folder / "contents.npz"
        if (kept := read_cache(path, contents_stamp)) is not None:
            return Contents(**{**kept, "names": tuple(kept["names"].tolist())})
        progress = "features of contents" if len(images) > 200 else ""
        features = backbone_features(images=images, progress=progress, **network)
        # A scene with several undistorted views is where their features are on average.
        owners = np.array(owners)
        features = np.stack([features[owners == name].mean(axis=0) for name in names])
        contents = division_lib.cluster(names, features, **settings)
        if parallel.is_main_process():
            write_cache(path, contents_stamp, {name: np.asarray(value) for name, value in vars(contents).items()})
        return contents


def _pixel_stamps(images: Sequence[np.ndarray]) -> list[str]:
    return each_image(lambda image: stamp(pixels=image), images, range(len(images)))


def undistorted(dataset: QualityDataset, scenes: list[str]) -> tuple[list[np.ndarray], list[str]]:
    """Undistorted images and the scene of each: a scene's photograph, or else its rated images without distortion.

    Raises:
      UserError: scenes that have none.
    """
    rated: dict[str, list[int]] = {}
    for row in np.flatnonzero(dataset.distortions == ""):
        rated.setdefault(str(dataset.references[row]), []).append(int(row))
    images, owners = [], []
    for scene in scenes:
        photograph = [dataset.pristine[scene]] if scene in dataset.pristine else []
        views = photograph or [dataset.images[row] for row in rated.get(scene, [])]
        images += views
        owners += [scene] * len(views)
    if missing := [scene for scene in scenes if scene not in owners]:
        raise UserError(
            f"{dataset.name} has no undistorted image of {len(missing)} of its {len(scenes)} scenes: "
            f"{listing(missing)}; set config.causal_iqa.features_of=images to cluster the distorted ones"
        )
    return images, owners


def severe(dataset: QualityDataset, rows: np.ndarray, count: int) -> np.ndarray:
    """The `count` images of lowest MOS, those of different distortions first."""
    order = rows[np.argsort(dataset.mos[rows], kind="stable")]
    first = np.sort(np.unique(dataset.distortions[order], return_index=True)[1])
    return np.concatenate([order[first], np.delete(order, first)])[:count]
