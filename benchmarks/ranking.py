"""How long the search for the lowest SRCC takes, and how far it is from its bound.

    python benchmarks/ranking.py [--images=10000]

Made-up scores and labels; each score reaches as many points (of 100) down and up as an exponential distribution of the
given mean says, within 0..100. `levels`: different labels.
"""

import argparse
import time

import numpy as np
from scipy import stats

from cprl_jax.robustness.ranking import lowest_srcc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="how many (default 10000)")
    count = parser.parse_args().images
    random = np.random.default_rng(0)
    print(f"{count} images\n{'levels':>6}{'reach':>7}{'clean':>9}{'achieved':>10}{'bound':>9}{'seconds':>9}")
    for levels in (5, 1000):
        mos = random.integers(0, levels, count) * 100 / (levels - 1)
        scores = np.clip(mos + random.normal(0, 15, count), 0, 100)
        for reach in (0, 3, 20, 100):
            down, up = random.exponential(reach, (2, count))
            lower, upper = np.clip(scores - down, 0, 100), np.clip(scores + up, 0, 100)
            start = time.perf_counter()
            found = lowest_srcc(lower, upper, mos)
            seconds, clean = time.perf_counter() - start, stats.spearmanr(scores, mos).statistic
            print(f"{levels:6}{reach:7}{clean:9.3f}{found.achieved:10.3f}{found.bound:9.3f}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
