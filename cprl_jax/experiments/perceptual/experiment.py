"""The job "perceptual_attack": every model x fidelity x image attacked, counterexamples chosen, and all of it reported.

Zhang et al., "Perceptual Attacks of No-Reference Image Quality Models with Human-in-the-Loop", NeurIPS 2022. A run's
folder holds config.json, cells/MODEL/FIDELITY/IMAGE.npz (the candidates of Algorithm 1, written one by one, so that a
run goes on where it stopped) and report/.
"""

import resource
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import ml_collections
import numpy as np

from cprl_jax import attacks
from cprl_jax import fidelity as fidelity_lib
from cprl_jax.attacks.perceptual import PUBLISHED_MULTIPLIERS
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.perceptual import report, results
from cprl_jax.experiments.perceptual.inputs import (
    Cell,
    Fidelity,
    Picture,
    Target,
    as_floats,
    read_fidelities,
    read_pictures,
    read_targets,
)
from cprl_jax.report.values import listed
from cprl_jax.runtime import cells as cells_lib
from cprl_jax.runtime import parallel
from cprl_jax.runtime.cells import file_name
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import read_cache, write_file
from cprl_jax.runtime.stamps import stamp

_LARGE = ("images",)  # of its arrays


def run(config: ml_collections.ConfigDict, workdir: str | Path) -> None:
    """Attacks what config.perceptual names, going on where an earlier run stopped, and writes the report.

    Cells of other settings are computed anew. In a run of several processes, each computes its share of the cells.

    Raises:
      UserError: a wrong configuration, image, label or weights, found before anything is written to `workdir`; or a
        `workdir` that holds something else.
    """
    workdir = Path(workdir).expanduser().resolve()
    started = time.monotonic()
    if workdir.exists() and (not workdir.is_dir() or (any(workdir.iterdir()) and not (workdir / "cells").is_dir())):
        raise UserError(f"{workdir} holds something else than a perceptual attack; give another --workdir")
    targets, fidelities, pictures = read_targets(config), read_fidelities(config), read_pictures(config)
    _check_sizes(targets, fidelities, pictures)
    cells = make_cells(config, targets, fidelities, pictures, workdir / "cells")
    if parallel.is_main_process():
        (workdir / "cells").mkdir(parents=True, exist_ok=True)
        write_file(workdir / "config.json", config_lib.to_json(config))
    parallel.barrier("workdir made")
    compute(config, cells[parallel.process_index() :: parallel.process_count()])
    parallel.barrier("cells computed")
    if parallel.is_main_process():
        arrays = [read_cache(cell.path, cell.stamp, without=_LARGE) for cell in cells]
        seconds, here = sum(float(each["seconds"]) for each in arrays), time.monotonic() - started
        print(_report(config, cells, arrays, workdir, _cost(seconds, here)))
        print(f"\nReport: {workdir / 'report' / 'report.html'}   ({here / 60:.1f} minutes)")


def _check_sizes(targets: Sequence[Target], fidelities: Sequence[Fidelity], pictures: Sequence[Picture]) -> None:
    """Traces every model and fidelity on every size of image once: nothing is computed yet."""
    for shape in dict.fromkeys(picture.pixels.shape for picture in pictures):
        images = jax.ShapeDtypeStruct((1, *shape), np.float32)
        for target in targets:
            _trace(target.name, target.score_fn, images)
        for fidelity in fidelities:
            _trace(fidelity.name, fidelity.distance, images, images)


def _trace(name: str, function: Callable, *arguments: jax.ShapeDtypeStruct) -> None:
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
    options = config.perceptual
    cells = []
    for target in targets:
        for fidelity in fidelities:
            multipliers, step_sizes = candidates(options, fidelity.name)
            settings = {
                "target": target.stamp,
                "fidelity": fidelity.stamp,
                "seed": config.seed,
                "steps": options.steps,
                "norm": _norm(options, fidelity.name),
                "multipliers": multipliers,
                "step_sizes": step_sizes,
            }
            for picture in pictures:
                # The names, because the noise of the start depends on them.
                names = target.name, fidelity.name, picture.name
                path = folder / file_name(target.name) / fidelity.name / f"{file_name(picture.name)}.npz"
                cell_stamp = stamp(**settings, names=names, pixels=picture.pixels)
                cells.append(Cell(target, fidelity, picture, path, cell_stamp))
    return cells


