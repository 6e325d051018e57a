"""Every field of a configuration: its default, its bounds, its unit and its meaning.

Methods, networks and table attacks bring the fields that they declare. Radii are in units of 1/255 here (as in the
papers' tables); in Python they are in [0, 1] pixel units.
"""

from collections.abc import Mapping

from cprl_jax import data
from cprl_jax.config.field import Field, flatten
from cprl_jax.data import splits
from cprl_jax.data.weak_labels import RULES as LABEL_RULES
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.methods import METHODS
from cprl_jax.models import NETWORKS
from cprl_jax.models.brisque import CONVENTIONS

JOBS = ("train_and_evaluate", "train", "evaluate", "paper_table", "perceptual_attack", "causal_iqa", "leave_one_out")
UPDATES = ("erm", "metaiqa", "cis", "cip")
FIDELITIES = ("chebyshev", "ssim", "lpips", "dists")
SCORE_MODELS = ("ma19", "brisque")
PUBLISHED_DATASETS = ("vcl", "live", "livec", "koniq")  # of CPRL's Table 3

_DATASET = {
    "name": Field("embedded", "of data.DATASETS; several joined by + are one"),
    "manual_dir": Field("", "holds the official release ('' = TFDS's manual directory); own: the images"),
    "data_dir": Field("", "where TFDS keeps the prepared records ('' = ~/tensorflow_datasets)"),
    "labels": Field("", "own: the CSV file `image,mos[,reference,...]` ('' = labels.csv in manual_dir)"),
    "mos_worst": Field(0.0, "own: the ends of its scale; worst > best for labels that grow with the damage"),
    "mos_best": Field(100.0),
    "photographs": Field("", "distorted: the folder of undistorted photographs that it is made from"),
    "distortions": Field((), "distorted: of data.distortions, () = noise, blur, JPEG and JPEG 2000"),
    "label": Field("mean", "distorted: the full-reference rule that labels its images", choices=tuple(LABEL_RULES)),
    **data.FIELDS,
    "resize": Field(0, "a side that all images are brought to; 0 = as they are", "pixels", at_least=0),
    "cache": Field(
        "memory", "decoded images stay there, up to cache_gib, or in a mapped file", choices=("memory", "disk")
    ),
    "cache_gib": Field(4.0, "", "GiB", at_least=0),
    "split": Field("random", "how the images are divided", choices=splits.SPLITS),
    "split_file": Field("", "a split saved by an earlier run ('' = as `split` says)"),
    "split_files": Field((), "saved splits, each in turn; the report gives medians"),
    "repeats": Field(1, "random splits, with seeds seed, seed + 1, ...; the report gives medians", at_least=1),
    "test_fraction": Field(0.2, "of the scenes (random)", at_least=0, below=1),
    "validation_fraction": Field(0.1, "of the scenes that are not in the test part", at_least=0, below=1),
    "folds": Field(5, "", at_least=2),
    "fold": Field(0, "which of the folds is tested; -1 = each in turn", at_least=-1),
    "held_out": Field("", "leave_one_distortion_out: the distortion that is tested"),
    "seed": Field(0, "embedded: of its scenes and noise; config.seed splits them", at_least=0),
    "image_size": Field(112, "embedded: height and width of its images", "pixels", at_least=16),
    "scenes": Field(64, "embedded: how many scenes", at_least=1),
    "levels": Field(5, "embedded: levels of each distortion", at_least=1, at_most=5),
}

_MODEL = {
    "name": Field("squeezenet", "the network", choices=tuple(NETWORKS)),
    "backbone": Field("", "the trunk of a network that has several ('' = the network's usual one)"),
    "weights": Field(
        "", "file (.npz, .safetensors, torch.save), Hugging Face owner/name[:file], or 'imagenet'; '' = random"
    ),
    "dtype": Field("float32", "computation in training; models are judged in float32", choices=("float32", "bfloat16")),
    "dropout": Field(0.0, "in the head of the network, where it has a place for it", at_least=0, below=1),
    "score_mean": Field(50.0, "score = score_mean + score_std * output of the network"),
    "score_std": Field(20.0, "", "MOS points", above=0),
    "sort_mask": {
        "rate": Field(0.1, "share of the values nearest to the mean that is masked", at_least=0, below=1),
        "min_channels": Field(0, "input channels from which on a convolution is masked; 0 = the network's", at_least=0),
        "stages": Field((), "stages of the trunk whose convolutions are masked; () = the network's", at_least=0),
        "selection": Field("fast", "or 'top_k', literal: same masks, much slower", choices=("fast", "top_k")),
    },
}

