"""What the trainings of one job share: data, contents of the scenes, start weights, and how test images are scored."""

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float, Float32, UInt8

from cprl_jax import models
from cprl_jax.data.crops import LazyCrops, draw_crops
from cprl_jax.data.dataset import QualityDataset, listing
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

# Of config.causal_iqa: which trainings there are and what is shown of them. The others say what a training gives.
FREE = ("updates", "seeds", "held_out", "saliency", "evaluate_every")


class Study:
    """The images of a job, divided, and a network to train on them.

    Args:
      config: the whole configuration.
      dataset: to train and test on.
      rows: the images that train, in some training at least. Their scenes are clustered.
      folder: keeps the clusters.

    Attributes:
      seeds: of the trainings.
      module: the network.
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
        self.contents = parallel.main_process_first(lambda: self._find_contents(rows, folder))
        clustered = self._content_of(rows)
        self._responsibilities = np.full((len(dataset), clustered.shape[1]), 1 / clustered.shape[1])
        self._responsibilities[rows] = clustered

    def training_stamp(self, seed: int) -> str:
        """The stamp of what a training of a seed depends on besides its update, its length and which images it uses."""
        config = self._config
        return stamp(
            study=self._stamp,
            seed=seed,
            start=self.start(seed),
            seed_of_run=config.seed,
            crop_size=config.train.crop_size,
            causal_iqa={name: value for name, value in config.causal_iqa.items() if name not in FREE},
        )

    @functools.cached_property
    def _stamp(self) -> str:
        """Of the network, the labelled images and their contents."""
        dataset = self._dataset
        logging.info("reading all %d images of %s: results depend on their pixels", len(dataset), dataset.name)
        columns = {name: getattr(dataset, name) for name in ("names", "references", "distortions", "levels", "mos")}
        return stamp(module=self.module, pixels=_pixel_stamps(dataset.images), contents=self.contents, **columns)

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

    def crops(self, rows: np.ndarray, dataset: QualityDataset | None = None) -> LazyCrops:
        """The config.evaluation.crops crops of images of this data set, or of another one."""
        dataset, evaluation = dataset or self._dataset, self._config.evaluation
        drawn = draw_crops(
            dataset, rows, crops=evaluation.crops, crop_size=evaluation.crop_size, seed=self._config.seed
        )
        return LazyCrops(drawn, dataset, evaluation.crops)

    def scores(self, variables: Mapping, crops: LazyCrops) -> Float[np.ndarray, " images"]:
        """Each image's mean score over its crops."""
        return self._scorer.scores(variables, crops)

    def saliency(
        self, variables: Mapping, rows: np.ndarray, dataset: QualityDataset | None = None
    ) -> Float32[np.ndarray, "images size size"]:
        """Saliency maps of the first crop of each image, of this data set or another one."""
        score_fn, crops = models.score_fn(self.module, variables), self.crops(rows, dataset)
        return np.concatenate(
            [np.asarray(saliency(score_fn, crops[row][:1] / np.float32(255))) for row in range(len(rows))]
        )

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

    def _content_of(self, rows: np.ndarray) -> Float[np.ndarray, "rows clusters"]:
        by_image = self._config.causal_iqa.features_of == "images"
        return self.contents.of((self._dataset.names if by_image else self._dataset.references)[rows])

    def _find_contents(self, rows: np.ndarray, folder: Path) -> Contents:
        """The clusters, read back where they were found before."""
        options, dataset, seed = self._config.causal_iqa, self._dataset, self._config.seed
        if options.features_of == "images":
            names = owners = dataset.names[rows].tolist()
            images = _Rows(dataset.images, rows)
        else:
            names = sorted({*dataset.references[rows].tolist()})
            images, owners = undistorted(dataset, names)
        settings = {name: options[name] for name in ("clusters", "reduction", "dimensions")} | {"seed": seed}
        variables, image_size = self.start(seed), self._config.train.crop_size
        contents_stamp = stamp(
            module=self.module,
            variables=variables,
            pixels=_pixel_stamps(images),
            owners=owners,
            image_size=image_size,
            **settings,
        )
        path = folder / "contents.npz"
        if (kept := read_cache(path, contents_stamp)) is not None:
            return Contents(**{**kept, "names": tuple(kept["names"].tolist())})
        features = backbone_features(
            self.module,
            variables,
            images,
            image_size=image_size,
            progress="features of contents" if len(images) > 200 else "",
        )
        # A scene with several undistorted views is where their features are on average.
        owners = np.array(owners)
        features = np.stack([features[owners == name].mean(axis=0) for name in names])
        contents = division_lib.cluster(names, features, **settings)
        if parallel.is_main_process():
            write_cache(path, contents_stamp, {name: np.asarray(value) for name, value in vars(contents).items()})
        return contents


class _Rows(Sequence):
    """Some of a data set's images, which are decoded when they are asked for."""

    def __init__(self, images: Sequence, rows: np.ndarray):
        self._images, self._rows = images, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> UInt8[np.ndarray, "height width 3"]:
        return self._images[int(self._rows[index])]


def _pixel_stamps(images: Sequence[np.ndarray]) -> list[str]:
    """The stamp of each image's pixels; several threads decode and hash them."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda row: stamp(pixels=images[row]), range(len(images))))


def undistorted(dataset: QualityDataset, scenes: list[str]) -> tuple[list[np.ndarray], list[str]]:
    """The undistorted images of scenes, and the scene of each: a scene's photograph, or its rated images without
    distortion.

    Raises:
      UserError: scenes that have none.
    """
    rated: dict[str, list[int]] = {}
    for row in np.flatnonzero(dataset.distortions == ""):
        rated.setdefault(str(dataset.references[row]), []).append(int(row))
    images, owners = [], []
    for scene in scenes:
        if scene in dataset.pristine:
            views = [dataset.pristine[scene]]
        else:
            views = [dataset.images[row] for row in rated.get(scene, [])]
        images += views
        owners += [scene] * len(views)
    if missing := [scene for scene in scenes if scene not in owners]:
        raise UserError(
            f"{dataset.name} has no undistorted image of {len(missing)} of its {len(scenes)} scenes: "
            f"{listing(missing)}; set config.causal_iqa.features_of=images to cluster the distorted ones"
        )
    return images, owners


def severe(dataset: QualityDataset, rows: np.ndarray, count: int) -> np.ndarray:
    """The images of lowest MOS, as many as asked for: of each distortion first one."""
    order = rows[np.argsort(dataset.mos[rows], kind="stable")]
    _, first = np.unique(dataset.distortions[order], return_index=True)
    first = np.sort(first)
    return np.concatenate([order[first], np.delete(order, first)])[:count]
