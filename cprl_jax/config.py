"""The defaults that every experiment starts from, and the checks that a configuration passes before anything runs.

A file of `configs/` calls `default()`, changes what its experiment needs and returns that from `get_config(argument)`.
Radii and epsilons are in units of 1/255 here (as in the papers' tables); in Python they are in [0, 1] pixel units.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from cprl_jax.errors import UserError

JOBS = ("train_and_evaluate", "train", "evaluate", "perceptual_attack", "causal_iqa", "leave_one_out")
METHODS = ("plain", "cprl", "at")
UPDATES = ("erm", "metaiqa", "cis", "cip")  # of Causal-IQA
DATASETS = (
    "embedded", "livec", "live", "vcl", "koniq", "tid2013", "kadid10k", "cid2013", "mlive", "own"
)  # fmt: skip
SPLITS = ("random", "official", "folds", "leave_one_distortion_out")
ATTACKS = ("none", "fgsm", "pgd")
FIDELITIES = ("chebyshev", "ssim", "lpips", "dists")  # of the perceptual attack
SCORE_MODELS = ("ma19", "brisque")  # its targets, besides models that were trained here


def default() -> ml_collections.ConfigDict:
    """Returns the configuration that every experiment starts from (fields are locked, values may change)."""
    config = ml_collections.ConfigDict()
    config.job = "train_and_evaluate"  # or "train", "evaluate" (again, from the workdir), "perceptual_attack"
    config.seed = 0  # of the split, the initial weights, the batches, the crops: everything random
    config.methods = ("plain", "cprl")  # trained and compared side by side; of METHODS
    config.compilation_cache = ""  # a folder that keeps compiled programs between runs ("" = none)

    config.dataset = dataset = ml_collections.ConfigDict()
    dataset.name = "embedded"  # of DATASETS; several joined by + are one
    dataset.manual_dir = ""  # holds the official release ("" = TFDS's manual directory); own: the images
    dataset.data_dir = ""  # where TFDS keeps the prepared records ("" = ~/tensorflow_datasets)
    dataset.labels = ""  # own: the CSV file `image,mos[,reference,...]` ("" = labels.csv in manual_dir)
    dataset.mos_worst = 0.0  # own: the ends of its scale; worst > best for labels that grow with the damage
    dataset.mos_best = 100.0
    dataset.koniq_scores = "zscore"  # koniq: MOS_zscore, or "mos" (1..5, stretched to 0..100)
    dataset.resize = 0  # pixels a side that all images are brought to; 0 = as they are
    dataset.cache = "memory"  # where decoded images stay, up to cache_gib; "disk" = all, in a mapped file
    dataset.cache_gib = 4.0
    dataset.split = "random"  # of SPLITS
    dataset.split_file = ""  # a split saved by an earlier run ("" = as `split` says)
    dataset.repeats = 1  # random: how many splits, with seeds seed, seed + 1, ...; the report gives median and spread
    dataset.test_fraction = 0.2  # of the scenes (random)
    dataset.validation_fraction = 0.1  # of the scenes that are not in the test part
    dataset.folds = 5
    dataset.fold = 0  # which of the folds is tested; -1 = each in turn
    dataset.held_out = ""  # leave_one_distortion_out: the distortion that is tested
    dataset.seed = 0  # embedded: of its scenes and noise; config.seed splits them
    dataset.image_size = 112  # embedded: height and width of its images, pixels
    dataset.scenes = 64  # embedded: how many scenes
    dataset.levels = 5  # embedded: levels of each distortion

    config.model = model = ml_collections.ConfigDict()
    model.name = "squeezenet"  # or "hyperiqa", "metaiqa", "resnet", "compact", "ma19"
    model.backbone = "resnet50"  # of hyperiqa, metaiqa, resnet: "resnet18", "resnet34", "resnet50"
    model.weights = ""  # published weights: a path (.npz, .safetensors, .pth) or a Hugging Face owner/name[:file]
    model.dtype = "float32"  # of the computation; "bfloat16" is faster on GPU and TPU (parameters stay float32)
    model.dropout = 0.0  # before the last layer of resnet, squeezenet and compact
    model.score_mean = 50.0  # score = score_mean + score_std * output of the network
    model.score_std = 20.0
    model.sort_mask = ml_collections.ConfigDict()
    model.sort_mask.rate = 0.1  # share of the values nearest to the mean that is masked; only methods that ask for it
    model.sort_mask.min_channels = 128  # input channels from which on a convolution is masked
    model.sort_mask.stages = (2, 3)  # stages of the backbone whose convolutions (larger than 1x1) are masked
    model.sort_mask.selection = "fast"  # or "top_k", the literal definition (same masks, much slower)

    config.train = train = ml_collections.ConfigDict()
    train.batch_size = 16  # images a step, over all devices and processes
    train.crop_size = 224  # pixels
    train.steps = 0  # optimiser steps; 0 = epochs * crops_per_epoch * images / batch_size
    train.epochs = 16
    train.crops_per_epoch = 25  # random crops of each training image in an epoch
    train.mos_loss = "l1"  # or "l2", "huber"; in MOS points
    train.huber_delta = 10.0  # MOS points
    train.correlation_weight = 0.0  # weight of (1 - PLCC of the batch), which does not depend on the scores' scale
    train.backbone_learning_rate = 2e-5  # Adam
    train.head_learning_rate = 2e-4
    train.weight_decay = 0.0  # added to the gradient, before Adam's moments
    train.schedule = "constant"  # or "cosine" (to 2 % of the peak)
    train.warmup_steps = 0  # linear, from 0
    train.clip_norm = 0.0  # of the whole gradient; 0 = off
    train.ema_decay = 0.0  # evaluate an exponential moving average of the parameters; 0 = off
    train.evaluate_every = 0  # steps between validations and checkpoints; 0 = a twentieth of the run
    train.validation_crops = 2  # a validation image
    train.workers = 0  # threads that make batches; 0 = one a core
    train.crop_on = "auto"  # "host", or "device": images live in the accelerator's memory (auto: there, if they fit)

    config.plain = _method(sort_mask=False)

    config.cprl = cprl = _method(sort_mask=True)
    cprl.weight = 1.0  # of the invariance loss beside the MOS loss
    cprl.warmup_steps = 0  # the weight and epsilon grow linearly from 0 over these steps
    cprl.epsilon = 2.0  # 1/255; |alpha| <= epsilon, also the radius r of the ball
    cprl.alphas = 2  # magnitudes drawn per image and step
    cprl.alpha_law = "uniform"  # on [-epsilon, epsilon] (the paper), or "edge": always epsilon
    cprl.direction_steps = 1  # 1 = the sign of the gradient (the paper); more = ascent with a random start
    cprl.norm = "absolute"  # or "squared"
    cprl.relative = False  # divide by the spread of the batch's scores: squashing them does not pay then
    cprl.mos_loss_on_interventions = 0.0  # weight of the MOS loss on the perturbed images

    config.at = at = _method(sort_mask=False)
    at.epsilon = 2.0  # 1/255
    at.weight = 0.5  # of the attacked images' MOS loss; the clean images' has 1 - weight

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.checkpoint = "best"  # on the validation part, or "last"
    evaluation.crop_size = 224  # pixels
    evaluation.crops_drawn = 25  # crops a test image, drawn once from the seed and saved
    evaluation.crops = 25  # how many of them are scored and attacked (their mean is the image's score)
    evaluation.batch_size = 16  # crops at once, a device
    evaluation.datasets = ()  # other data sets to test on (of DATASETS, in dataset.manual_dir), "own:FOLDER"
    evaluation.attacks = ("fgsm", "pgd")
    evaluation.radii = (0.5, 1.0, 2.0, 4.0)  # 1/255
    evaluation.pgd_steps = 10
    evaluation.mid = 50.0  # scores above it are pushed down, the others up
    evaluation.resamples = 1000  # of the bootstrap over test images
    evaluation.examples = 3  # images shown in the report
    evaluation.example_radius = 2.0  # 1/255; of the shown images (PGD)
    evaluation.trust_images = 8  # test images for the checks for masked gradients; 0 = no checks
    evaluation.trust_radius = 2.0  # 1/255
    evaluation.trust_queries = 100  # of their black-box attack; 0 = without it
    evaluation.landscape_points = 15  # along a side of the score landscape of one test image, odd; 0 = no landscape
    evaluation.landscape_extent = 4.0  # 1/255; half a side

    config.causal_iqa = causal_iqa = ml_collections.ConfigDict()  # of the jobs "causal_iqa" and "leave_one_out"
    causal_iqa.updates = ("erm", "cis", "cip")  # compared; of UPDATES
    causal_iqa.seeds = 1  # trainings of each: config.seed, config.seed + 1, ...
    causal_iqa.clusters = 2  # q, of content
    causal_iqa.content = True  # False: subsets by distortion alone (ablation "\c" of the paper)
    causal_iqa.levels = False  # True: subsets by level as well ("+L")
    causal_iqa.features_of = "references"  # what is clustered: undistorted photographs, or "images"
    causal_iqa.reduction = "pca"  # of their features, to `dimensions`; "tsne" (the paper) or "none"
    causal_iqa.dimensions = 10
    causal_iqa.smallest_subset = 8  # images; smaller ones are joined
    causal_iqa.batch_size = 8  # images of a subset in an inner step
    causal_iqa.meta_steps = 0  # 0 = as many as `epochs` of the training images take
    causal_iqa.epochs = 100
    causal_iqa.loss = "l1"  # or "l2"
    causal_iqa.inner_optimizer = "adam"  # or "sgd"
    causal_iqa.inner_state = "kept"  # from one meta step to the next, or "reset"
    causal_iqa.backbone_learning_rate = 1e-4  # of the inner steps
    causal_iqa.head_learning_rate = 1e-4
    causal_iqa.decay = 0.8  # of both, every `decay_epochs`
    causal_iqa.decay_epochs = 10
    causal_iqa.beta2 = 0.9999  # of Adam in the inner steps
    causal_iqa.meta_update = "interpolation"  # theta + meta_rate (phi - theta); "adam" takes theta - phi as gradient
    causal_iqa.meta_rate = 0.5
    causal_iqa.meta_beta2 = 0.9999
    causal_iqa.evaluate_every = 0  # meta steps between checkpoints; 0 = a tenth of the run
    causal_iqa.held_out = ()  # leave_one_out: these distortions, () = each one
    causal_iqa.saliency = 4  # test images of the saliency figure

    config.perceptual = perceptual = ml_collections.ConfigDict()  # of the job "perceptual_attack"
    perceptual.models = ()  # attacked: "ma19", "brisque", or "run:FOLDER:METHOD" for a model that was trained here
    perceptual.ma19_weights = ""  # of Ma19: a path or a Hugging Face owner/name[:file]
    perceptual.brisque_svr = ""  # BRISQUE's trained regression (libsvm, in .mat or .npz)
    perceptual.brisque_ranges = ""  # the file with the ranges of its features ("" = the same file)
    perceptual.brisque_rho = 0.0  # its offset, for a file that does not have it; 0 = the file has it
    perceptual.fidelities = ("chebyshev", "ssim")  # of FIDELITIES
    perceptual.ssim_gray = False  # SSIM of grey images, as the paper says; its code takes each colour by itself
    perceptual.vgg16_weights = ""  # of LPIPS and DISTS: torchvision's VGG-16, or "random" to try the path out
    perceptual.lpips_weights = ""  # the published linear weights ("" = all channels alike)
    perceptual.dists_weights = ""  # the published alpha and beta ("" = all channels alike)
    perceptual.images = ""  # a folder of image files ("" = the images of config.dataset; of "embedded" the photographs)
    perceptual.labels = ""  # a CSV file `image,mos` with the MOS (0..100) of that folder's images ("" = none)
    perceptual.count = 12  # images, evenly over their MOS (over their names where there is none); 0 = all
    perceptual.height = 0  # pixels that images are resized to, upright ones on their side; 0 = as they are
    perceptual.width = 0
    perceptual.multipliers = 32  # candidates: how many of the published multipliers, evenly spread over their list
    perceptual.steps = 200
    perceptual.step_size = 1e-3  # in [0, 1] pixel units, as in the paper
    perceptual.norm = "linf"  # of a step; "l2" = as the paper says for all fidelities but Chebyshev's
    perceptual.chebyshev_radius = 8.0  # 1/255; the candidates under Chebyshev get radii up to it, in equal parts
    perceptual.at_once = 0  # candidates computed together; 0 = one on a CPU (caches like it), else all
    perceptual.selection = "threshold"  # of the counterexample: the largest change of score among the invisible
    perceptual.thresholds = thresholds = ml_collections.ConfigDict()  # the largest distance that counts as invisible
    thresholds.chebyshev = 4.0  # 1/255; the paper: nearly all changes that its observers missed were smaller
    thresholds.ssim = 0.02  # 1 - SSIM; this one and the next two are ours
    thresholds.lpips = 0.03
    thresholds.dists = 0.03
    perceptual.logarithm = "e"  # the base of R's logarithm: "e", "2" or "10"
    perceptual.examples = 2  # images shown in the report, for each model and fidelity
    return config


def _method(*, sort_mask: bool) -> ml_collections.ConfigDict:
    """The fields that every method has."""
    method = ml_collections.ConfigDict()
    method.start_from = "weights"  # or "plain": the parameters that the plain model ended with
    method.steps = 0  # 0 = as config.train says, here and in the next two
    method.batch_size = 0
    method.crop_size = 0
    method.sort_mask = sort_mask
    method.validation_radius = 0.0  # 1/255; > 0: the best checkpoint is chosen by the mean of clean and attacked SRCC
    return method


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """Returns the methods as a tuple, or raises UserError for an unknown, repeated or missing one."""
    for method in methods:
        if method not in METHODS:
            raise UserError(f"unknown method {method!r}{near(method, METHODS)}; allowed: {listed(METHODS)}")
    if not methods or len(set(methods)) != len(methods):
        raise UserError(f"methods {'+'.join(methods)!r}: name each method once; allowed: {listed(METHODS)}")
    return tuple(methods)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks every field that can be checked without reading data.

    Raises:
      UserError: naming the field, its value and what is allowed.
    """
    check_methods(config.methods)
    choices = {
        "job": JOBS,
        "dataset.koniq_scores": ("zscore", "mos"),
        "dataset.cache": ("memory", "disk"),
        "dataset.split": SPLITS,
        "train.crop_on": ("auto", "host", "device"),
        "model.name": ("hyperiqa", "metaiqa", "resnet", "squeezenet", "compact", "ma19"),
        "model.backbone": ("resnet18", "resnet34", "resnet50"),
        "model.dtype": ("float32", "bfloat16"),
        "model.sort_mask.selection": ("fast", "top_k"),
        "train.mos_loss": ("l1", "l2", "huber"),
        "train.schedule": ("constant", "cosine"),
        "plain.start_from": ("weights",),
        "cprl.start_from": ("weights", "plain"),
        "at.start_from": ("weights", "plain"),
        "cprl.alpha_law": ("uniform", "edge"),
        "cprl.norm": ("absolute", "squared"),
        "evaluation.checkpoint": ("best", "last"),
        "perceptual.norm": ("linf", "l2"),
        "perceptual.selection": ("threshold",),
        "perceptual.logarithm": ("e", "2", "10"),
    }
    for field, allowed in choices.items():
        value = lookup(config, field)
        if value not in allowed:
            raise UserError(f"config.{field} is {value!r}{near(value, allowed)}; allowed: {listed(allowed)}")
    at_least = {
        1: (
            "dataset.levels", "dataset.repeats", "train.batch_size", "train.crop_size", "train.epochs",
            "train.crops_per_epoch", "train.validation_crops", "cprl.alphas", "cprl.direction_steps",
            "evaluation.crop_size", "evaluation.crops", "evaluation.batch_size", "evaluation.pgd_steps",
            "evaluation.resamples", "perceptual.multipliers", "perceptual.steps",
        ),
        0: (
            "seed", "dataset.cache_gib", "dataset.resize", "train.workers",
            "model.dropout", "model.score_std", "model.sort_mask.rate", "train.steps", "train.warmup_steps",
            "train.weight_decay", "train.clip_norm", "train.ema_decay", "train.evaluate_every", "plain.steps",
            "plain.batch_size", "plain.crop_size", "cprl.steps", "cprl.batch_size", "cprl.crop_size", "at.steps",
            "at.batch_size", "at.crop_size", "cprl.weight", "cprl.warmup_steps", "cprl.epsilon", "at.epsilon",
            "at.weight", "evaluation.examples", "evaluation.trust_images", "evaluation.trust_queries",
            "evaluation.landscape_points", "perceptual.count", "perceptual.height", "perceptual.width",
            "perceptual.step_size", "perceptual.chebyshev_radius", "perceptual.at_once", "perceptual.examples",
            *(f"perceptual.thresholds.{name}" for name in FIDELITIES),
        ),
    }  # fmt: skip
    for bound, fields in at_least.items():
        for field in fields:
            if not lookup(config, field) >= bound:
                raise UserError(f"config.{field} is {lookup(config, field)}; it must be at least {bound}")
    for field in ("model.dropout", "model.sort_mask.rate", "train.ema_decay", "dataset.test_fraction",
                  "dataset.validation_fraction"):  # fmt: skip
        if not lookup(config, field) < 1:
            raise UserError(f"config.{field} is {lookup(config, field)}; it must be below 1")
    for attack in config.evaluation.attacks:
        if attack not in ATTACKS[1:]:
            raise UserError(f"config.evaluation.attacks names {attack!r}; allowed: {listed(ATTACKS[1:])}")
    if any(radius <= 0 or radius > 255 for radius in config.evaluation.radii):
        raise UserError(
            f"config.evaluation.radii is {tuple(config.evaluation.radii)}; each is in (0, 255], units of 1/255"
        )
    for field in ("evaluation.trust_radius", "evaluation.landscape_extent"):
        if not 0 < lookup(config, field) <= 255:
            raise UserError(f"config.{field} is {lookup(config, field)}; it must be in (0, 255], units of 1/255")
    points = config.evaluation.landscape_points
    if points == 1 or (points and points % 2 == 0):
        raise UserError(f"config.evaluation.landscape_points is {points}; it must be odd and at least 3, or 0 for none")
    if config.evaluation.crops > config.evaluation.crops_drawn:
        raise UserError(
            f"config.evaluation.crops is {config.evaluation.crops}, more than the {config.evaluation.crops_drawn} that "
            "are drawn (config.evaluation.crops_drawn)"
        )
    _validate_dataset(config)
    _validate_perceptual(config)
    for method in config.methods:
        if config[method].start_from == "plain" and "plain" not in config.methods:
            raise UserError(
                f"config.{method}.start_from is 'plain', but the methods are {'+'.join(config.methods)}: add plain, or "
                f"set --config.{method}.start_from=weights"
            )


