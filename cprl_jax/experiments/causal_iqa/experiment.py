"""The jobs "causal_iqa" and "leave_one_out": updates trained side by side, tested, and reported.

Zhong et al., "Causal-IQA: Towards the Generalization of Image Quality Assessment Based on Causal Inference", ICML 2024.
A run's folder holds config.json, division/, report/, and

- for "causal_iqa", which trains on the training part of a split and tests on its test part and on other data sets
  (Table 4): split.json, training.json and a folder for each UPDATE/seed-K (checkpoints/, metrics.csv, tensorboard/,
  weights.npz, test.npz);
- for "leave_one_out" (Tables 3 and 12): cells/DISTORTION/UPDATE-seedK.npz, see `leave_one_out`.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from absl import logging
from jaxtyping import Float

from cprl_jax import data, models
from cprl_jax.config import defaults as config_lib
from cprl_jax.data import splits
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation import zero_shot
from cprl_jax.experiments.causal_iqa import leave_one_out, report, results
from cprl_jax.experiments.causal_iqa.division import Division
from cprl_jax.experiments.causal_iqa.study import FREE, Study, severe
from cprl_jax.experiments.causal_iqa.table import title_of
from cprl_jax.experiments.causal_iqa.training import Trainer, make_plan
from cprl_jax.experiments.cprl.experiment import describe_network, load_split, notes_on_labels
from cprl_jax.report.values import listed
from cprl_jax.runtime import parallel
from cprl_jax.runtime.cells import cached
from cprl_jax.runtime.files import check_workdir, user_path, write_arrays, write_file
from cprl_jax.runtime.program import show
from cprl_jax.runtime.stamps import stamp
from cprl_jax.training import setup
from cprl_jax.training.data_record import check_training_data


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Runs config.job ("causal_iqa" or "leave_one_out"), going on where an earlier run stopped, and writes the report.

    Raises:
      UserError: a wrong configuration, data set, split or weights, found before anything is trained; or a `workdir`
        that holds something else.
      TrainingDiverged: a loss became NaN or infinite.
    """
    workdir = user_path(workdir, field="workdir").resolve()
    started = time.monotonic()
    if (workdir / "config.json").exists():
        free = tuple(f"causal_iqa.{name}" for name in FREE)
        config_lib.check_same_run(workdir / "config.json", config, fixed=("job", "causal_iqa"), free=free)
    else:
        updates = config.causal_iqa.updates
        check_workdir(workdir, entry="division", content="a run of Causal-IQA", folders=updates)
    dataset = parallel.main_process_first(lambda: data.load(config.dataset))
    parts = (_leave_one_out if config.job == "leave_one_out" else _causal_iqa)(config, dataset, workdir)
    if parallel.is_main_process():
        options = {"seed": config.seed, "resamples": config.evaluation.resamples}
        parts["averages"] = results.averages(parts["rows"], **options)
        parts["title"] = f"{listed([title_of(update) for update in config.causal_iqa.updates])} {parts['title']}"
        page = report.write(workdir / "report", config_text=config_lib.to_json(config), notes=_notes(config), **parts)
        show(report.format_table(parts["rows"], parts["averages"]))
        show(f"\nReport: {page}   ({(time.monotonic() - started) / 60:.1f} minutes)")
    parallel.barrier("report written")


def _causal_iqa(config: ml_collections.ConfigDict, dataset: QualityDataset, workdir: Path) -> dict[str, Any]:
    """Trains and tests every update and seed; returns what the report shows."""
    others = zero_shot.load_datasets(config)
    split = load_split(config, dataset, workdir)
    # No checkpoint is chosen and nothing is tuned: the validation part trains too.
    trained, tested = (np.sort(splits.rows(dataset, names)) for names in (split.train + split.validation, split.test))
    study = Study(config, dataset, trained, folder=workdir / "division")
    division = study.divide(trained)
    trainer = Trainer(config, make_plan(config, division))
    test_crops = study.crops(tested)
    _write(config, dataset, workdir, division, split=split)

    rows, elsewhere, maps, histories = [], [], [], {}
    # The other data sets are what the models are for: maps are of their images, where there are any.
    shown = next(iter(others.values()), dataset)
    shown_rows = severe(shown, np.arange(len(shown)) if others else tested, config.causal_iqa.saliency)
    for seed in study.seeds:
        for update in config.causal_iqa.updates:
            folder = workdir / update / f"seed-{seed}"
            variables, history = trainer.train(
                update, dataset, division, seed=seed, variables=study.start(seed), folder=folder
            )
            if parallel.is_main_process():
                models.save_weights(folder / "weights.npz", variables)
            scores = _test_scores(study, variables, test_crops, folder / "test.npz")
            rows += results.rows_by_distortion(update, seed, scores, dataset.mos[tested], dataset.distortions[tested])
            zero_shot_rows = zero_shot.evaluate(config, update, study.module, variables, others, folder=folder)
            elsewhere += [{**row, "seed": seed} for row in zero_shot_rows]
            if seed == config.seed:
                histories[update] = history
                for row, heat in zip(shown_rows, study.saliency(variables, shown_rows, shown), strict=True):
                    maps.append(study.shown(update, row, heat, shown))
    summary = (
        f"{describe_network(config)}, trained on {len(trained)} images of the {dataset.name} data set and tested on "
        f"{len(tested)} images of scenes that training did not see."
    )
    return {
        "title": f"on the {dataset.name} data set",
        "summary": [summary, _training(config, trainer, f"{len(division.names)} subsets")],
        "rows": rows,
        "zero_shot": elsewhere,
        "division": study.described(division),
        "saliency": sorted(maps, key=lambda entry: entry["name"]),
        "histories": histories,
    }


