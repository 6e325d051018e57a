"""What the trainings of one job share: data, contents of the scenes, start weights, and how test images are scored."""

import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float, Float32

from cprl_jax import models
from cprl_jax.data.crops import draw_crops, extract
from cprl_jax.data.dataset import QualityDataset, listing
from cprl_jax.evaluation.scoring import Scorer, score_images
from cprl_jax.experiments.causal_iqa import division as division_lib
from cprl_jax.experiments.causal_iqa.division import Contents, Division
from cprl_jax.experiments.causal_iqa.features import backbone_features, fingerprint
from cprl_jax.experiments.causal_iqa.saliency import saliency
from cprl_jax.experiments.causal_iqa.training import start_variables
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.training.loop import create_model

# Of config.causal_iqa: which trainings there are and what is shown of them. The others say what a training gives.
FREE = ("updates", "seeds", "held_out", "saliency", "evaluate_every")
_OF_DATA = ("name", "resize", "koniq_scores", "seed", "image_size", "scenes", "levels")  # of config.dataset


class Study:
    """The images of a job, divided, and a network to train on them.

    Args:
      config: the whole configuration.
      dataset: to train and test on.
      rows: the images that train, in some training at least. Their scenes are clustered.
      folder: keeps the clusters.

    Attributes:
      seeds: of the trainings.
      contents: the clusters.
      identity: everything that a training depends on besides its images, update and seed; for JSON.

    Raises:
      UserError: weights that cannot be read, scenes without an undistorted image, too few of them.
    """

    def __init__(self, config: ml_collections.ConfigDict, dataset: QualityDataset, rows: np.ndarray, *, folder: Path):
        self._config, self._dataset = config, dataset
        self.seeds = tuple(range(config.seed, config.seed + config.causal_iqa.seeds))
        self.module = create_model(config, "plain")
        self._start = functools.cache(lambda seed: start_variables(config, seed))
        self._fingerprint = functools.cache(lambda seed: fingerprint(self.start(seed)))
        columns = [dataset.names, dataset.references, dataset.distortions, dataset.levels.tolist()]
        text = "\n".join(str(value) for column in columns for value in column).encode() + dataset.mos.tobytes()
        self._data = {name: config.dataset[name] for name in _OF_DATA} | {"hash": hashlib.sha256(text).hexdigest()}
        self._scorer = Scorer(
            self.module, batch_size=config.evaluation.batch_size, pgd_steps=1, mid=config.evaluation.mid
        )
        self.contents = parallel.main_process_first(lambda: self._find_contents(rows, folder))
        self.identity = {
            "data": self._data,
            "seed": config.seed,
            "crop_size": config.train.crop_size,
            "model": {name: value for name, value in config.model.to_dict().items() if name != "weights"},
            "causal_iqa": {name: value for name, value in config.causal_iqa.to_dict().items() if name not in FREE},
            "contents": self.contents.key,
        }
        clustered = self._content_of(rows)
        self._responsibilities = np.full((len(dataset), clustered.shape[1]), 1 / clustered.shape[1])
        self._responsibilities[rows] = clustered

    def start(self, seed: int) -> dict:
        """The variables before training."""
        return self._start(seed)

    def start_identity(self, seed: int) -> str:
        """A hash of them."""
        return self._fingerprint(seed)

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
            key=division_lib.key_of(
                contents=self.contents.key,
                rows=rows.tolist(),
                content=options.content,
                levels=options.levels,
                smallest=options.smallest_subset,
            ),
        )

    def scores(self, variables: Mapping, rows: np.ndarray) -> Float[np.ndarray, " images"]:
        """Each image's mean score over config.evaluation.crops crops (over all of it, where it is not larger)."""
        return score_images(
            self._scorer, variables, self._dataset, rows, self._config.evaluation, seed=self._config.seed
        )

    def saliency(
        self, variables: Mapping, rows: np.ndarray, dataset: QualityDataset | None = None
    ) -> Float32[np.ndarray, "images size size"]:
        """Saliency maps of the first crop of each image, of this data set or another one."""
        crops = self._crops(dataset or self._dataset, rows, 1)[:, 0].astype(np.float32) / np.float32(255)
        score_fn = models.score_fn(self.module, variables)
        return np.concatenate([np.asarray(saliency(score_fn, crop[None])) for crop in crops])

    def shown(
        self, update: str, row: int, saliency_map: np.ndarray, dataset: QualityDataset | None = None
    ) -> dict[str, Any]:
        """A saliency map and its image, for the report."""
        dataset = dataset or self._dataset
        image = self._crops(dataset, np.array([row]), 1)[0, 0]
        return {"name": str(dataset.names[row]), "update": update, "image": image, "map": saliency_map}

    def described(self, division: Division) -> dict[str, Any]:
        """The division, for the report."""
        return {
            "points": self.contents.embedding,
            "clusters": self.contents.responsibilities.argmax(axis=1),
            "names": list(self.contents.names),
            "sizes": dict(zip(division.names, division.sizes.tolist(), strict=True)),
            "report": list(division.report),
        }

    def _crops(self, dataset: QualityDataset, rows: np.ndarray, count: int) -> np.ndarray:
        drawn = draw_crops(
            dataset, rows, crops=count, crop_size=self._config.evaluation.crop_size, seed=self._config.seed
        )
        return extract(drawn, dataset, count)

    def _content_of(self, rows: np.ndarray) -> Float[np.ndarray, "rows clusters"]:
        by_image = self._config.causal_iqa.features_of == "images"
        return self.contents.of((self._dataset.names if by_image else self._dataset.references)[rows])

    def _find_contents(self, rows: np.ndarray, folder: Path) -> Contents:
        """The clusters, read back where they were found before."""
        options, dataset = self._config.causal_iqa, self._dataset
        if options.features_of == "images":
            names = dataset.names[rows].tolist()
        else:
            names = sorted({*dataset.references[rows].tolist()})
        settings = {name: options[name] for name in ("clusters", "reduction", "dimensions")}
        settings["seed"] = self._config.seed
        image_size = self._config.train.crop_size
        key = division_lib.key_of(
            data=self._data,
            of=options.features_of,
            names=names,
            image_size=image_size,
            weights=self.start_identity(self._config.seed),
            **settings,
        )
        path = folder / "contents.npz"
        if (kept := division_lib.load(Contents, path, key=key)) is not None:
            return kept
        if options.features_of == "images":
            images, owner = [dataset.images[row] for row in rows], names
        else:
            images, owner = undistorted(dataset, names)
        features = backbone_features(
            self.module,
            self.start(self._config.seed),
            images,
            image_size=image_size,
            progress="features of contents" if len(images) > 200 else "",
        )
        # A scene with several undistorted views is where their features are on average.
        owner = np.array(owner)
        features = np.stack([features[owner == name].mean(axis=0) for name in names])
        contents = division_lib.cluster(names, features, key=key, **settings)
        if parallel.is_main_process():
            division_lib.save(contents, path)
        return contents