def _validate_dataset(config: ml_collections.ConfigDict) -> None:
    dataset = config.dataset
    names = dataset.name.split("+")
    for name in names:
        if name not in DATASETS:
            raise UserError(f"config.dataset.name is {name!r}{near(name, DATASETS)}; allowed: {listed(DATASETS)}")
    if len(set(names)) < len(names):
        raise UserError(f"config.dataset.name is {dataset.name!r}; name each set once")
    if dataset.mos_worst == dataset.mos_best:
        raise UserError(
            f"config.dataset.mos_worst and mos_best are both {dataset.mos_best}; they are the two ends of the scale"
        )
    if dataset.folds < 2 or not -1 <= dataset.fold < dataset.folds:
        raise UserError(
            f"config.dataset.fold is {dataset.fold} of {dataset.folds} folds; there are at least 2, numbered from 0 "
            "(-1 = each in turn)"
        )
    if dataset.split == "leave_one_distortion_out" and not dataset.held_out:
        raise UserError("config.dataset.held_out is empty; name the distortion that is left out of training")
    if dataset.repeats > 1 and (dataset.split != "random" or dataset.split_file):
        raise UserError(
            f"config.dataset.repeats is {dataset.repeats}, which draws random splits; use it with "
            "config.dataset.split=random and without config.dataset.split_file"
        )
    for name in config.evaluation.datasets:
        known = [other for other in DATASETS if other not in ("embedded", "own")]
        if name not in known and not name.startswith("own:"):
            raise UserError(
                f"config.evaluation.datasets names {name!r}{near(name, known)}; allowed: {listed(known)}, own:FOLDER"
            )


