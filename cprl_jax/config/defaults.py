"""The defaults that every experiment starts from, and the configurations of runs.

A file of `configs/` calls `default()`, changes what its experiment needs and returns that from `get_config(argument)`.
Radii and epsilons are in units of 1/255 here (as in the papers' tables); in Python they are in [0, 1] pixel units.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from cprl_jax.runtime.errors import UserError

JOBS = ("train_and_evaluate", "train", "evaluate", "perceptual_attack", "causal_iqa", "leave_one_out")
METHODS = ("plain", "cprl", "at")
UPDATES = ("erm", "metaiqa", "cis", "cip")  # of Causal-IQA
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
    causal_iqa.batch_norm = "running"  # of inner steps: by averages over all subsets, or by their own "batch"
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
    """The folder, within that of a run, of the model that is meant.

    Args:
      config: of the run.
      method: one of its methods; '' = cprl where it was trained, else the last. Of a run of Causal-IQA, one of its
        updates ('cis'), which means its first seed, or 'cis/seed-3'.
      run: its folder, for messages.

    Raises:
      UserError: a method that the run did not train.
    """
    trained = tuple(config.methods)
    if config.job == "causal_iqa":
        seeds = range(config.seed, config.seed + config.causal_iqa.seeds)
        trained = tuple(f"{update}/seed-{seed}" for update in config.causal_iqa.updates for seed in seeds)
        method = f"{method}/seed-{config.seed}" if method and "/" not in method else method
    if method and method not in trained:
        raise UserError(f"method {method!r} was not trained in {run}; there are {', '.join(trained)}")
    return method or ("cprl" if "cprl" in trained else trained[-1])


def check_same_run(path: Path, config: ml_collections.ConfigDict, *, may_change: Sequence[str]) -> None:
    """Checks that the run whose config.json is at `path` is one of this configuration.

    Fields that a run of an earlier version does not know may have their default value now.

    Args:
      may_change: fields, or groups of fields, that may differ.

    Raises:
      UserError: naming the fields that differ.
    """
    old, new, defaults = (
        json.loads(text) for text in (path.read_text(encoding="utf-8"), to_json(config), to_json(default()))
    )
    as_by_default = {line for line in differences(old, defaults) if ": (absent) -> " in line}
    changed = [
        line
        for line in differences(old, new)
        if line not in as_by_default and not _is_of(line.partition(":")[0], may_change)
    ]
    if changed:
        raise UserError(
            f"{path.parent} holds a run of another configuration ({'; '.join(changed[:4])}"
            f"{'; ...' if changed[4:] else ''}); give another --workdir, or delete that folder"
        )


def _is_of(field: str, names: Sequence[str]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in names)


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
