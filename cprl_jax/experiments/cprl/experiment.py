"""The jobs of `cprl_jax.main`: every method of a configuration trained, attacked and reported side by side.

A run's folder holds: config.json, split.json and training.json (written once, at the start), one folder a method
(checkpoints/, metrics.csv, tensorboard/, weights.npz, evaluation/, zero_shot/, robustness.npz, certificates/) and
report/.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import UInt8

from cprl_jax import data, models
from cprl_jax.config import defaults as config_lib
from cprl_jax.data import splits
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset, listing
from cprl_jax.data.near_duplicates import warn_of_near_duplicates
from cprl_jax.evaluation import statistics, submitted, table_attacks, zero_shot
from cprl_jax.evaluation.table import evaluate, examples, score_rows, table_rows
from cprl_jax.experiments.cprl import findings, report
from cprl_jax.experiments.cprl.activations import activations
from cprl_jax.experiments.cprl.certificates import certificates
from cprl_jax.experiments.cprl.results import Results
from cprl_jax.experiments.cprl.robustness import integrals, robustness
from cprl_jax.experiments.cprl.training import check_training, train
from cprl_jax.methods import METHODS
from cprl_jax.methods import title as method_title
from cprl_jax.report.values import Row
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import check_workdir, user_path, write_file
from cprl_jax.runtime.program import show
from cprl_jax.training.data_record import check_training_data
from cprl_jax.training.history import read_history
from cprl_jax.training.setup import describe_budget, start_variables, trained_model, weights_file

JOBS = ("train_and_evaluate", "train", "evaluate")


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Runs config.job in `workdir`, going on where an earlier run with the same configuration stopped.

    Raises:
      UserError: a wrong configuration, data set, split or weights, before anything is written to `workdir`; or a
        `workdir` that holds the run of another configuration.
      TrainingDiverged: a loss became NaN or infinite.
    """
    workdir = user_path(workdir, field="workdir").resolve()
    started = time.monotonic()
    check_run(config, workdir)
    dataset = parallel.main_process_first(lambda: data.load(config.dataset))
    others = zero_shot.load_datasets(config)
    split = load_split(config, dataset, workdir)
    if config.model.weights and config.job != "evaluate":
        start_variables(config, config.methods[0], seed=config.seed)  # so that a wrong file is refused before training
    table_attacks.check(config.evaluation, config.methods)
    if config.job != "evaluate":
        for method in config.methods:
            check_training(config, method, split)
    if parallel.is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        if config.job != "evaluate":
            parts = {part: splits.rows(dataset, getattr(split, part)) for part in ("train", "validation")}
            check_training_data(workdir / "training.json", dataset, parts, weights=weights_file(config))
        if not (workdir / "split.json").exists():
            splits.save_split(split, workdir / "split.json")
        if config.job != "evaluate":  # which trains no method that the run does not have
            _write_config(config, workdir / "config.json")
        logging.info(
            "%s: %d training, %d validation and %d test images; methods %s; %d %s device(s)",
            dataset.name,
            *map(len, (split.train, split.validation, split.test)),
            ", ".join(config.methods),
            parallel.device_count(),
            parallel.platform(mapped=True),
        )
    parallel.barrier("workdir made")
    if config.job != "evaluate":
        for method in config.methods:
            train(config, method, dataset=dataset, split=split, workdir=workdir)
    if config.job != "train":
        results = evaluate_run(config, dataset, split, others, workdir)
        if results:
            show(report.terminal(results))
            show(f"\nReport: {workdir / 'report' / 'report.html'}   ({(time.monotonic() - started) / 60:.1f} minutes)")


