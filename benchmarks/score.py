"""How long a photograph takes to be scored: in a call with others, and padded to a batch of its own.

    python benchmarks/score.py --checkpoint=runs/quickstart [--images=200] [--size=160] [--crops=1,8]

`alone`: each JPEG is read, decoded, cut and scored by itself, in a batch that is filled up with copies. `together`: one
call of `cprl_jax.score.load`. `decoding`: reading and decoding alone, one file after the other. Turns of all three
alternate; compiling is not counted.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import ml_collections
import numpy as np
from PIL import Image

from cprl_jax import score
from cprl_jax.config.defaults import method_of, read_config
from cprl_jax.data.crops import Crops
from cprl_jax.data.decode import decode_photograph
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.training.setup import trained_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="the folder of a run")
    parser.add_argument("--images", type=int, default=200, help="number of photographs (default 200)")
    parser.add_argument("--size", type=int, default=160, help="their side in pixels (default 160)")
    parser.add_argument("--crops", default="1,8", help="crops an image (default 1,8)")
    parser.add_argument("--turns", type=int, default=3, help="turns of either (median)")
    arguments = parser.parse_args()
    keep_freed_memory()
    config = read_config(Path(arguments.checkpoint))
    print(f"{method_of(config, '', Path(arguments.checkpoint))}, {arguments.images} photographs, ms for one")
    print(f"{'crops':>5}{'alone':>10}{'together':>10}{'decoding':>10}{'alone / together':>18}")
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), count=arguments.images, size=arguments.size)
        for crops in map(int, arguments.crops.split(",")):
            together = score.load(arguments.checkpoint, crops=crops)
            ways = {
                "alone": padded(config, Path(arguments.checkpoint), crops=crops),
                "together": lambda files, scorer=together: list(scorer.each(files)),
                "decoding": lambda files: [decode_photograph(file.read_bytes()) for file in files],
            }
            seconds = {name: [] for name in ways}
            for turn in range(arguments.turns + 1):  # the first one compiles
                for name, way in ways.items():
                    start = time.perf_counter()
                    way(files)
                    if turn:
                        seconds[name].append(time.perf_counter() - start)
            each = {name: 1e3 * statistics.median(times) / len(files) for name, times in seconds.items()}
            print(f"{crops:5}" + "".join(f"{ms:10.1f}" for ms in each.values()), end="")
            print(f"{each['alone'] / each['together']:18.1f}", flush=True)


def photographs(folder: Path, *, count: int, size: int) -> list[Path]:
    """JPEG files of smooth noise."""
    generator, files = np.random.default_rng(0), [folder / f"{index}.jpg" for index in range(count)]
    for file in files:
        coarse = Image.fromarray(generator.integers(0, 256, (size // 8, size // 8, 3), np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def padded(config: ml_collections.ConfigDict, run: Path, *, crops: int) -> Callable[[Sequence[Path]], None]:
    """A function that scores files one by one."""
    method, evaluation = method_of(config, "", run), config.evaluation
    module, variables = trained_model(config, method, run)
    scorer = Scorer(module, batch_size=evaluation.batch_size)
    options = {"crops": crops, "crop_size": evaluation.crop_size, "seed": config.seed}

    def score_all(files: Sequence[Path]) -> None:
        for file in files:
            dataset = SimpleNamespace(images=[decode_photograph(file.read_bytes())])
            scorer.scores(variables, Crops(dataset, [0], **options))

    return score_all


if __name__ == "__main__":
    main()