def undistorted(dataset: QualityDataset, scenes: list[str]) -> tuple[list[np.ndarray], list[str]]:
    """The undistorted images of scenes, and the scene of each: a scene's photograph, or its rated images without
    distortion.

    Raises:
      UserError: scenes that have none.
    """
    rated: dict[str, list[int]] = {}
    for row in np.flatnonzero(dataset.distortions == ""):
        rated.setdefault(str(dataset.references[row]), []).append(int(row))
    images, owner, missing = [], [], []
    for scene in scenes:
        if scene in dataset.pristine:
            found = [dataset.pristine[scene]]
        else:
            found = [dataset.images[row] for row in rated.get(scene, [])]
        images += found
        owner += [scene] * len(found)
        missing += [] if found else [scene]
    if missing:
        raise UserError(
            f"{dataset.name} has no undistorted image of {len(missing)} of its {len(scenes)} scenes: "
            f"{listing(missing)}; set config.causal_iqa.features_of=images to cluster the distorted ones"
        )
    return images, owner


def severe(dataset: QualityDataset, rows: np.ndarray, count: int) -> np.ndarray:
    """The images of lowest MOS, as many as asked for: of each distortion first one."""
    order = rows[np.argsort(dataset.mos[rows], kind="stable")]
    _, first = np.unique(dataset.distortions[order], return_index=True)
    first = np.sort(first)
    return np.concatenate([order[first], np.delete(order, first)])[:count]
