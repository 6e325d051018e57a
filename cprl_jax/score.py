"""Scores image files with a trained model: `python -m cprl_jax.score photo.jpg *.png --checkpoint=runs/livec`.

One line per file, `score<TAB>path`, in their order; the score is on the scale of the labels, 0..100 for the models of
this project, higher is better. It is a function of the pixels and the model alone: each image is resized as in the
run, if it did, and its score is the mean over crops at the places that the run's test images of that size have. Files
are JPEG, PNG, BMP, WebP or TIFF and taken as a viewer shows them: upright as EXIF says, transparency over white, 16-bit
grey and CMYK converted (`cprl_jax.data.decode.decode_photograph`).

From Python: `scorer = load("runs/livec"); scorer(["photo.jpg"])`.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from cprl_jax.config.defaults import method_of, read_config
from cprl_jax.data import combined
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import CachedImages, QualityDataset
from cprl_jax.data.decode import decode_photograph
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.memory import keep_freed_memory


def load(
    run: str | Path, *, method: str = "", crops: int = 0
) -> Callable[[Sequence[str | Path]], Float[np.ndarray, " files"]]:
    """Makes a function from image files to scores out of a run's folder.

    Args:
      run: the folder (--workdir) of a run of `cprl_jax.main` whose training is done.
      method: which of its models; '' = cprl where it was trained, else the last method.
      crops: crops per image; 0 = as in the run's evaluation.

    Raises:
      UserError: no run, method or checkpoint there; when called, a file that is no image (named).
    """
    from cprl_jax.evaluation.scoring import Scorer  # after the checks of the command line: JAX takes seconds to start
    from cprl_jax.training.setup import create_model, trained_variables

    run = Path(run).expanduser()
    config = read_config(run)
    method = method_of(config, method, run)
    evaluation = config.evaluation
    options = {"crops": crops or evaluation.crops, "crop_size": evaluation.crop_size, "seed": config.seed}
    variables = trained_variables(config, method, run / method)
    scorer = Scorer(create_model(config, method), batch_size=evaluation.batch_size)

    def score(files: Sequence[str | Path]) -> Float[np.ndarray, " files"]:
        scores = []
        for path in tqdm(files, desc="score", unit="image", disable=len(files) < 20, dynamic_ncols=True):
            dataset = _dataset(Path(path), resize=config.dataset.get("resize", 0))
            scores.append(scorer.scores(variables, Crops(dataset, [0], **options))[0])
        return np.array(scores, np.float32)

    return score


def _dataset(path: Path, *, resize: int) -> QualityDataset:
    """A data set of one image."""
    try:
        image = decode_photograph(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    unknown = np.zeros(1, np.float32)
    dataset = QualityDataset(
        name="files",
        images=CachedImages(lambda index: image, 1),
        names=[path.name],
        mos=unknown,
        mos_raw=unknown,
        mos_std=unknown * np.nan,
        references=[path.name],
        distortions=[""],
        levels=[0],
    )
    return combined.resize(dataset, resize, cache_gib=0) if resize else dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the scores; returns the exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m cprl_jax.score", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="+", help="image files: JPEG, PNG, BMP, WebP or TIFF")
    parser.add_argument("--checkpoint", required=True, help="the folder of a run (its --workdir)")
    parser.add_argument("--method", default="", help="which of its models (default: cprl, else the last one)")
    parser.add_argument("--crops", type=int, default=0, help="crops per image (default: as in the run's evaluation)")
    arguments = parser.parse_args(argv)
    keep_freed_memory()
    try:
        scores = load(arguments.checkpoint, method=arguments.method, crops=arguments.crops)(arguments.images)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path, value in zip(arguments.images, scores, strict=True):
        print(f"{value:.2f}\t{path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