def _validate_perceptual(config: ml_collections.ConfigDict) -> None:
    perceptual = config.perceptual
    for name in perceptual.fidelities:
        if name not in FIDELITIES:
            raise UserError(
                f"config.perceptual.fidelities names {name!r}{near(name, FIDELITIES)}; allowed: {listed(FIDELITIES)}"
            )
    for name in perceptual.models:
        if name not in SCORE_MODELS and not name.startswith("run:"):
            raise UserError(
                f"config.perceptual.models names {name!r}{near(name, SCORE_MODELS)}; allowed: "
                f"{listed(SCORE_MODELS)}, run:FOLDER:METHOD"
            )
    for field in ("models", "fidelities"):
        names = perceptual[field]
        if len(set(names)) != len(names) or (config.job == "perceptual_attack" and not names):
            raise UserError(f"config.perceptual.{field} is {tuple(names)}; name at least one, and each once")
    if (perceptual.height > 0) != (perceptual.width > 0):
        raise UserError(
            f"config.perceptual.height is {perceptual.height} and .width is {perceptual.width}; give both, or 0 for "
            "both to leave images as they are"
        )
    if perceptual.labels and not perceptual.images:
        raise UserError("config.perceptual.labels is for a folder of images: give config.perceptual.images too")


def lookup(config: ml_collections.ConfigDict, field: str):
    """The value of a dotted field name."""
    for part in field.split("."):
        config = config[part]
    return config