def _leave_one_out(config: ml_collections.ConfigDict, dataset: QualityDataset, workdir: Path) -> dict[str, Any]:
    """Trains and tests every cell; returns what the report shows."""
    distortions = leave_one_out.held_out(config, dataset)
    everything = np.arange(len(dataset))
    study = Study(config, dataset, everything, folder=workdir / "division")
    # The whole set is divided, so that all cells train as long and share a program. A cell uses what is left of it.
    division = study.divide(everything)
    trainer = Trainer(config, make_plan(config, division))
    _write(config, dataset, workdir, division)
    cells = leave_one_out.make_cells(config, study, distortions, trainer.plan, workdir / "cells")
    done = list(zip(cells, leave_one_out.compute(config, study, trainer, dataset, cells), strict=True))
    firsts = [(cell, arrays) for cell, arrays in done if cell.seed == config.seed]
    pictured = distortions[:: -(-len(distortions) // max(1, config.causal_iqa.saliency))]
    minutes = sum(float(arrays["seconds"]) for _, arrays in done) / 60
    summary = (
        f"{describe_network(config)}. For each of {len(distortions)} distortions of the {dataset.name} data set, a "
        "training on all images of the others and a test on all images of this one. Scenes are shared between training "
        "and test."
    )
    training = (
        f"{_training(config, trainer, 'the subsets of the other distortions')} The {len(cells)} trainings took "
        f"{minutes:.1f} minutes in all, compilation included."
    )
    return {
        "title": f"on unseen distortions of the {dataset.name} data set",
        "summary": [summary, training],
        "rows": [
            results.row(cell.update, cell.held_out, cell.seed, arrays["scores"], arrays["mos"]) for cell, arrays in done
        ],
        "zero_shot": [],
        "division": study.described(division),
        "saliency": [
            study.shown(cell.update, int(arrays["saliency_row"]), arrays["saliency_map"])
            for cell, arrays in firsts
            if config.causal_iqa.saliency and cell.held_out in pictured
        ],
        "histories": {
            cell.update: leave_one_out.history_of(arrays) for cell, arrays in firsts if cell.held_out == distortions[0]
        },
    }


def _write(
    config: ml_collections.ConfigDict,
    dataset: QualityDataset,
    workdir: Path,
    division: Division,
    split: splits.Split | None = None,
) -> None:
    """Writes what tells later calls and people what the run is."""
    if parallel.is_main_process():
        if split is not None:
            subsets = {name: np.flatnonzero(division.subsets == index) for index, name in enumerate(division.names)}
            check_training_data(workdir / "training.json", dataset, subsets, weights=setup.weights_file(config))
            if not (workdir / "split.json").exists():
                splits.save_split(split, workdir / "split.json")
        write_file(workdir / "config.json", config_lib.to_json(config))
        arrays = {name: np.asarray(value) for name, value in vars(division).items()}
        write_arrays(workdir / "division" / "division.npz", arrays)
        logging.info("division: %s", division.report[0])
    parallel.barrier("workdir made")


def _test_scores(study: Study, variables: Mapping, crops: Crops, path: Path) -> Float[np.ndarray, " images"]:
    scores_stamp = stamp(module=study.module, variables=variables, crops=crops.stamp)
    return cached(path, scores_stamp, lambda: {"scores": study.scores(variables, crops)})["scores"]


def _training(config: ml_collections.ConfigDict, trainer: Trainer, subsets: str) -> str:
    options, first, crops = config.causal_iqa, config.seed, config.evaluation.crops
    seeds = f"seed {first}" if options.seeds == 1 else f"seeds {first} to {first + options.seeds - 1}"
    return (
        f"{trainer.plan.steps} meta steps of {options.batch_size} images from each of {subsets}, as many images for "
        f"every update; {seeds}. Each image is scored on {crops} crop{'s' if crops > 1 else ''} of "
        f"{config.evaluation.crop_size} pixels."
    )


def _notes(config: ml_collections.ConfigDict) -> list[str]:
    notes = [
        *notes_on_labels(config),
        "ERM takes an optimiser step on each batch, as many as CIS takes inner steps. All updates have the same inner "
        "optimiser and learning rates; none was tuned for one of them on these test images.",
        "The model after the last meta step is tested; nothing is selected on images that are tested.",
    ]
    if not config.model.weights:
        notes.append(
            "Contents are clustered by what a network of random weights sees: texture and colour, not meaning. Weights "
            "trained on ImageNet (config.model.weights) make better clusters."
        )
    return notes