def check_run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Raises UserError where `workdir` holds anything but a run of this version with this configuration, or nothing."""
    path = workdir / "config.json"
    if not path.exists():
        if config.job == "evaluate":
            raise UserError(f"there is no run in {workdir} to evaluate; train one first, or give its --workdir")
        check_workdir(workdir, entry="split.json", content="this run", folders=config.methods)
        return
    if (job := config_lib.read_config(workdir).job) not in JOBS:
        raise UserError(f"{workdir} holds a run of the job {job!r}; give another --workdir")
    if (workdir / "crops.json").exists():
        raise UserError(
            f"{workdir} holds a run of an earlier version, whose crops.json has the test crops at other places; give "
            "another --workdir"
        )
    known = config_lib.read_config(workdir).methods
    fixed = {*known, *(config[method].as_long_as for method in known)}
    # Methods start from the checkpoint of another one that this field means.
    start = () if config.job == "evaluate" else ("evaluation.checkpoint",)
    config_lib.check_same_run(
        path, config, fixed=start, free=("methods", *(method for method in METHODS if method not in fixed))
    )


def _write_config(config: ml_collections.ConfigDict, path: Path) -> None:
    """Keeps the configuration of a new run, or adds the methods that a run gets now."""
    known = tuple(config_lib.read_config(path.parent).methods) if path.exists() else ()
    if missing := tuple(method for method in config.methods if method not in known):
        config = config.copy_and_resolve_references()
        config.methods = known + missing
        write_file(path, config_lib.to_json(config))


def load_split(config: ml_collections.ConfigDict, dataset: QualityDataset, workdir: Path) -> splits.Split:
    """The split of a run: the one in its folder, or a new one, as config.dataset says.

    Raises:
      UserError: a split that does not fit the data set, has too few test images, or is no longer what config.dataset
        says (a warning for the job 'evaluate': the models are judged by the split that they were trained with).
    """
    path = workdir / "split.json"
    if path.exists():
        split = splits.load_split(path, dataset)
        if changed := splits.difference(split, config.dataset, dataset, seed=config.seed):
            if config.job != "evaluate":
                raise UserError(
                    f"{path}: {changed}; put it back, train in a new --workdir, or judge the models by the split that "
                    "they were trained with: --config.job=evaluate"
                )
            logging.warning("%s: %s; that of the run's folder counts", path, changed)
    else:
        split = splits.choose(config.dataset, dataset, seed=config.seed)
        if parallel.is_main_process():
            warn_of_near_duplicates(dataset, split)
    if len(split.test) < statistics.MIN_IMAGES:
        raise UserError(
            f"the test part of the split has {len(split.test)} images; a correlation needs at least "
            f"{statistics.MIN_IMAGES}"
        )
    return split


def crops_of_test_images(config: ml_collections.ConfigDict, dataset: QualityDataset, split: splits.Split) -> Crops:
    """Those of the test images, in the order of the split."""
    evaluation, rows = config.evaluation, splits.rows(dataset, split.test)
    return Crops(dataset, rows, crops=evaluation.crops, crop_size=evaluation.crop_size, seed=config.seed)


def evaluate_run(config: ml_collections.ConfigDict, dataset, split, others, workdir: Path) -> Results | None:
    """Attacks every method and writes report/; what it shows, in the main process alone."""
    evaluation, names = config.evaluation, list(split.test)
    places = {"crop_size": evaluation.crop_size, "seed": config.seed}
    test_rows, train_rows = splits.rows(dataset, names), splits.rows(dataset, split.train)
    crops, mos = crops_of_test_images(config, dataset, split), dataset.mos[test_rows]

    def training_crops(count: int) -> UInt8[np.ndarray, "count size size 3"]:
        chosen = np.random.default_rng(config.seed).permutation(train_rows)[:count]
        return Crops(dataset, chosen, crops=1, **places)[:][:, 0]

    networks = {method: trained_model(config, method, workdir) for method in config.methods}
    table, elsewhere, scores, shown, histories = [], [], [], [], {}
    for method, (module, variables) in networks.items():
        folder = workdir / method
        results = evaluate(
            config, method, networks, crops, mos, folder=folder / "evaluation", training_crops=training_crops
        )
        results |= submitted.evaluate(config, method, networks[method], results, names, crops, mos, run=workdir)
        table += table_rows(config, method, results, mos)
        elsewhere += zero_shot.evaluate(config, method, module, variables, others, folder=folder)
        scores += score_rows(method, results, names, mos)
        shown += examples(config, method, module, variables, crops, names, mos)
        histories[method] = read_history(folder)
    if not parallel.is_main_process():
        return None
    checked = []
    for method in networks:
        cache = workdir / method / "robustness.npz"
        checks = robustness(config, method, networks, crops, names, mos, cache=cache)
        channels = activations(config, networks[method], crops, mos, cache=workdir / method / "activations.npz")
        proved = certificates(config, networks[method], crops, names, mos, folder=workdir / method / "certificates")
        checked.append(
            {**checks, "integrals": integrals(table, method), "activations": channels, "certificates": proved}
        )
    results = Results(
        table,
        scores=scores,
        differences=findings.differences(
            scores, seed=config.seed, resamples=evaluation.resamples, chosen=evaluation.baseline
        ),
        zero_shot=elsewhere,
        robustness=checked,
        examples=shown,
        histories=histories,
        budgets={
            name: describe_budget(
                config, name, images=len(split.train), validated=len(split.validation) >= statistics.MIN_IMAGES
            )
            for name in config.methods
        },
        **_names(config, table),
    )
    report.write(
        workdir / "report",
        results,
        title=f"{' and '.join(config.methods)} on the {dataset.name} data set",
        summary=f"{describe_network(config)}, trained on {len(split.train)} images of the {dataset.name} data set and "
        f"tested on {len(names)} images{_unseen(dataset, test_rows, train_rows)} (seed {config.seed}). Each test image "
        f"is scored on {evaluation.crops} crop{'s' if evaluation.crops > 1 else ''} of {evaluation.crop_size} pixels.",
        config_text=config_lib.to_json(config),
        notes=[
            *notes_on_labels(config),
            "Intervals are 95 % bootstrap intervals over test images: they cover the choice of test images, not other "
            "splits or training seeds.",
            f"PGD takes {evaluation.pgd_steps} steps. A stronger attack (more steps, restarts, attacks that see "
            "through the mask) may lower every attacked number: these are upper bounds on robustness.",
        ],
    )
    return results


def medians(config: ml_collections.ConfigDict, **tables) -> report.Parts:
    """The parts of a report over several splits, from the medians of their tables."""
    return report.medians(Results(**tables, **_names(config, tables["rows"])))


def _names(config: ml_collections.ConfigDict, rows: Sequence[Row]) -> dict:
    """What the report calls methods and attacks."""
    conditions = table_attacks.conditions(config.evaluation)
    attacks = {condition.label: (condition.title, condition.attack.legend) for condition in conditions}
    if any(row["attack"] == submitted.NAME for row in rows):
        attacks[submitted.NAME] = submitted.TITLE, submitted.LEGEND
    return {
        "titles": {name: method_title(name, config[name]) for name in config.methods},
        "attack_titles": {label: title for label, (title, _) in attacks.items()},
        "attack_legends": {label: legend for label, (_, legend) in attacks.items()},
    }


def describe_network(config: ml_collections.ConfigDict) -> str:
    """'resnet (resnet18), starting from weights from FILE', for a report."""
    model = config.model
    network = models.network_of(model).described(model.backbone)
    if not model.weights and models.network_of(model).fit is not None:
        return network
    start = f"weights from {Path(model.weights).name}" if model.weights else "random weights"
    return f"{network}, starting from {start}"


def notes_on_labels(config: ml_collections.ConfigDict) -> list[str]:
    """What has to be said of labels that are not human, for a report."""
    if not (computed := data.computed_labels(config.dataset)):
        return []
    return [f"The labels of the data set {listing(computed)} come from a full-reference formula, not from people."]


def _unseen(dataset: QualityDataset, test_rows: np.ndarray, train_rows: np.ndarray) -> str:
    """What training did not see, for a report: scenes, or of scenes that it saw, other images."""
    shared = set(dataset.references[test_rows]) & set(dataset.references[train_rows])
    return " that training did not see, of scenes that it did" if shared else " of scenes that training did not see"
