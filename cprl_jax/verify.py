"""Checks adversarial images that were made elsewhere, and lets them lower the worst case in a run's table.

  python -m cprl_jax.verify --run=runs/livec --write_crops=crops.npz    what there is to attack
  python -m cprl_jax.verify --run=runs/livec attacked.npz               what somebody made of it

crops.npz has the test crops of the run as `images` (uint8, [n, size, size, 3]), and `names` and `crop`, which say what
each is of. An attack changes `images` and leaves the other two as they are:

  crops = dict(numpy.load("crops.npz"))
  crops["images"] = my_attack(crops["images"])        # uint8, or floats in [0, 1]
  numpy.savez("attacked.npz", **crops, radius=2)      # in 1/255; or one number for each image

Images may be left out, and several may be of one crop: the worst counts. `radius` is what they promise to keep
(missing: the largest one of the table), and `method="cprl"` says for which model of the run they are (missing: all).

Each image is checked by itself: that it is of a test crop, finite and in [0, 1], and that no value changes by more than
the radius (in whole grey levels for uint8; floats may be 0.000001 beyond). Accepted images are scored by the model and
kept in RUN/submitted, and the report is written again: its rows `submitted` are, at each radius, the worst of all
attacks of the table and of what was submitted, image by image. The same file again changes nothing. The report is that
of the last `cprl_jax.main`; what is missing for it is computed.

Exit code: 0; 1 if an image or a file was rejected; 2 for a mistake in the command line.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped; what was accepted before is kept")

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.runtime.parser import Parser

_SHOWN = 10  # reasons for a rejection


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and does what it asks for; returns the exit code."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    parser = Parser(prog="python -m cprl_jax.verify", description=__doc__)
    parser.add_argument("images", nargs="*", help=".npz files of attacked images")
    parser.add_argument("--run", required=True, help="the folder of a run (its --workdir)")
    parser.add_argument("--write_crops", default="", help="where to write the test crops, an .npz file")
    arguments = parser.parse_args(argv)
    if not arguments.images and not arguments.write_crops:
        parser.error("give .npz files of attacked images, or --write_crops")
    keep_freed_memory()
    return int(bool(_verify(arguments)))


def _verify(arguments: argparse.Namespace) -> list[str]:
    """What was rejected, each in a line."""
    from cprl_jax import data
    from cprl_jax.config.defaults import read_config
    from cprl_jax.data import splits
    from cprl_jax.evaluation import submitted, zero_shot
    from cprl_jax.experiments.cprl import experiment
    from cprl_jax.report import page
    from cprl_jax.runtime import files
    from cprl_jax.runtime.lock import held

    run = files.user_path(arguments.run, field="--run").resolve()
    config = read_config(run)
    experiment.check_run(config, run)
    settings = "report/settings.json"  # of the last evaluation, which may have asked for more than the first
    config = read_config(run, file=settings if (run / settings).exists() else "config.json")
    with held(run):
        dataset = data.load(config.dataset)
        split = experiment.load_split(config, dataset, run)
        crops, names = experiment.crops_of_test_images(config, dataset, split), list(split.test)
        if arguments.write_crops:
            path = files.user_path(arguments.write_crops, field="--write_crops")
            files.write_arrays(path, _with_names(crops, names))
            program.show(f"{len(names)} test images, {crops.shape[1]} crops of each: {path}")
        if not arguments.images:
            return []
        submissions, rejected = [], []
        for name in arguments.images:
            try:
                path = files.user_path(name, field="IMAGES")
                submission = submitted.read(path, config)
            except UserError as error:
                rejected.append(str(error))
                continue
            checked = submitted.check(submission, names, crops, largest=max(config.evaluation.radii, default=0.0))
            rejected += [f"{path}: image {index}: {reason}" for index, reason in enumerate(checked.reasons) if reason]
            kept = run / submitted.NAME / f"{submission.hash[:16]}.npz"
            if checked.accepted.any():
                submissions.append((submission, checked))
                if not kept.exists():
                    files.write_file(kept, path.read_bytes())
        if submissions:
            others = zero_shot.load_datasets(config)
            results = experiment.evaluate_run(config, dataset, split, others, run)
            mos = dataset.mos[splits.rows(dataset, names)]
            table = _table(config, results, submissions, mos, run)
            program.show(f"{page.terminal([table])}\n\nReport: {run / 'report' / 'report.html'}")
    for line in rejected[:_SHOWN]:
        print(f"rejected: {line}", file=sys.stderr)
    if len(rejected) > _SHOWN:
        print(f"rejected: {len(rejected) - _SHOWN} more", file=sys.stderr)
    return rejected


def _with_names(crops, names: Sequence[str]) -> dict[str, Any]:
    """The arrays of a file of crops."""
    import numpy as np

    count = crops.shape[1]
    return {
        "images": crops[:].reshape(-1, *crops.shape[2:]),
        "names": np.repeat(np.array(names, str), count),
        "crop": np.tile(np.arange(count), len(names)),
    }


def _table(config, results, submissions, mos, run: Path):
    """A line for each method and radius: what is submitted now, and the worst case without and with all submissions."""
    import numpy as np

    from cprl_jax.evaluation import statistics, submitted
    from cprl_jax.report.table import Column, Table

    rows, evaluation = [], config.evaluation
    away = np.where(mos > evaluation.mid, -1.0, 1.0)
    for radius in evaluation.radii:
        for method in config.methods:
            mine = [(submission, checked) for submission, checked in submissions if method in submission.methods]
            if not mine:
                continue
            changes = []
            for submission, _ in mine:
                with np.load(submitted.place(run / method, submission)) as kept:
                    inside = kept["change"] <= radius + submission.tolerance
                    changes.append((away[kept["row"]] * kept["effect"])[inside])
            changes = np.concatenate(changes)
            scores: dict[tuple[str, float], list[float]] = {}
            for row in results.scores:
                if row["method"] == method and row["attack"] != submitted.NAME:
                    scores.setdefault((row["attack"], row["radius"]), []).append(row["score"])
            attacked = [{"after": np.array(after)} for (_, r), after in scores.items() if 0 < r <= radius]
            without = submitted.worst([{"after": np.array(scores["none", 0.0])}, *attacked], away)["after"]
            found = results.find(method, (submitted.NAME, float(f"{radius:g}")))
            rows.append(
                {
                    "radius": radius,
                    "method": method,
                    "submitted": sum(len(submission.names) for submission, _ in mine),
                    "rejected": sum(int((~checked.accepted).sum()) for _, checked in mine),
                    "inside": len(changes),
                    "change": changes.mean() if len(changes) else np.nan,
                    "without": statistics.srcc(without, mos),
                    "srcc": found["srcc"] if found else statistics.srcc(without, mos),
                }
            )
    columns = [
        Column("submitted", "submitted", group="images", digits=0),
        Column("rejected", "rejected", group="images", digits=0),
        Column("inside", "inside", group="images", digits=0),
        Column("change", "change", digits=2),
        Column("without", "attacks", group="SRCC of the worst"),
        Column("srcc", "with these", group="SRCC of the worst"),
    ]
    return Table(
        rows,
        columns,
        line=("radius", "method"),
        heading="method",
        block=lambda row: f"at {row['radius']:g}/255",
        legend="Inside: accepted, and no farther than the radius. Change: mean change of their scores away from the "
        "side of the label. Attacks: SRCC of the worst, image by image, of the attacks in the table.",
    )


if __name__ == "__main__":
    sys.exit(main())