_TRAIN = {
    "batch_size": Field(16, "images a step, over all devices and processes", at_least=1),
    "crop_size": Field(224, "", "pixels", at_least=1),
    "scales": Field((1.0,), "each training image is used at all of these; below 1 it is shrunk", above=0),
    "steps": Field(0, "optimiser steps; 0 = epochs * crops_per_epoch * images / batch_size", at_least=0),
    "epochs": Field(16, "", at_least=1),
    "crops_per_epoch": Field(25, "random crops of each training image in an epoch", at_least=1),
    "mos_loss": Field(
        "l1", "between scores and MOS; 'fidelity' is of pairs", choices=("l1", "l2", "huber", "fidelity")
    ),
    "huber_delta": Field(10.0, "where 'huber' turns from quadratic to linear", "MOS points", above=0),
    "fidelity_std": Field(
        20.0, "of a score and of a label, for the probabilities of 'fidelity'", "MOS points", above=0
    ),
    "correlation_weight": Field(0.0, "weight of 1 - PLCC of the batch, free of the scores' scale", at_least=0),
    "backbone_learning_rate": Field(2e-5, "Adam", at_least=0),
    "head_learning_rate": Field(2e-4, "", at_least=0),
    "weight_decay": Field(0.0, "added to the gradient, before Adam's moments", at_least=0),
    "frozen": Field(
        (),
        "parts of the names of parameters that are not trained, such as 'depthwise_conv.kernel'; their gradients are "
        "not computed",
    ),
    "schedule": Field("constant", "or 'cosine' (to 2 % of the peak)", choices=("constant", "cosine")),
    "warmup_steps": Field(0, "of the learning rates, linear from 0", at_least=0),
    "clip_norm": Field(0.0, "largest norm of the whole gradient; 0 = any", at_least=0),
    "ema_decay": Field(0.0, "averages parameters and batch statistics for evaluation; 0 = off", at_least=0, below=1),
    "evaluate_every": Field(0, "steps between validations and checkpoints; 0 = a twentieth of the run", at_least=0),
    "validation_crops": Field(2, "a validation image", at_least=1),
    "pristine": Field(
        "", "a folder of undistorted photographs, for networks that are fitted to some ('' = the training scenes')"
    ),
    "workers": Field(0, "threads that make batches; 0 = one a core", at_least=0),
    "crop_on": Field(
        "auto", "where crops are cut; auto: on the devices, if images fit", choices=("auto", "host", "device")
    ),
}

_EVALUATION = {
    "checkpoint": Field("best", "on the validation part, or the 'last'", choices=("best", "last")),
    "crop_size": Field(224, "", "pixels", at_least=1),
    "crops": Field(25, "crops a test image that are scored and attacked (their mean is the image's score)", at_least=1),
    "batch_size": Field(16, "crops at once, a device", at_least=1),
    "datasets": Field((), "other data sets to test on (of data.DATASETS, in dataset.manual_dir), 'own:FOLDER'"),
    "attacks": Field(("fgsm", "pgd"), "of the table", choices=tuple(ATTACKS)),
    "radii": Field((0.5, 1.0, 2.0, 4.0), "of the attacks", "1/255", above=0, at_most=255),
    "pgd_steps": Field(10, "gradient steps of PGD", at_least=1),
    "mid": Field(50.0, "scores above it are pushed down, the others up"),
    "baseline": Field("", "the method that the others are compared with ('' = plain_longer, else plain or the first)"),
    "resamples": Field(1000, "of the bootstrap over test images", at_least=1),
    "examples": Field(3, "images shown in the report", at_least=0),
    "example_radius": Field(2.0, "of the shown images (PGD)", "1/255", above=0, at_most=255),
    "trust_images": Field(8, "test images for the checks for masked gradients; 0 = no checks", at_least=0),
    "trust_radius": Field(2.0, "", "1/255", above=0, at_most=255),
    "trust_queries": Field(100, "of their black-box attack; 0 = without it", at_least=0),
    "landscape_points": Field(15, "along a side of the score landscape of one test image, odd; 0 = none", at_least=0),
    "landscape_extent": Field(4.0, "half a side", "1/255", above=0, at_most=255),
    "certify": {
        "samples": Field(0, "scores under noise for each image's certificate; 1000 is usual; 0 = none", at_least=0),
        "sigma": Field(0.12, "standard deviation of the noise, in [0, 1] pixel units", above=0, at_most=1),
        "confidence": Field(0.999, "that both bounds of an image hold", above=0, below=1),
        "radii": Field((0.05, 0.25), "l2 lengths of the change of a crop, in [0, 1] pixel units", above=0),
        "images": Field(0, "test images, evenly over the ranks of their MOS", at_least=3, zero="all"),
        "attack_steps": Field(20, "gradient steps of the l2 attack", at_least=1),
        "attack_draws": Field(8, "of noise, whose mean score the attack follows", at_least=1),
    },
}