def candidates(options: ml_collections.ConfigDict, fidelity: str) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers and step sizes of the candidates.

    Sign steps do not obey the Chebyshev distance, which sees the largest change only. So its candidates differ in how
    far their steps lead (besides the noise of the start): to config.perceptual.chebyshev_radius in equal parts.
    """
    count = options.multipliers
    if count > len(PUBLISHED_MULTIPLIERS):
        raise UserError(f"config.perceptual.multipliers is {count}; there are {len(PUBLISHED_MULTIPLIERS)}")
    chosen = np.round(np.linspace(0, len(PUBLISHED_MULTIPLIERS) - 1, count)).astype(int)
    multipliers = np.array(PUBLISHED_MULTIPLIERS)[chosen]
    if fidelity == "chebyshev":
        radii = options.chebyshev_radius / 255 * np.arange(1, count + 1) / count
        return multipliers, radii / options.steps
    return multipliers, np.full(count, float(options.step_size))


def _norm(options: ml_collections.ConfigDict, fidelity: str) -> str:
    return "linf" if fidelity == "chebyshev" else options.norm


def compute(config: ml_collections.ConfigDict, cells: Sequence[Cell]) -> None:
    """Attacks the cells of this process that are not there yet."""
    cells_lib.compute(
        cells,
        lambda cell: _attack(config, cell),
        job="perceptual attack",
        shared=False,
        without=_LARGE,
        describe=lambda cell: f"{cell.target.name}, {cell.fidelity.name}, {cell.picture.name}",
    )


def _attack(config: ml_collections.ConfigDict, cell: Cell) -> dict[str, np.ndarray]:
    """One cell: what `attacks.perceptual` gives for one image, images as uint8, and the SSIM of each candidate."""
    started = time.monotonic()
    options = config.perceptual
    image = as_floats(cell.picture.pixels[None])
    multipliers, step_sizes = candidates(options, cell.fidelity.name)
    # Keyed by names: a cell does not depend on which others there are.
    name = "\n".join((cell.target.name, cell.fidelity.name, cell.picture.name))
    key = jax.random.fold_in(jax.random.key(config.seed), zlib.crc32(name.encode()))
    at_once = options.at_once or (1 if parallel.platform() == "cpu" else None)
    result = attacks.perceptual(
        cell.target.score_fn,
        image,
        cell.fidelity.distance,
        key=key,
        multipliers=multipliers,
        step_size=step_sizes,
        steps=options.steps,
        norm=_norm(options, cell.fidelity.name),
        at_once=at_once,
    )
    arrays = {name: np.asarray(values) for name, values in result._asdict().items()}
    arrays = {name: values if name == "multipliers" else values[:, 0] for name, values in arrays.items()}
    arrays["ssim"] = np.concatenate(
        [np.asarray(fidelity_lib.ssim(candidate[None], image)) for candidate in arrays["images"]]
    )
    arrays["images"] = np.round(255 * arrays["images"]).astype(np.uint8)
    arrays["step_sizes"] = step_sizes
    return arrays | {"seconds": np.array(time.monotonic() - started)}


def _read_image(cell: Cell, which: int) -> np.ndarray:
    """One candidate, uint8: all of them together would not fit into memory."""
    with np.load(cell.path, allow_pickle=False) as file:
        return file["images"][which]


def _report(
    config: ml_collections.ConfigDict,
    cells: Sequence[Cell],
    results_of: Sequence[dict[str, np.ndarray]],
    workdir: Path,
    cost: str,
) -> str:
    """Writes report/ and returns the tables for the terminal."""
    chosen = [results.select(arrays, cell.fidelity.threshold) for cell, arrays in zip(cells, results_of, strict=True)]
    done = [(cell, arrays, *which) for cell, arrays, which in zip(cells, results_of, chosen, strict=True)]
    attacked = [_read_image(cell, which) for cell, _, which, _ in done]
    counterexamples = [results.counterexample_row(*each) for each in done]
    tested = list({cell.target.name: cell.target for cell in cells}.values())
    base = config.perceptual.logarithm
    tables = {
        "intra": results.intra_rows(counterexamples, base=base),
        "transfer": results.transfer_rows(counterexamples, results.transfer_scores(tested, cells, attacked), base=base),
    }
    report.write(
        workdir / "report",
        title=f"Perceptual attack of {listed([target.name for target in tested])}",
        summary=[_summary(config, cells), cost],
        candidates=[row for each in done for row in results.candidate_rows(*each, folder=workdir)],
        counterexamples=counterexamples,
        **tables,
        examples=results.examples(cells, attacked, counterexamples, count=config.perceptual.examples),
        thresholds={cell.fidelity.name: cell.fidelity.threshold for cell in cells},
        logarithm=base,
        config_text=config_lib.to_json(config),
        notes=results.notes(config, counterexamples),
    )
    return f"{report.format_tables(**tables, logarithm=base)}\n\n{cost}"


def _cost(seconds: float, here: float) -> str:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gigabytes = peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, kilobytes elsewhere
    return (
        f"The attacks took {seconds / 60:.1f} minutes, compilation included (of all runs that computed them; this run "
        f"took {here / 60:.1f}); peak memory of this run {gigabytes:.1f} GB."
    )


def _summary(config: ml_collections.ConfigDict, cells: Sequence[Cell]) -> str:
    options = config.perceptual
    shapes = dict.fromkeys(f"{cell.picture.pixels.shape[1]}x{cell.picture.pixels.shape[0]}" for cell in cells)
    sizes = listed(list(shapes)) if len(shapes) < 4 else "several sizes"
    count = len({cell.picture.name for cell in cells})
    return (
        f"{count} images of {sizes} pixels, {options.multipliers} candidates each for every model and fidelity, "
        f"{options.steps} steps, rounded to 8 bits (seed {config.seed}). Scores are mapped to 0..10. The "
        "counterexample is the candidate with the largest change of score among those with a distance below the "
        "threshold."
    )