def to_json(config: ml_collections.ConfigDict) -> str:
    """The whole configuration as readable JSON (tuples become lists), the same text for the same values."""
    return json.dumps(json.loads(config.to_json_best_effort()), indent=2, sort_keys=True)


def read_config(run: Path) -> ml_collections.ConfigDict:
    """The configuration of a run, from the config.json in its folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    try:
        return ml_collections.ConfigDict(json.loads((run / "config.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{run} is not the folder of a run: config.json cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{run / 'config.json'} is damaged ({error})") from None


def method_of(config: ml_collections.ConfigDict, method: str, run: Path) -> str:
    """The method that is meant in a run: the named one; for '' cprl where it was trained, else the last.

    Raises:
      UserError: a method that the run did not train.
    """
    methods = tuple(config.methods)
    if method and method not in methods:
        raise UserError(f"method {method!r} was not trained in {run}; there are {', '.join(methods)}")
    return method or ("cprl" if "cprl" in methods else methods[-1])


def differences(old: Mapping, new: Mapping, prefix: str = "") -> list[str]:
    """Lists the fields in which two configurations (parsed JSON) differ, as 'field: old -> new'."""
    found = []
    for key in sorted(set(old) | set(new)):
        before, after = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} -> {after}")
    return found


def listed(names) -> str:
    """Names, for an error message."""
    return ", ".join(str(name) for name in names)


def near(word, names) -> str:
    """' (did you mean ...?)' where one of the names is like the word, else ''."""
    match = difflib.get_close_matches(str(word), [str(name) for name in names], n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
