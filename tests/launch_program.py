"""A program for the tests of the launcher: what a training run does with processes and devices, and nothing else.

python -m launch_program FOLDER [lose_peer | user_error | resume]
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from cprl_jax import checkpoints, parallel
from cprl_jax.errors import UserError


def step(state, batch):
    def loss(weights):
        return jnp.mean((batch @ weights) ** 2)

    value, gradient = jax.value_and_grad(loss)(state["weights"])
    gradient, value = jax.lax.pmean((gradient, value), parallel.AXIS)
    return {"weights": state["weights"] - 0.1 * gradient, "step": state["step"] + 1}, {"loss": value}


def initial_state():
    return {"weights": jnp.asarray([1.0, -2.0, 3.0]), "step": jnp.asarray(0, jnp.int32)}


def batch_of(number):
    return np.random.default_rng(number).normal(size=(8, 3)).astype(np.float32)


def train(state, folder, *, first, last, lose_peer=False):
    train_step = parallel.map_step(step)
    rows = batch_of(0).shape[0] // parallel.process_count()
    mine = slice(parallel.process_index() * rows, (parallel.process_index() + 1) * rows)
    for number in range(first, last):
        if lose_peer and number == first + 3 and parallel.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        state, metrics = train_step(state, parallel.shard(batch_of(number)[mine]))
        float(metrics["loss"])
    return state


def main(folder, wish=""):
    with parallel.cluster(), checkpoints.Checkpoints(folder / "checkpoints") as saved:
        if wish == "user_error":
            raise UserError("unknown method 'nonsense'; one of plain, cprl, at")
        state, first = parallel.replicate(initial_state()), 0
        if wish == "resume":
            first = saved.latest_step()
            state, _ = saved.restore(first, initial_state())
        state = train(state, folder, first=first, last=first + 5, lose_peer=wish == "lose_peer")
        saved.save(first + 5, state, {"processes": parallel.process_count()})
        everyone = parallel.gather(np.full(1 + parallel.process_index(), parallel.process_index() + 0.1))
        if parallel.is_main_process():
            report = np.concatenate([np.asarray(state["weights"], np.float64), everyone])
            (folder / "report.txt").write_text(" ".join(repr(float(value)) for value in report))
            print(f"{parallel.process_count()} processes, {parallel.device_count()} devices")
        else:
            print("a line of another process")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
