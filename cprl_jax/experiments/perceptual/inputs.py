"""The inputs of a perceptual attack: images, models on one scale of scores, and fidelities, all by name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.tree_util import Partial
from jaxtyping import Array, Float, UInt8
from PIL import Image

from cprl_jax import data, fidelity, models
from cprl_jax.config import defaults as config_lib
from cprl_jax.data import label_file, photographs, splits
from cprl_jax.data.decode import PHOTOGRAPH_SUFFIXES, decode_photograph
from cprl_jax.data.scenes import PHOTOGRAPHS
from cprl_jax.models import brisque, logistic
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import user_path
from cprl_jax.runtime.stamps import stamp
from cprl_jax.training.setup import trained_model

LOWEST, HIGHEST = 0.0, 10.0  # every model's scores are mapped to this range


class Picture(NamedTuple):
    """An image to attack. `mos` is NaN where there is no label."""

    name: str
    pixels: UInt8[np.ndarray, "height width 3"]
    mos: float


ScoreFn = Callable[[Float[Array, "batch height width 3"]], Float[Array, " batch"]]


class Target(NamedTuple):
    """A model: its scores on 0..10, higher is better, the stamp of what they depend on, and how they got there.

    `network` is its name in `cprl_jax.models`, unless its training was another than the plain one: then ''.
    """

    name: str
    score_fn: ScoreFn
    stamp: str
    scale: str = ""
    network: str = ""


class Model(NamedTuple):
    """A model with scores of its own, higher is better.

    `constants` are those of the published logistic map to 0..10; None for a model of MOS on 0..100, which is divided.
    `network`: see `Target`.
    """

    name: str
    score_fn: ScoreFn
    stamp: str
    constants: logistic.LogisticConstants | None
    network: str = ""


class Fidelity(NamedTuple):
    """A distance, its largest value that counts as invisible, and the stamp of what the distance depends on."""

    name: str
    distance: Callable
    threshold: float
    stamp: str


class Cell(NamedTuple):
    """One model, fidelity and image: what is computed and kept as one file."""

    target: Target
    fidelity: Fidelity
    picture: Picture
    path: Path
    stamp: str

    @property
    def names(self) -> tuple[str, str, str]:
        return self.target.name, self.fidelity.name, self.picture.name


class TransferCell(NamedTuple):
    """Another model's scores of a cell's candidates."""

    target: Target
    cell: Cell
    path: Path
    stamp: str


def as_floats(pixels: np.ndarray) -> Float[np.ndarray, "*shape"]:
    """8-bit values as float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def read_pictures(config: ml_collections.ConfigDict) -> list[Picture]:
    """The images that config.perceptual asks for, sorted by name.

    Raises:
      UserError: no such folder or none in it, a file that is no image, labels that do not fit, no images left.
    """
    return _pictures(config, config.perceptual.count)


def _pictures(config: ml_collections.ConfigDict, count: int) -> list[Picture]:
    """So many of the images, evenly over their MOS; all for 0."""
    options = config.perceptual
    names, decode, mos = _folder(options) if options.images else _dataset(config)
    chosen = np.arange(len(names))
    if 0 < count < len(names):
        order = np.argsort(mos, kind="stable") if np.all(np.isfinite(mos)) else chosen
        chosen = np.sort(order[np.round(np.linspace(0, len(names) - 1, count)).astype(int)])
    return [Picture(names[row], _resize(decode(row), options.height, options.width), float(mos[row])) for row in chosen]


