"""A program for the tests of the launcher: what a training run does with processes and devices, and nothing else.

python -m launch_program FOLDER [lose_peer | user_error | resume]
"""

import faulthandler
import json
import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cprl_jax.runtime import parallel
from cprl_jax.runtime.errors import UserError
from cprl_jax.training import checkpoints


def step(state, batch):
    def loss(weights):
        return jnp.mean((batch @ weights) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["weights"])
    gradient, value = jax.lax.pmean((gradient, value), parallel.AXIS)
    return {"weights": state["weights"] - 0.1 * gradient, "step": state["step"] + 1}, {"loss": value}


def initial_state():
    return {"weights": jnp.asarray([1.0, -2.0, 3.0]), "step": jnp.asarray(0, jnp.int32)}


def batch_of_this_process(number):
    batch = np.random.default_rng(number).normal(size=(8, 3)).astype(np.float32)
    return parallel.shard(np.split(batch, parallel.process_count())[parallel.process_index()])


def train(state, *, first, last, lose_peer=False):
    train_step = parallel.map_step(step)
    for number in range(first, last):
        if lose_peer and number == first + 3 and parallel.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        state, metrics = train_step(state, batch_of_this_process(number))
        float(metrics["loss"])
    return state


def main(folder, wish=""):
    with parallel.cluster(), checkpoints.Checkpoints(folder / "checkpoints") as saved:
        if wish == "user_error":
            raise UserError("unknown method 'nonsense'; one of plain, cprl, at")
        state, first = parallel.replicate(initial_state()), 0
        if wish == "resume":
            first = saved.latest_step()
            state = saved.restore(first, initial_state())
        state = train(state, first=first, last=first + 5, lose_peer=wish == "lose_peer")
        saved.save(first + 5, state)
        scores = parallel.map_batch(lambda weights, batch: batch @ weights)(state["weights"], batch_of_this_process(0))
        all_scores = parallel.gather(parallel.unshard(scores))
        everyone = parallel.gather(np.full(1 + parallel.process_index(), parallel.process_index() + 0.1))
        if parallel.is_main_process():
            results = {"weights": np.asarray(state["weights"]).tolist(), "everyone": everyone.tolist()}
            (folder / "results.json").write_text(json.dumps(results | {"scores": all_scores.tolist()}))
            print(f"{parallel.process_count()} processes, {parallel.device_count()} devices")
        else:
            print("a line of another process")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(270, exit=True)  # where it hangs, should it hang
    main(Path(sys.argv[1]), *sys.argv[2:])
