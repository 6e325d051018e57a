"""Time of a meta step of CIS, CIP, MetaIQA and ERM: ours beside the same loop in eager PyTorch.

    python benchmarks/meta_updates.py                                 # compact, 10 subsets of 8 images, 96 x 96
    python benchmarks/meta_updates.py --network=resnet18 --size=224
    python benchmarks/meta_updates.py --loops=host,device --updates=cis,metaiqa
    python benchmarks/meta_updates.py --quick                         # a smoke run, whose times say nothing

Needs torch. All updates see the same subsets * batch images in a meta step, and all rows the same uint8 images, weights
of Eq. 6, start weights, L1 loss, Adam with two learning rates, interpolation by 0.5, and float32; dropout is 0, because
no two frameworks draw alike. Inner steps normalise by their own batches (`batch_norm='batch'`). `host` is a Python loop
over the inner steps around one compiled step, `device` one program with a loop inside (`lax.scan`); an update with one
inner step has no loop. `erm` is plain training, a step on each group. PyTorch treats phi, theta and the running
averages of batch statistics as ours does, with its operations on lists of tensors, and measures the same norms.

Before anything is timed, both networks must have the same number of parameters, and the first meta steps of all rows
the same loss, gradient norm and displacement. The rows take turns, so that a change of the machine's load affects all
of them. Compilation is not part of a step; `first call` has it.
"""

import argparse
import statistics
import time

import jax
import numpy as np
import optax
from tqdm import tqdm

from cprl_jax import models
from cprl_jax.experiments.causal_iqa.learner import Learner
from cprl_jax.experiments.causal_iqa.updates import METRICS, UPDATES, compile_step, first_state
from cprl_jax.models.compact import CompactScore
from cprl_jax.models.metaiqa import MetaIQA
from cprl_jax.models.resnet import ResNetScore
from cprl_jax.models.squeezenet import SqueezeNetScore
from cprl_jax.runtime import parallel
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.training.optimizers import two_rates

try:
    import torch
except ImportError as error:
    raise SystemExit("this benchmark compares with PyTorch, which is not installed: pip install torch") from error
import torch_networks  # beside this file

NETWORKS = {  # ours, and what builds it in PyTorch
    "compact": (CompactScore(score_mean=50.0, score_std=20.0), torch_networks.Compact),
    "squeezenet": (SqueezeNetScore(score_mean=50.0, score_std=20.0), torch_networks.SqueezeNet),
    "resnet18": (ResNetScore(backbone="resnet18", score_mean=50.0, score_std=20.0), torch_networks.ResNetWithHead),
    "metaiqa": (MetaIQA(backbone="resnet18", dropout=0.0, score_mean=0.0), torch_networks.MetaIQA),
}
# Learning rates of params['backbone'] and of all the rest.
RATES = {"backbone": 1e-4, "head": 1e-3}
BETAS = (0.9, 0.9999)
META_RATE = 0.5
TASK_LENGTH = {"metaiqa": 2}  # inner steps after which phi starts from theta again
TORCH = "PyTorch"
TOLERANCE = 0.02  # relative, for each of METRICS; rounding is amplified by batch statistics of few values
QUICK = dict(subsets=4, batch=4, size=64, repeats=2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(NETWORKS), default="compact", help="(default compact)")
    parser.add_argument("--updates", default=",".join(UPDATES), help=f"some of {','.join(UPDATES)} (default all)")
    parser.add_argument("--subsets", type=int, default=10, help="groups of images in a meta step (default 10)")
    parser.add_argument("--batch", type=int, default=8, help="images a group (default 8)")
    parser.add_argument("--size", type=int, default=96, help="height and width of the images (default 96)")
    parser.add_argument("--repeats", type=int, default=7, help="timed meta steps of each row (default 7)")
    parser.add_argument("--loops", default="auto", help="some of auto,host,device (default auto: host on a CPU)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts this process's processor time only: for a busy machine",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of PyTorch")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, unless given otherwise")
    arguments = parser.parse_args()
    if arguments.quick:
        parser.set_defaults(**QUICK)
        arguments = parser.parse_args()
    names, loops = arguments.updates.split(","), arguments.loops.split(",")
    if not set(names) <= set(UPDATES):
        parser.error(f"--updates={arguments.updates}: give some of {','.join(UPDATES)}")
    if not set(loops) <= {"auto", "host", "device"}:
        parser.error(f"--loops={arguments.loops}: give some of auto,host,device")
    if min(arguments.subsets, arguments.batch, arguments.size, arguments.repeats, arguments.threads) < 1:
        parser.error("--subsets, --batch, --size, --repeats and --threads must be at least 1")
    if "metaiqa" in names and arguments.subsets % 2:
        parser.error(f"--subsets={arguments.subsets}: MetaIQA needs an even number, a support and a query batch a task")
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()  # for all rows alike
    benchmark(names, loops, arguments)


