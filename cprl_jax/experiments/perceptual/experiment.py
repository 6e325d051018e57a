"""The job "perceptual_attack": every model x fidelity x image attacked, counterexamples chosen, and all of it reported.

Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022. A run's
folder holds config.json, originals/IMAGE.png, cells/MODEL/FIDELITY/IMAGE.npz (the candidates of Algorithm 1, written
one by one, so that a run goes on where it stopped) and report/.
"""

import itertools
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
from PIL import Image

from cprl_jax import attacks
from cprl_jax import fidelity as fidelity_lib
from cprl_jax.attacks.perceptual import PUBLISHED_MULTIPLIERS
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.perceptual import inputs, intervals, observers, report, results
from cprl_jax.experiments.perceptual.inputs import Cell, Fidelity, Picture, Target, TransferCell
from cprl_jax.report import page
from cprl_jax.report.values import listed
from cprl_jax.runtime import cells as cells_lib
from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import Arrays, check_workdir, file_name, user_path, write_file, writing
from cprl_jax.runtime.memory import peak_gigabytes
from cprl_jax.runtime.program import show
from cprl_jax.runtime.stamps import stamp


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Attacks what config.perceptual names, going on where an earlier run stopped, and writes the report.

    Cells of other settings are computed anew. In a run of several processes, each computes its share of the cells.

    Raises:
      UserError: a wrong configuration, image, label or weights, found before anything is written to `workdir`; or a
        `workdir` that holds something else.
    """
    workdir = user_path(workdir, field="workdir").resolve()
    started = time.monotonic()
    check_workdir(workdir, entry="cells", content="a perceptual attack")
    # A run of leave_one_out has cells too.
    if (workdir / "config.json").exists() and (job := config_lib.read_config(workdir).job) != config.job:
        raise UserError(f"{workdir} holds a run of the job {job!r}; give another --workdir")
    targets, fidelities, pictures = (
        read(config) for read in (inputs.read_targets, inputs.read_fidelities, inputs.read_pictures)
    )
    _check_sizes(targets, fidelities, pictures)
    observations = _read_observations(config, workdir)
    cells = make_cells(config, targets, fidelities, pictures, workdir / "cells")
    if parallel.is_main_process():
        (workdir / "cells").mkdir(parents=True, exist_ok=True)
        write_file(workdir / "config.json", config_lib.to_json(config))
        _write_originals(pictures, workdir / "originals")
    parallel.barrier("workdir made")
    arrays = cells_lib.compute(
        cells,
        lambda cell: _attack(config, cell),
        job="perceptual attack",
        shared=False,
        without=("images",),
        describe=lambda cell: f"{cell.target.name}, {cell.fidelity.name}, {cell.picture.name}",
    )
    tested = transfer_cells(targets, cells, workdir / "transfer")
    score_fns = {target.name: jax.jit(target.score_fn) for target in targets}
    scores = cells_lib.compute(
        tested,
        lambda one: _score(score_fns[one.target.name], one.cell),
        job="candidates under other models",
        shared=False,
        describe=lambda one: f"{one.target.name}: {one.cell.target.name}, {one.cell.fidelity.name}",
    )
    if parallel.is_main_process():
        minutes = (time.monotonic() - started) / 60
        others = {
            (one.target.name, *one.cell.names): (float(values["before"]), values["after"])
            for one, values in zip(tested, scores, strict=True)
        }
        show(_report(config, cells, arrays, others, observations, workdir, minutes))
        show(f"\nReport: {workdir / 'report' / 'report.html'}   ({minutes:.1f} minutes)")


def _read_observations(config: ml_collections.ConfigDict, workdir: Path) -> observers.Observations | None:
    if config.perceptual.selection != "observers":
        return None
    given = config.perceptual.counted
    return observers.read(user_path(given, field="config.perceptual.counted") if given else workdir / observers.FILE)


def _write_originals(pictures: Sequence[Picture], folder: Path) -> None:
    """The images as they were attacked, for the study with observers (`cprl_jax.study`)."""
    for picture in pictures:
        with writing(folder / f"{file_name(picture.name)}.png") as file:
            Image.fromarray(picture.pixels).save(file, "PNG")


def _check_sizes(targets: Sequence[Target], fidelities: Sequence[Fidelity], pictures: Sequence[Picture]) -> None:
    """Traces every model and fidelity on every size of image once: nothing is computed yet."""
    for shape in dict.fromkeys(picture.pixels.shape for picture in pictures):
        images = jax.ShapeDtypeStruct((1, *shape), np.float32)
        calls = [(target.name, target.score_fn, images) for target in targets]
        calls += [(fidelity.name, fidelity.distance, images, images) for fidelity in fidelities]
        for name, function, *arguments in calls:
            try:
                jax.eval_shape(function, *arguments)
            except ValueError as error:
                raise UserError(f"{name}: {error}; see config.perceptual.height and .width") from error


def make_cells(
    config: ml_collections.ConfigDict,
    targets: Sequence[Target],
    fidelities: Sequence[Fidelity],
    pictures: Sequence[Picture],
    folder: Path,
) -> list[Cell]:
    """All cells, model by model and fidelity by fidelity."""
    cells = []
    for target, fidelity, picture in itertools.product(targets, fidelities, pictures):
        cell_stamp = stamp(
            target=target.stamp,
            fidelity=fidelity.stamp,
            pixels=picture.pixels,
            seed=config.seed,
            names=[target.name, fidelity.name, picture.name],  # the noise of the start depends on them
            **attack_settings(config.perceptual, fidelity.name),
        )
        path = folder / file_name(target.name) / fidelity.name / f"{file_name(picture.name)}.npz"
        cells.append(Cell(target, fidelity, picture, path, cell_stamp))
    return cells


def attack_settings(options: ml_collections.ConfigDict, fidelity: str) -> dict[str, Any]:
    """The arguments of `attacks.perceptual` for a fidelity: `multipliers`, `step_size` and what the candidates share.

    Sign steps do not obey the Chebyshev distance, which sees the largest change only. So its candidates differ in how
    far their steps lead (besides the noise of the start): to config.perceptual.chebyshev_radius in equal parts.
    """
    count, published = options.multipliers, np.array(PUBLISHED_MULTIPLIERS)
    if count > len(published):
        raise UserError(f"config.perceptual.multipliers is {count}; there are {len(published)}")
    multipliers = published[np.round(np.linspace(0, len(published) - 1, count)).astype(int)]
    if fidelity == "chebyshev":
        radii = options.chebyshev_radius / 255 * np.arange(1, count + 1) / count
        norm, step_size = "linf", radii / options.steps
    else:
        norm, step_size = options.norm, np.full(count, float(options.step_size))
    return {"multipliers": multipliers, "step_size": step_size, "steps": options.steps, "norm": norm}


def _attack(config: ml_collections.ConfigDict, cell: Cell) -> Arrays:
    """What `attacks.perceptual` gives for one image, images as uint8, and the SSIM of each candidate."""
    started = time.monotonic()
    image = inputs.as_floats(cell.picture.pixels[None])
    settings = attack_settings(config.perceptual, cell.fidelity.name)
    # Keyed by names: a cell does not depend on which others there are.
    name = "\n".join((cell.target.name, cell.fidelity.name, cell.picture.name))
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    at_once = config.perceptual.at_once or (1 if parallel.platform() == "cpu" else None)
    result = attacks.perceptual(
        cell.target.score_fn, image, cell.fidelity.distance, key=key, at_once=at_once, **settings
    )
    arrays = {name: np.asarray(values) for name, values in result._asdict().items()}
    arrays = {name: values if name == "multipliers" else values[:, 0] for name, values in arrays.items()}
    ssim = [np.asarray(fidelity_lib.ssim(candidate[None], image)) for candidate in arrays["images"]]
    return arrays | {
        "images": np.round(255 * arrays["images"]).astype(np.uint8),
        "ssim": np.concatenate(ssim),
        "step_sizes": settings["step_size"],
        "seconds": np.array(time.monotonic() - started),
    }


def transfer_cells(targets: Sequence[Target], cells: Sequence[Cell], folder: Path) -> list[TransferCell]:
    """What other models say of the candidates of each cell: kept too, for any of them may become the counterexample."""
    others = []
    for target, cell in itertools.product(targets, cells):
        if target.name != cell.target.name:
            path = folder / file_name(target.name) / cell.path.relative_to(cell.path.parents[2])
            others.append(TransferCell(target, cell, path, stamp(tested=target.stamp, attacked=cell.stamp)))
    return others


def _score(score_fn: Callable, cell: Cell) -> Arrays:
    """A model's scores of the image and of the candidates of a cell, one by one: together they are large."""
    with np.load(cell.path, allow_pickle=False) as file:
        candidates = file["images"]
    images = [cell.picture.pixels, *candidates]
    before, *after = [float(score_fn(inputs.as_floats(image[None]))[0]) for image in images]
    return {"before": np.array(before), "after": np.array(after)}