_PAPER_TABLE = {
    "number": Field(3, "of the table in CPRL's paper", choices=(3, 4, 5, 6)),
    "rows": Field((), "of that table, () = all: those of experiments/cprl/paper_tables.py"),
    "published": Field(
        "", "whose printed numbers stand beside ours ('' = config.dataset.name)", choices=("", *PUBLISHED_DATASETS)
    ),
    "weights": {
        name: Field("", f"where rows on {name} start, if config.model.name is another network; as config.model.weights")
        for name in NETWORKS
    },
}

_CAUSAL_IQA = {
    "updates": Field(("erm", "cis", "cip"), "compared", choices=UPDATES),
    "seeds": Field(1, "trainings of each: config.seed, config.seed + 1, ...", at_least=1),
    "clusters": Field(2, "q, of content", at_least=1),
    "content": Field(True, "False: subsets by distortion alone (ablation '\\c' of the paper)"),
    "levels": Field(False, "True: subsets by level as well ('+L')"),
    "features_of": Field(
        "references", "what is clustered: undistorted photographs or all images", choices=("references", "images")
    ),
    "reduction": Field("pca", "of the features, to `dimensions`; the paper: tsne", choices=("pca", "tsne", "none")),
    "dimensions": Field(10, "", at_least=1),
    "smallest_subset": Field(8, "images; smaller ones are joined", at_least=1),
    "batch_size": Field(8, "images of a subset in an inner step", at_least=1),
    "meta_steps": Field(0, "0 = as many as `epochs` of the training images take", at_least=0),
    "epochs": Field(100, "", at_least=1),
    "loss": Field("l1", "of an image", choices=("l1", "l2")),
    "inner_optimizer": Field("adam", "of the inner steps", choices=("adam", "sgd")),
    "inner_state": Field("kept", "from one meta step to the next, or 'reset'", choices=("kept", "reset")),
    "batch_norm": Field(
        "running", "statistics in inner steps: averages, or of the batch", choices=("running", "batch")
    ),
    "backbone_learning_rate": Field(1e-4, "of the inner steps", at_least=0),
    "head_learning_rate": Field(1e-4, "", at_least=0),
    "decay": Field(0.8, "of both, every `decay_epochs`", above=0, at_most=1),
    "decay_epochs": Field(10, "", at_least=1),
    "beta2": Field(0.9999, "of Adam in the inner steps", at_least=0, below=1),
    "meta_update": Field("interpolation", "how theta follows phi, by meta_rate", choices=("interpolation", "adam")),
    "meta_rate": Field(0.5, "", above=0),
    "meta_beta2": Field(0.9999, "", at_least=0, below=1),
    "evaluate_every": Field(0, "meta steps between checkpoints; 0 = a tenth of the run", at_least=0),
    "held_out": Field((), "leave_one_out: these distortions, () = each one"),
    "saliency": Field(4, "test images of the saliency figure", at_least=0),
}

