"""What `cprl_jax.runtime.memory.keep_freed_memory` saves on a CPU: PGD with and without it, alternately.

    python benchmarks/memory.py [--batch=16] [--size=224] [--repeats=5]

Each turn is a separate process, because the setting cannot be undone.
"""

import argparse
import json
import statistics
import subprocess
import sys

PROGRAM = """
import json, resource, sys, time
keep, batch, size, repeats = json.loads(sys.argv[1])
from cprl_jax.runtime.memory import keep_freed_memory
if keep and not keep_freed_memory():
    sys.exit("this system's malloc has no such setting")
import jax, numpy as np
from cprl_jax import attacks
from cprl_jax.config import defaults as config
from cprl_jax import models
model = config.default().model
model.sort_mask.rate = 0.0
module = models.create(model)
score_fn = models.score_fn(module, models.initialize(module, jax.random.key(0), size))
images = np.random.default_rng(0).random((batch, size, size, 3), dtype=np.float32)
times = []
for _ in range(repeats + 1):
    start = time.perf_counter()
    result = attacks.pgd(score_fn, images, radius=2 / 255, steps=10, direction=attacks.up())
    jax.block_until_ready(result)
    times.append(time.perf_counter() - start)
print(json.dumps([sorted(times[1:])[repeats // 2], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images at once")
    parser.add_argument("--size", type=int, default=224, help="height and width, pixels")
    parser.add_argument("--repeats", type=int, default=5, help="attacks a turn (median)")
    parser.add_argument("--turns", type=int, default=3, help="turns of either (median)")
    arguments = parser.parse_args()
    turns = {False: [], True: []}
    for _ in range(arguments.turns):
        for keep, results in turns.items():
            options = json.dumps([keep, arguments.batch, arguments.size, arguments.repeats])
            done = subprocess.run([sys.executable, "-c", PROGRAM, options], stdout=subprocess.PIPE, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    seconds = {keep: statistics.median(time for time, _ in results) for keep, results in turns.items()}
    print(f"PGD-10 on SqueezeNet, {arguments.batch} images of {arguments.size} pixels")
    print("| freed memory | seconds | peak GB |")
    print("|---|---|---|")
    for keep, results in turns.items():
        peak = max(memory for _, memory in results)
        print(f"| {'kept' if keep else 'given back'} | {seconds[keep]:.2f} | {peak:.1f} |")
    print(f"kept: {seconds[False] / seconds[True]:.2f} times as fast")


if __name__ == "__main__":
    main()