def benchmark(names, loops, arguments) -> None:
    """Builds all rows, compares their first meta steps, runs them alternately and prints a table."""
    device = "cuda" if parallel.platform() == "gpu" and torch.cuda.is_available() else "cpu"
    module, build = NETWORKS[arguments.network]
    variables = models.initialize(module, jax.random.key(0), arguments.size)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    generator = np.random.default_rng(0)
    shape = (arguments.subsets, arguments.batch)
    batch = {
        "image": generator.integers(0, 256, (*shape, arguments.size, arguments.size, 3), np.uint8),
        "mos": generator.uniform(0, 100, shape).astype(np.float32),
        "weight": generator.uniform(0.5, 1, shape).astype(np.float32),
    }
    rows, inner_steps = {}, {}
    learner = Learner(module, two_rates("adam", **RATES, b2=BETAS[1]), optax.sgd(META_RATE), batch_norm="batch")
    for name in names:
        update = UPDATES[name](learner)
        inner_steps[name] = arguments.subsets if update.sequential else 1
        for loop in loops if update.sequential else ["-"]:
            step = compile_step(update, mapped=False, loop="auto" if loop == "-" else loop)
            rows[name, loop] = ours(step, first_state(variables, learner), batch)
        network = torch_networks.load(build(), variables)
        theirs = sum(parameter.numel() for parameter in network.parameters())
        if theirs != parameters:
            raise SystemExit(f"the networks differ: {parameters} parameters, and {theirs} in PyTorch")
        rows[name, TORCH] = TorchUpdate(network.to(device), module, name, update.sequential, batch).step
    first_calls = run_once(rows)
    times = run_in_turns(rows, arguments)

    print(
        f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on {device} with "
        f"{arguments.threads} threads\n{arguments.network} ({parameters:,} parameters), {arguments.subsets} subsets x "
        f"{arguments.batch} images of {arguments.size} x {arguments.size} in a meta step; {arguments.clock} time of "
        f"{arguments.repeats} meta steps: median (fastest to slowest)\n\n"
        "| | inner steps | loop | first call s | cprl_jax ms | PyTorch ms | PyTorch / cprl_jax |\n"
        "|---|---:|---|---:|---:|---:|---:|"
    )
    for (name, loop), values in times.items():
        if loop != TORCH:
            theirs = times[name, TORCH]
            print(
                f"| {name} | {inner_steps[name]} | {loop} | {first_calls[name, loop]:.1f} | {median_and_range(values)} "
                f"| {median_and_range(theirs)} | {statistics.median(theirs) / statistics.median(values):.2f} |"
            )


# Each row is a function without arguments that makes one more meta step and returns its METRICS, ready.


def ours(compiled, state, batch):
    def step():
        nonlocal state
        state, metrics = compiled(state, batch)
        jax.block_until_ready(state)
        return [float(metrics[name]) for name in METRICS]

    return step


