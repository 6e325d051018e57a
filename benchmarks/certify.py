"""How long a certificate takes: median smoothing beside a plain loop that scores one noisy image after the other.

    python benchmarks/certify.py [--network=squeezenet] [--size=224] [--samples=200]

Random weights; images a second do not depend on them. The widths of a trained model's bounds, as MSU states them for
certified IQA (sigma 0.12, 1,000 samples, 99.9 %, l2 0.05: 0.9 to 2.3 % of the range of the scores), are those of

    python -m cprl_jax.main --config=CONFIG --workdir=RUN --config.job=evaluate \\
        --config.evaluation.certify.samples=1000 --config.evaluation.certify.radii='(0.05,)'
"""

import argparse
import time

import jax
import numpy as np

from cprl_jax import models
from cprl_jax.config import defaults
from cprl_jax.robustness import certify


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="squeezenet", choices=sorted(models.NETWORKS))
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels (default 224)")
    parser.add_argument("--samples", type=int, default=200, help="scores under noise (default 200)")
    given = parser.parse_args()
    config = defaults.default()
    config.model.name, config.model.sort_mask.rate = given.network, 0.0
    module = models.create(config.model)
    score_fn = models.score_fn(module, models.initialize(module, jax.random.key(0), given.size))
    images = np.random.default_rng(0).random((1, given.size, given.size, 3), np.float32)
    options = {"sigma": 0.12, "samples": given.samples, "key": jax.random.key(1)}

    one = jax.jit(certify.under_noise(score_fn, sigma=0.12))

    def loop():
        for number in range(given.samples):
            np.asarray(one(jax.random.fold_in(options["key"], number), images))

    print(f"{given.network}, one image of {given.size} pixels, {given.samples} samples: seconds")
    for name, run in {
        "loop": loop,
        "batches of 8": lambda: certify.median_smoothing(score_fn, images, batch_size=8, **options),
        "batches of 32": lambda: certify.median_smoothing(score_fn, images, batch_size=32, **options),
    }.items():
        run()  # compiles
        started = time.perf_counter()
        run()
        print(f"{name:>14}{time.perf_counter() - started:8.2f}", flush=True)


if __name__ == "__main__":
    main()
