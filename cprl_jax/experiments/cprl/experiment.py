"""The jobs of `cprl_jax.main`: every method of a configuration trained, attacked and reported side by side.

A run's folder holds: config.json, split.json and crops.json (written once, at the start), one folder a method
(checkpoints/, metrics.csv, tensorboard/, weights.npz, evaluation.npz, robustness.npz) and report/.
"""

import textwrap
import time
from pathlib import Path

import jax
import ml_collections
from absl import logging

from cprl_jax import data, models, report
from cprl_jax.config import defaults as config_lib
from cprl_jax.data import crops as crops_lib
from cprl_jax.data import splits
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.data.near_duplicates import warn_of_near_duplicates
from cprl_jax.evaluation import statistics, zero_shot
from cprl_jax.evaluation.scoring import evaluate, examples, score_rows, table_rows
from cprl_jax.experiments.cprl.robustness import integrals, robustness
from cprl_jax.experiments.cprl.training import train
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file
from cprl_jax.training.history import read_history
from cprl_jax.training.setup import create_model, start_variables, trained_variables


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Runs config.job in `workdir`, going on where an earlier run with the same configuration stopped.

    Raises:
      UserError: a wrong configuration, data set, split or weights, found before anything is written to `workdir`; or a
        `workdir` that holds the run of another configuration.
      TrainingDiverged: a loss became NaN or infinite.
    """
    workdir = Path(workdir).expanduser().resolve()
    started = time.monotonic()
    _check_workdir(config, workdir)
    dataset = parallel.main_process_first(lambda: data.load(config.dataset))
    others = zero_shot.load_datasets(config)
    split = load_split(config, dataset, workdir)
    test_crops = _load_crops(config, dataset, split, workdir)
    _check_weights(config)
    if parallel.is_main_process():
        workdir.mkdir(parents=True, exist_ok=True)
        for name, write in (
            ("split.json", lambda path: splits.save_split(split, path)),
            ("crops.json", lambda path: crops_lib.save_crops(test_crops, path)),
            ("config.json", lambda path: write_file(path, config_lib.to_json(config))),
        ):
            if not (workdir / name).exists():
                write(workdir / name)
    parallel.barrier("workdir made")

    if parallel.is_main_process():
        logging.info(
            "%s: %d training, %d validation and %d test images; methods %s; %d %s device(s)",
            dataset.name,
            len(split.train),
            len(split.validation),
            len(split.test),
            ", ".join(config.methods),
            parallel.device_count(),
            jax.default_backend(),
        )
    if config.job != "evaluate":
        for method in config.methods:
            train(config, method, dataset=dataset, split=split, workdir=workdir)
    if config.job != "train":
        table = _evaluate(config, dataset, split, test_crops, others, workdir)
        if parallel.is_main_process():
            print(table)
            print(f"\nReport: {workdir / 'report' / 'report.html'}   ({(time.monotonic() - started) / 60:.1f} minutes)")


def _check_workdir(config: ml_collections.ConfigDict, workdir: Path) -> None:
    path = workdir / "config.json"
    if not path.exists():
        if config.job == "evaluate":
            raise UserError(f"there is no run in {workdir} to evaluate; train one first, or give its --workdir")
        if (
            workdir.exists()
            and (not workdir.is_dir() or any(workdir.iterdir()))
            and not (workdir / "split.json").exists()
        ):
            raise UserError(f"{workdir} holds something else than a run; give another --workdir")
        return
    config_lib.check_same_run(path, config)


def load_split(config: ml_collections.ConfigDict, dataset: QualityDataset, workdir: Path) -> splits.Split:
    """The split of a run: the one in its folder, or a new one, as config.dataset says.

    Raises:
      UserError: a split that does not fit the data set, or has too few test images.
    """
    if (workdir / "split.json").exists():
        split = splits.load_split(workdir / "split.json", dataset)
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


def _load_crops(config: ml_collections.ConfigDict, dataset: QualityDataset, split: splits.Split, workdir: Path):
    evaluation = config.evaluation
    if (workdir / "crops.json").exists():
        test_crops = crops_lib.load_crops(workdir / "crops.json")
    else:
        test_crops = crops_lib.draw_crops(
            dataset,
            splits.rows(dataset, split.test),
            crops=evaluation.crops_drawn,
            crop_size=evaluation.crop_size,
            seed=config.seed,
        )
    if test_crops.crop_size != evaluation.crop_size or test_crops.offsets.shape[1] < evaluation.crops:
        raise UserError(
            f"the run in {workdir} drew {test_crops.offsets.shape[1]} crops of {test_crops.crop_size} pixels; "
            f"config.evaluation asks for {evaluation.crops} of {evaluation.crop_size}"
        )
    return test_crops


def _check_weights(config: ml_collections.ConfigDict) -> None:
    """Reads config.model.weights once before anything is written, so that a wrong file costs nothing."""
    if not config.model.weights or config.job == "evaluate":
        return
    start_variables(config, config.methods[0], seed=config.seed)


def _evaluate(config: ml_collections.ConfigDict, dataset, split, test_crops, others, workdir: Path) -> str:
    """Attacks every method, writes report/ and returns the table for the terminal."""
    evaluation = config.evaluation
    pixels = crops_lib.extract(test_crops, dataset, evaluation.crops)
    names = list(test_crops.names)
    mos = dataset.mos[splits.rows(dataset, names)]
    table, elsewhere, scores, shown, histories, networks, identities = [], [], [], [], {}, {}, {}
    for method in config.methods:
        folder = workdir / method
        variables, step = trained_variables(config, method, folder)
        module = create_model(config, method)
        networks[method] = module, variables
        identities[method] = {"step": step, "sort_mask": config[method].sort_mask}
        results = evaluate(
            config,
            module,
            variables,
            pixels,
            mos,
            label=method,
            cache=folder / "evaluation.npz",
            identity=identities[method],
        )
        table += table_rows(method, results, mos, seed=config.seed, resamples=evaluation.resamples)
        elsewhere += zero_shot.evaluate(
            config, method, module, variables, others, folder=folder, identity=identities[method]
        )
        scores += score_rows(method, results, names, mos)
        shown += examples(config, method, module, variables, pixels, names, mos)
        histories[method] = read_history(folder)
    checked = []
    if parallel.is_main_process():
        for method in config.methods:
            found = robustness(
                config,
                method,
                networks,
                pixels,
                names,
                mos,
                cache=workdir / method / "robustness.npz",
                identity={"method": method, "methods": identities},
            )
            checked.append({**found, "integrals": integrals(table, method)})
        report.write(
            workdir / "report",
            title=f"{' and '.join(config.methods)} on the {dataset.name} data set",
            summary=_summary(config, dataset, split),
            rows=table,
            scores=scores,
            examples=shown,
            histories=histories,
            robustness=checked,
            zero_shot=elsewhere,
            config_text=config_lib.to_json(config),
            notes=_notes(config),
        )
    words = [report.verdict(table), report.trust_verdict(checked)]
    parts = [report.format_table(table), *(textwrap.fill(text, 110) for text in words if text)]
    return "\n\n".join([*parts, *([report.format_zero_shot(elsewhere)] if elsewhere else [])])


def _summary(config: ml_collections.ConfigDict, dataset, split) -> str:
    crops = "one crop" if config.evaluation.crops == 1 else f"{config.evaluation.crops} crops"
    return (
        f"{describe_network(config)}, trained on {len(split.train)} images of the {dataset.name} data set and "
        f"tested on {len(split.test)} images of scenes that training did not see (seed {config.seed}). Each test image "
        f"is scored on {crops} of {config.evaluation.crop_size} pixels; the attacks know the model and the label."
    )


def describe_network(config: ml_collections.ConfigDict) -> str:
    """'resnet (resnet18), starting from weights from FILE', for a report."""
    model = config.model
    network = models.network_of(model).described(model.backbone)
    start = f"weights from {Path(model.weights).name}" if model.weights else "random weights"
    return f"{network}, starting from {start}"


def notes_on_labels(config: ml_collections.ConfigDict) -> list[str]:
    """What has to be said of labels that are not human, for a report."""
    if "embedded" not in config.dataset.name.split("+"):
        return []
    return ["The labels of the embedded data set come from a full-reference formula, not from people."]


def _notes(config: ml_collections.ConfigDict) -> list[str]:
    return [
        *notes_on_labels(config),
        "Intervals are 95 % bootstrap intervals over test images: they tell of the test set's size, not of other "
        "splits or training seeds.",
        f"PGD takes {config.evaluation.pgd_steps} steps. A stronger attack (more steps, restarts, attacks that see "
        "through the mask) may lower every attacked number: these are upper bounds on robustness.",
    ]