class TorchUpdate:
    """The same meta step with PyTorch's Adam, and its operations on lists of tensors for the copies of the weights."""

    def __init__(self, network, module, update, sequential, batch):
        self.network, self.score_mean, self.score_std = network.train(), module.score_mean, module.score_std
        named = dict(network.named_parameters())
        groups = {"backbone": [], "head": []}
        for name, parameter in named.items():
            groups["backbone" if name.startswith("backbone.") else "head"].append(parameter)
        self.optimizer = torch.optim.Adam([{"params": groups[name], "lr": RATES[name]} for name in groups], betas=BETAS)
        self.phi = [parameter.detach() for parameter in named.values()]  # share their memory
        self.parameters = list(named.values())
        self.statistics = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
        self.task_length = TASK_LENGTH.get(update, 0)
        self.meta_rate = 1.0 if update == "erm" else META_RATE
        self.device = self.phi[0].device
        weight = batch["weight"] / batch["weight"].sum(1, keepdims=True)  # the groups count alike
        images = np.ascontiguousarray(batch["image"].transpose(0, 1, 4, 2, 3))
        batch = {"image": images, "mos": batch["mos"], "weight": weight if sequential else weight / weight.sum()}
        if not sequential:  # all groups as one
            batch = {name: values.reshape(1, -1, *values.shape[2:]) for name, values in batch.items()}
        self.batch = {name: torch.from_numpy(values) for name, values in batch.items()}

    def step(self):
        theta = [values.clone() for values in self.phi]
        statistics = [values.clone() for values in self.statistics]
        changes = [torch.zeros_like(values) for values in statistics]
        displacement = [torch.zeros_like(values) for values in theta] if self.task_length else None
        steps = len(self.batch["mos"])
        losses = norms = 0.0
        for index in range(steps):
            if self.task_length and index % self.task_length == 0:
                torch._foreach_copy_(self.phi, theta)
            torch._foreach_copy_(self.statistics, statistics)
            images, mos, weight = (self.batch[name][index].to(self.device) for name in ("image", "mos", "weight"))
            scores = self.score_mean + self.score_std * self.network(images.float() / 255)
            loss = torch.sum(weight * torch.abs(scores - mos))
            self.optimizer.zero_grad()
            loss.backward()
            norms = norms + torch.nn.utils.get_total_norm([parameter.grad for parameter in self.parameters])
            self.optimizer.step()
            losses = losses + loss.detach()
            torch._foreach_add_(changes, torch._foreach_sub(self.statistics, statistics))
            if self.task_length and (index + 1) % self.task_length == 0:
                torch._foreach_add_(displacement, torch._foreach_sub(self.phi, theta))
        if self.task_length:
            torch._foreach_mul_(displacement, self.task_length / steps)
        else:
            displacement = torch._foreach_sub(self.phi, theta)
        torch._foreach_copy_(self.phi, torch._foreach_add(theta, displacement, alpha=self.meta_rate))
        torch._foreach_copy_(self.statistics, torch._foreach_add(statistics, changes, alpha=1 / steps))
        return [float(value) for value in (losses / steps, norms / steps, torch.nn.utils.get_total_norm(displacement))]


def run_once(rows) -> dict:
    """The seconds of every row's first call, which compiles; the rows of an update must have the same numbers then."""
    seconds, expected = {}, {}
    for (name, loop), step in tqdm(rows.items(), desc="first calls", unit="row", dynamic_ncols=True):
        start = time.perf_counter()
        values = step()
        seconds[name, loop] = time.perf_counter() - start
        first = expected.setdefault(name, values)
        if not np.allclose(values, first, rtol=TOLERANCE):
            raise SystemExit(f"{name}: {', '.join(METRICS)} are {values} ({loop}), and {first} in the first row")
    return seconds


def run_in_turns(rows, arguments) -> dict:
    """The seconds of every meta step of every row."""
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    times = {row: [] for row in rows}
    for _ in tqdm(range(arguments.repeats), desc="repeats", dynamic_ncols=True):
        for row, step in rows.items():
            start = clock()
            step()
            times[row].append(clock() - start)
    return times


def median_and_range(seconds) -> str:
    return f"{1e3 * statistics.median(seconds):.0f} ({1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f})"


if __name__ == "__main__":
    main()
