"""Writes a trained model as a folder for others: `python -m cprl_jax.export --run=runs/livec --out=models/livec`.

The folder holds model.safetensors, config.json and README.md, the model's card; it appears whole or not at all.
`cprl_jax.load` and `python -m cprl_jax.score --model=FOLDER` read it, and `Model.push_to_hub` uploads it
(docs/models.md).

Weights are kept in float32 (the scores of the run, bit for bit), bfloat16 (half the size) or int8 (a quarter, with one
scale for each output channel). What that costs is measured on the run's test images, printed, and put on the card.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":  # before the imports that take time, in which Ctrl-C should have its effect already
    program.own_terminal("stopped; nothing was written")

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.runtime.parser import Parser

if TYPE_CHECKING:
    from cprl_jax.deploy import Model


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and writes the folder; returns the exit code."""
    keep_freed_memory()
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m cprl_jax.export", description=__doc__)
    parser.add_argument("--run", required=True, help="the folder (--workdir) of a run whose training is done")
    parser.add_argument("--out", required=True, help="the folder to write; an older one of the same kind is replaced")
    parser.add_argument("--method", default="", help="which of its models, or updates (default: cprl, else the last)")
    parser.add_argument("--dtype", default="float32", help="of the weights: float32 (default), bfloat16 or int8")
    parser.add_argument("--notice", default="", help="a text file with the terms of the data, for the card")
    parser.add_argument("--command", default="", help="what trains and exports it again, for the card")
    parser.add_argument("--certify", type=int, default=0, help="test images to certify for the card (default: none)")
    arguments = parser.parse_args(argv)
    export(**vars(arguments))


def export(
    run: str | Path,
    out: str | Path,
    *,
    method: str = "",
    dtype: str = "float32",
    notice: str = "",
    command: str = "",
    certify: int = 0,
) -> None:
    """Writes a model of a run to a folder, and prints what keeping it in `dtype` costs.

    Args:
      run, method: as for `cprl_jax.load`.
      out: the folder.
      dtype: 'float32', 'bfloat16' or 'int8'.
      notice: a text file with the terms of the data, for the card; '' for none.
      command: what trains and exports it again, for the card.
      certify: so many test images are certified for the card; 0 for none.

    Raises:
      UserError: no such model, file or dtype, or a folder that holds something else.
    """
    from cprl_jax.deploy import card, load, package, tensors
    from cprl_jax.runtime.files import user_path

    if dtype not in tensors.DTYPES:
        raise UserError(f"--dtype is {dtype!r}; it must be one of {', '.join(tensors.DTYPES)}")
    if certify < 0:
        raise UserError(f"--certify is {certify}; it must be a number of images, 0 for none")
    out, run = user_path(out, field="--out"), user_path(run, field="--run")
    package.check(out)
    if package.is_package(run):
        raise UserError(
            f"--run={run} is a model already, not a run; keep a copy of it with cprl_jax.load(FOLDER).save(OUT)"
        )
    terms = _text(notice)
    model = load(run, method=method)
    kept = model.rounded(dtype)
    measured = [
        f"{dtype}, {len(tensors.encode(kept.variables, dtype)):,} bytes of weights.",
        *_measured(model, kept, run, certify),
    ]
    kept.save(out, card=card.of_run(model.config, model.method, run, notice=terms, command=command, measured=measured))
    program.show("\n".join([f"{out}: {model.method} of {run}", *measured]))


def _text(path: str) -> str:
    """The content of the file that --notice names; '' without one."""
    try:
        return Path(path).read_text(encoding="utf-8") if path else ""
    except (OSError, ValueError) as error:
        raise UserError(
            f"--notice={path} cannot be read as text: {getattr(error, 'strerror', None) or error}"
        ) from None


def _measured(model: "Model", kept: "Model", run: Path, certify: int) -> list[str]:
    """Sentences: what rounding the weights does to the scores of the run's test images; certificates of some."""
    from cprl_jax import data
    from cprl_jax.data import splits
    from cprl_jax.data.crops import Crops
    from cprl_jax.evaluation import statistics
    from cprl_jax.evaluation.scoring import Scorer

    config = model.config
    evaluation = config.evaluation
    try:
        dataset = data.load(config.dataset)
        split = splits.load_split(run / "split.json", dataset)
    except UserError as error:
        program.complain(f"what {kept.dtype} costs is not measured: {error}")
        return [f"What {kept.dtype} costs was not measured: the images of the run were not there."]
    part = "test" if split.test else "validation"
    rows = splits.rows(dataset, getattr(split, part))
    crops = Crops(dataset, rows, crops=evaluation.crops, crop_size=evaluation.crop_size, seed=config.seed)
    scorer = Scorer(model.module, batch_size=evaluation.batch_size)
    before, after = (scorer.scores(m.variables, crops, progress=m.dtype) for m in (model, kept))
    change, mos = abs(after - before), dataset.mos[rows]
    found = [
        f"On the {len(rows)} {part} images of the run, against float32: scores differ by {change.max():.4f} at most "
        f"and {change.mean():.4f} on average (of 0..100), SRCC with the float32 scores "
        f"{statistics.srcc(after, before):.5f}, "
        f"SRCC with MOS {statistics.srcc(after, mos):.4f} (float32: {statistics.srcc(before, mos):.4f})."
    ]
    return found + ([_certified(kept, [dataset.images[row] for row in rows[:certify]], part)] if certify else [])


def _certified(model: "Model", images: list, part: str) -> str:
    import time

    import numpy as np

    started = time.monotonic()
    results = list(model.certify_each(images, radius=0.05, sigma=0.12, samples=1000))
    width = np.mean([result.upper - result.lower for result in results])
    seconds = (time.monotonic() - started) / len(results)
    return (
        f"Certified on the first {len(results)} {part} images (sigma 0.12, 1,000 samples, 99.9 %): within l2 0.05 the "
        f"median score stays in an interval of width {width:.2f} on average (of 0..100); {seconds:.1f} s an image."
    )


if __name__ == "__main__":
    sys.exit(main())