_PERCEPTUAL = {
    "models": Field((), "attacked: 'ma19', 'brisque', or 'run:FOLDER:METHOD' for a model that was trained here"),
    "ma19_weights": Field("", "of Ma19: a path or a Hugging Face owner/name[:file]"),
    "brisque_svr": Field("", "BRISQUE's trained regression (libsvm's text, .mat or .npz)"),
    "brisque_ranges": Field("", "the file with the ranges of its features ('' = the same file)"),
    "brisque_conventions": Field(
        "zhang2022",
        "of its features; 'mittal2012' for LIVE's regression, whose scores are negated",
        choices=CONVENTIONS,
    ),
    "brisque_rho": Field(0.0, "its offset, for a file that does not have it; 0 = the file has it"),
    "logistic": Field(
        "published",
        "how scores come to 0..10: by the published maps of ma19 and brisque (a run's scores are divided by 10), or by "
        "maps that are 'fitted' to MOS",
        choices=("published", "fitted"),
    ),
    "logistic_images": Field(200, "fitted: images, evenly over their MOS; 0 = all", at_least=0),
    "fidelities": Field(("chebyshev", "ssim"), "that measure the change", choices=FIDELITIES),
    "ssim_gray": Field(False, "SSIM of grey images, as the paper says; its code takes each colour by itself"),
    "vgg16_weights": Field("", "of LPIPS and DISTS: torchvision's VGG-16, or 'random' to try the path out"),
    "lpips_weights": Field("", "the published linear weights ('' = all channels alike)"),
    "dists_weights": Field("", "the published alpha and beta ('' = all channels alike)"),
    "images": Field("", "a folder of image files ('' = those of config.dataset; of 'embedded' the photographs)"),
    "labels": Field("", "a CSV file `image,mos` with the MOS (0..100) of that folder's images ('' = none)"),
    "count": Field(12, "images, evenly over their MOS (over their names where there is none); 0 = all", at_least=0),
    "height": Field(0, "images are resized to it, upright ones on their side; 0 = as they are", "pixels", at_least=0),
    "width": Field(0, "", "pixels", at_least=0),
    "multipliers": Field(32, "candidates: how many of the published multipliers, evenly over their list", at_least=1),
    "steps": Field(200, "", at_least=1),
    "step_size": Field(1e-3, "in [0, 1] pixel units, as in the paper", at_least=0),
    "norm": Field("linf", "of a step; the paper: l2 for all fidelities but Chebyshev's", choices=("linf", "l2")),
    "chebyshev_radius": Field(8.0, "largest radius of the candidates under Chebyshev", "1/255", at_least=0),
    "at_once": Field(0, "candidates computed together; 0 = one on a CPU (caches like it), else all", at_least=0),
    "selection": Field(
        "threshold",
        "who says what is invisible: a threshold on the distance, or the answers of observers (`cprl_jax.study`)",
        choices=("threshold", "observers"),
    ),
    "counted": Field("", "observers: the counted.csv of `cprl_jax.study analyse` ('' = that of the run's own study)"),
    "thresholds": {
        "chebyshev": Field(4.0, "largest distance that counts as invisible", "1/255", at_least=0),
        "ssim": Field(0.02, "1 - SSIM; this one and the next two are ours", at_least=0),
        "lpips": Field(0.03, "", at_least=0),
        "dists": Field(0.03, "", at_least=0),
    },
    "logarithm": Field("e", "the base of R's logarithm", choices=("e", "2", "10")),
    "examples": Field(2, "images shown in the report, for each model and fidelity", at_least=0),
}

FIELDS: Mapping[str, Field | Mapping] = {
    "job": Field("train_and_evaluate", "what is done", choices=JOBS),
    "dry_run": Field(False, "says what would be trained and attacked, and how long that takes; of CPRL's jobs"),
    "seed": Field(0, "of the split, the initial weights, the batches, the crops: everything random", at_least=0),
    "methods": Field(("plain", "cprl"), "trained and compared side by side", choices=tuple(METHODS)),
    "compilation_cache": Field("", "a folder that keeps compiled programs between runs ('' = none)"),
    "dataset": _DATASET,
    "model": _MODEL | {name: network.settings for name, network in NETWORKS.items() if network.settings},
    "train": _TRAIN,
    **{name: method.fields for name, method in METHODS.items()},
    "evaluation": _EVALUATION | {name: attack.settings for name, attack in ATTACKS.items() if attack.settings},
    "paper_table": _PAPER_TABLE,
    "causal_iqa": _CAUSAL_IQA,
    "perceptual": _PERCEPTUAL,
}
"""The tree of fields, as the configuration nests them."""

ALL: Mapping[str, Field] = flatten(FIELDS)
"""By dotted name: 'train.batch_size'."""

# A field belongs to one group. What does not train may differ between the commands that share a run's folder.
_TRAINS_TOO = ("evaluation.mid", "evaluation.crop_size")  # methods and validation read them
_JUDGES = ("evaluation", "perceptual", "causal_iqa", "paper_table", "job", "dry_run")
_PLACES = (
    "compilation_cache",
    "dataset.cache",
    "dataset.cache_gib",
    "dataset.data_dir",
    "dataset.manual_dir",
    "train.workers",
    "train.crop_on",
)


def group_of(name: str) -> str:
    """'trains': what a trained model depends on; 'judges': how it is looked at; 'places': where things are."""
    if within(name, _TRAINS_TOO):
        return "trains"
    return "judges" if within(name, _JUDGES) else "places" if within(name, _PLACES) else "trains"


def within(name: str, blocks: tuple[str, ...]) -> bool:
    """Whether a field is one of these fields, or in one of these blocks of fields."""
    return any(name == block or name.startswith(f"{block}.") for block in blocks)
