"""Whether a model orders the JPEG qualities of a photograph: the rank correlation of its scores with the quality.

    python benchmarks/jpeg_ladders.py --model=runs/ma19 DIR

Each photograph in DIR, resized to --height pixels, is written at 12 qualities from 5 to 95 and scored; 1 is the right
order.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

import cprl_jax
from cprl_jax.data import photographs
from cprl_jax.data.decode import decode_photograph
from cprl_jax.evaluation import statistics
from cprl_jax.runtime import program
from cprl_jax.runtime.errors import UserError

QUALITIES = (5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 85, 95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="DIR")
    parser.add_argument("--model", required=True, help="robust, plain, a run's folder, a model's folder or user/repo")
    parser.add_argument("--height", type=int, default=256, help="of the resized photographs, in pixels (default 256)")
    given = parser.parse_args()
    if given.height < 32:
        raise UserError(f"--height={given.height}: it must be at least 32")
    model = cprl_jax.load(given.model)
    found = []
    for path in photographs.image_files(Path(given.folder)):
        try:
            image = Image.fromarray(decode_photograph(photographs.content(path)))
        except (OSError, ValueError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        image = image.resize((round(image.width * given.height / image.height), given.height), Image.Resampling.LANCZOS)
        ladder = []
        for quality in QUALITIES:
            content = io.BytesIO()
            image.save(content, "JPEG", quality=quality)
            ladder.append(np.asarray(Image.open(content).convert("RGB")))
        found.append(statistics.srcc(np.asarray(model(np.stack(ladder))), np.array(QUALITIES)))
        print(f"{found[-1]:7.3f}  {path}", flush=True)
    known = np.array(found)[~np.isnan(found)]
    if not known.size:
        raise UserError(f"{given.folder} has no photographs" + " whose scores differ between qualities" * bool(found))
    print(f"{known.mean():7.3f}  mean; smallest {known.min():.3f}, of {known.size} photographs", end="")
    print(f"; {len(found) - known.size} with equal scores left out" * (known.size < len(found)))


if __name__ == "__main__":
    sys.exit(program.run(main))