def _folder(options: ml_collections.ConfigDict) -> tuple[list[str], Callable[[int], np.ndarray], np.ndarray]:
    """Names, a function from row to image, and labels (NaN where there are none); as `_dataset`."""
    folder = user_path(options.images, field="config.perceptual.images")
    if not folder.is_dir():
        raise UserError(f"config.perceptual.images: there is no folder {folder}")
    paths = photographs.image_files(folder)
    if not paths:
        raise UserError(f"config.perceptual.images: no image files in {folder} ({', '.join(PHOTOGRAPH_SUFFIXES)})")
    names = [path.name.encode(errors="backslashreplace").decode() for path in paths]  # bytes that are no text: escaped

    def decode(row: int) -> np.ndarray:
        try:
            return decode_photograph(photographs.content(paths[row]))
        except (OSError, ValueError) as error:
            raise UserError(f"{paths[row]} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    mos = np.full(len(names), np.nan)
    if options.labels:
        labels = _read_labels(user_path(options.labels, field="config.perceptual.labels"))
        if missing := [name for name in names if name not in labels]:
            raise UserError(f"{options.labels} has no label of {missing[0]} ({len(missing)} of {len(names)} missing)")
        mos = np.array([labels[name] for name in names])
    return names, decode, mos


def _read_labels(path: Path) -> dict[str, float]:
    rows, problems = label_file.read(path, known=("image", "mos"))
    labels = {row.values["image"]: row.number("mos") for row in rows}
    problems += [
        row.problem(f"mos is {row.values['mos']!r}, not a number from 0 to 100")
        for row in rows
        if not 0 <= labels[row.values["image"]] <= 100
    ]
    label_file.refuse(f"config.perceptual.labels: {path}", problems)
    if scale := label_file.other_scale(list(labels.values()), (0, 100)):
        logging.warning(
            "config.perceptual.labels: %s: all mos are from %g to %g, but their scale is from 0 to 100; stretch them, "
            "such as from %d..%d",
            path,
            min(labels.values()),
            max(labels.values()),
            *scale,
        )
    return labels


def _dataset(config: ml_collections.ConfigDict):
    dataset = data.load(config.dataset)
    rows = np.arange(len(dataset))
    if config.dataset.split_file:
        rows = splits.rows(dataset, splits.load_split(config.dataset.split_file, dataset).test)
    if dataset.name == "embedded":
        rows = rows[np.isin(dataset.references[rows], list(PHOTOGRAPHS))]
    if not rows.size:
        raise UserError(
            f"config.dataset.split_file: no photographs in the test part of {config.dataset.split_file}; give another "
            "split, or images by config.perceptual.images"
        )
    rows = rows[np.argsort(dataset.names[rows], kind="stable")]
    return dataset.names[rows].tolist(), lambda row: dataset.images[int(rows[row])], dataset.mos[rows].astype(float)


def _resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """To height x width (0: as it is) by an antialiased Lanczos filter; an upright image stays upright."""
    if not height:
        return pixels
    upright = pixels.shape[0] > pixels.shape[1]
    size = (width, height) if upright == (height > width) else (height, width)
    return np.array(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def read_targets(config: ml_collections.ConfigDict) -> list[Target]:
    """The models of config.perceptual.models, each on 0..10, as config.perceptual.logistic says.

    'published': Ma19 and BRISQUE by their published logistic maps; scores of models of a run, which predict MOS on
    0..100, are divided by 10. 'fitted': every model by the logistic map that is nearest to the MOS of
    config.perceptual.logistic_images images.

    Raises:
      UserError: weights that are missing or do not fit, no such run or method, images without labels to fit to.
    """
    readers, options = {"ma19": _ma19, "brisque": _brisque}, config.perceptual
    found = [readers[name](options) if name in readers else _trained(name) for name in options.models]
    names = [model.name for model in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"config.perceptual.models: two models would be called {twice[0]!r}; rename a run's folder")
    if options.logistic == "published":
        return [_target(model, model.constants, "published") for model in found]
    pictures = _pictures(config, options.logistic_images)
    mos = np.array([picture.mos for picture in pictures])
    if not np.isfinite(mos).all():
        raise UserError(
            "config.perceptual.logistic is 'fitted', but the images have no labels to fit to: give "
            "config.perceptual.labels, or set logistic=published"
        )
    return [_target(model, _fitted(model, pictures, mos / 10.0), f"fitted to {len(mos)} images") for model in found]


def _fitted(model: Model, pictures: list[Picture], mos: np.ndarray) -> logistic.LogisticConstants:
    """The constants of the logistic map from the scores of the pictures to `mos` (0..10), to four digits.

    The last digits of scores depend on the number of cores, and what is kept would not count with other constants.
    """
    score = jax.jit(model.score_fn)
    scores = [float(score(as_floats(picture.pixels[None]))[0]) for picture in pictures]
    try:
        constants = logistic.fit_logistic(scores, mos, highest=HIGHEST, lowest=LOWEST)
        return logistic.LogisticConstants(*(float(f"{value:.4g}") for value in constants))
    except ValueError as error:
        raise UserError(f"config.perceptual.logistic is 'fitted', and {model.name} has no fit: {error}") from error


def _target(model: Model, constants: logistic.LogisticConstants | None, how: str) -> Target:
    if constants is None:
        score_fn, scale = Partial(_tenth, model.score_fn), "score / 10"
    else:
        score_fn = logistic.logistic(model.score_fn, constants)
        scale = f"10 / (1 + exp(-(score - {constants.center:.6g}) / {constants.scale:.6g})), {how}"
    depends = model.stamp if how == "published" else stamp(model=model.stamp, constants=constants)
    return Target(model.name, score_fn, depends, scale, model.network)


def _ma19(options: ml_collections.ConfigDict) -> Model:
    if not options.ma19_weights:
        raise UserError("the weights of ma19: --config.perceptual.ma19_weights=FILE is not given")
    config_model = config_lib.default().model
    config_model.name, config_model.score_mean, config_model.score_std = "ma19", 0.0, 1.0
    config_model.sort_mask.rate = 0.0
    module = models.create(config_model)
    variables = models.initialize(module, jax.random.key(0), 32)
    variables = models.load_weights(
        variables, options.ma19_weights, config_model=config_model, field="config.perceptual.ma19_weights"
    )
    score_fn = models.score_fn(module, variables)
    return Model("ma19", score_fn, stamp(model="ma19", score_fn=score_fn), logistic.MA19, "ma19")


def _brisque(options: ml_collections.ConfigDict) -> Model:
    if not options.brisque_svr:
        raise UserError("the regression of brisque: --config.perceptual.brisque_svr=FILE is not given")
    svr = brisque.load_svr(options.brisque_svr, ranges=options.brisque_ranges or None, rho=options.brisque_rho or None)
    conventions = options.brisque_conventions  # the original regression predicts DMOS: the higher the worse
    score_fn = brisque.score_fn(svr, conventions=conventions, negate=conventions == "mittal2012")
    return Model("brisque", score_fn, stamp(model="brisque", score_fn=score_fn), logistic.BRISQUE, "brisque")


def _trained(name: str) -> Model:
    """A model of a run of `cprl_jax.main`: 'run:FOLDER:METHOD'; of Causal-IQA 'run:FOLDER:UPDATE' or UPDATE/seed-K."""
    folder, _, method = name.removeprefix("run:").rpartition(":")
    if not folder:
        raise UserError(
            f"config.perceptual.models names {name!r}; write run:FOLDER:METHOD, such as run:runs/livec:cprl"
        )
    run = user_path(folder, field="config.perceptual.models")
    if not os.path.isfile(run / "config.json"):
        hint = "; `make quickstart` trains it" if run.name == "quickstart" else ""
        raise UserError(f"config.perceptual.models: there is no run in {run}{hint}")
    config = config_lib.read_config(run)
    try:
        method = config_lib.method_of(config, method, run)
    except UserError as error:
        raise UserError(f"config.perceptual.models names {name!r}: {error}") from None
    module, variables = trained_model(config, method, run)
    score_fn = models.score_fn(module, variables)
    network = config.model.name if method == "plain" else ""
    return Model(f"{run.resolve().name}-{method}", score_fn, stamp(module=module, variables=variables), None, network)


def _tenth(score_fn: Callable, images: Array) -> Array:
    return score_fn(images) / 10.0


def read_fidelities(config: ml_collections.ConfigDict) -> list[Fidelity]:
    """The distances of config.perceptual.fidelities; raises UserError for weights that are missing or do not fit."""
    options = config.perceptual
    fidelities = []
    for name in options.fidelities:
        settings = {"gray": "float"} if name == "ssim" and options.ssim_gray else {}
        deep = {"parameters": _deep_parameters(name, options)} if name in ("lpips", "dists") else {}
        distance = fidelity.distance(name, **settings, **deep)
        threshold = options.thresholds[name] / (255.0 if name == "chebyshev" else 1.0)
        fidelities.append(Fidelity(name, distance, threshold, stamp(name=name, settings=settings, distance=distance)))
    return fidelities


def _deep_parameters(name: str, options: ml_collections.ConfigDict) -> dict[str, Any]:
    if not options.vgg16_weights:
        raise UserError(
            f"the network of {name}: --config.perceptual.vgg16_weights=FILE is not given (torchvision's VGG-16; "
            "'random' tries the path out, without meaning)"
        )
    backbone = options.vgg16_weights
    if backbone == "random":
        backbone = fidelity.random_backbone(jax.random.key(0))
    try:
        if name == "lpips":
            return fidelity.lpips_parameters(backbone, heads=options.lpips_weights or None)
        return fidelity.dists_parameters(backbone, weights=options.dists_weights or None)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