def _report(
    config: ml_collections.ConfigDict,
    cells: Sequence[Cell],
    arrays: Sequence[Arrays],
    others: results.Others,
    observations: observers.Observations | None,
    workdir: Path,
    minutes: float,
) -> str:
    """Writes report/ and returns the tables for the terminal."""
    candidates, counterexamples = [], []
    for cell, values in zip(cells, arrays, strict=True):
        rows = results.candidate_rows(cell, values, folder=workdir)
        numbers = {"mos": cell.picture.mos, "seconds": float(values["seconds"])}
        counterexamples.append(results.choose(rows, observations=observations, **numbers))
        candidates += rows
    base = config.perceptual.logarithm
    tables = intervals.tables(
        candidates, counterexamples, others, observations=observations, base=base, seed=config.seed
    ) | {"logarithm": base}
    cost = (
        f"The attacks took {sum(float(values['seconds']) for values in arrays) / 60:.1f} minutes, compilation included "
        f"(of all runs that computed them; this run took {minutes:.1f}); peak memory of this run "
        f"{peak_gigabytes():.1f} GB."
    )
    report.write(
        workdir / "report",
        title=f"Perceptual attack of {listed(list(dict.fromkeys(cell.target.name for cell in cells)))}",
        summary=[_summary(config, cells), cost],
        candidates=candidates,
        counterexamples=counterexamples,
        **tables,
        examples=results.examples(counterexamples, candidates, count=config.perceptual.examples, folder=workdir),
        thresholds={cell.fidelity.name: cell.fidelity.threshold for cell in cells} if observations is None else {},
        config_text=config_lib.to_json(config),
        notes=[
            *results.notes(config, counterexamples, observations),
            *dict.fromkeys(f"Scores of {cell.target.name} on 0..10: {cell.target.scale}." for cell in cells),
        ],
        transfer_scores=results.transfer_scores(others),
    )
    return page.terminal([*report.tables(**tables), cost])


def _summary(config: ml_collections.ConfigDict, cells: Sequence[Cell]) -> str:
    options = config.perceptual
    shapes = dict.fromkeys(f"{cell.picture.pixels.shape[1]}x{cell.picture.pixels.shape[0]}" for cell in cells)
    sizes = listed(list(shapes)) if len(shapes) < 4 else "several sizes"
    return (
        f"{len({cell.picture.name for cell in cells})} images of {sizes} pixels, {options.multipliers} candidates each "
        f"for every model and fidelity, {options.steps} steps, rounded to 8 bits (seed {config.seed}). Scores are "
        "mapped to 0..10. The counterexample is the candidate with the largest change of score among those "
        + (
            "with a distance below the threshold."
            if options.selection == "threshold"
            else "below the JND of observers."
        )
    )
