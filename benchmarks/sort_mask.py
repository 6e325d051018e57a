"""Time and memory of SortMaskConv beside the plain convolution and the literal definition.

    python benchmarks/sort_mask.py                 # the two layer sizes of docs/papers.md
    python benchmarks/sort_mask.py --shape 8,56,56,64 --kernel 3 --rate 0.05 --repeats 11

Every row is one jitted function; the rows of a table take turns, so that a change of the machine's load affects
all of them. `temp` is what XLA sets aside for intermediate results, inputs and outputs not counted.
"""

import argparse
import statistics
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cprl_jax.layers.sort_mask import SortMaskConv

PATIENCE = 5.0  # seconds after which a row is not repeated any more
DEFAULT_SHAPES = ("16,28,28,128", "16,14,14,256")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape",
        action="append",
        metavar="B,H,W,C",
        help=f"input shape, may be repeated; default {' and '.join(DEFAULT_SHAPES)}",
    )
    parser.add_argument("--kernel", type=int, default=3, help="kernel height and width (default 3)")
    parser.add_argument("--rate", type=float, default=0.1, help="share of entries that is masked (default 0.1)")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each row (default 7)")
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu counts this process's processor time only: for one core of a busy machine",
    )
    parser.add_argument("--skip-literal", action="store_true", help="leave out the rows that unfold (slow)")
    arguments = parser.parse_args()
    print(
        f"jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}, float32, "
        f"kernel {arguments.kernel}x{arguments.kernel}, rate {arguments.rate}"
    )
    for text in arguments.shape or DEFAULT_SHAPES:
        shape = tuple(int(size) for size in text.split(","))
        if len(shape) != 4:
            parser.error(f"--shape needs four sizes such as {DEFAULT_SHAPES[0]}, got {text!r}")
        benchmark(shape, arguments)


def benchmark(shape: tuple[int, ...], arguments: argparse.Namespace) -> None:
    """Prints three tables for one input shape: test-time output, its input gradient, and a training gradient."""
    kernel_size = (arguments.kernel, arguments.kernel)
    x = nn.relu(jax.random.normal(jax.random.key(0), shape))
    plain = nn.Conv(shape[-1], kernel_size)
    fast, top_k = (
        SortMaskConv(shape[-1], kernel_size, rate=arguments.rate, selection=selection)
        for selection in ("fast", "top_k")
    )
    variables = plain.init(jax.random.key(1), x)
    key = jax.random.key(2)

    def drawn(variables, x):
        return fast.apply(variables, x, train=True, rngs={"mask": key})

    def literal_drawn(variables, x):
        return literal_training(variables, x, key, arguments.rate)

    def gradient(function, argnums):
        return jax.grad(lambda variables, x: jnp.sum(function(variables, x) ** 2), argnums)

    test = {"plain convolution": plain.apply, "SortMaskConv, fast": fast.apply}
    train = {"plain convolution": plain.apply, "SortMaskConv, train": drawn}
    literal_test, literal_train = {"SortMaskConv, top_k": top_k.apply}, {"unfolded, bernoulli": literal_drawn}
    if arguments.skip_literal:
        literal_test = literal_train = {}
    print_table(f"{shape}: test time, output", test | literal_test, variables, x, arguments)
    print_table(
        f"{shape}: test time, output and gradient in x",
        {name: gradient(function, 1) for name, function in test.items()},
        variables,
        x,
        arguments,
    )
    train |= literal_train
    print_table(f"{shape}: training, output", train, variables, x, arguments)
    print_table(
        f"{shape}: training, output and gradient in x and the weights",
        {name: gradient(function, (0, 1)) for name, function in train.items()},
        variables,
        x,
        arguments,
    )


def literal_training(variables, x, key, rate):
    """W (M * x_u) + b with the whole unfolded input and one Bernoulli mask of its size."""
    kernel = variables["params"]["kernel"]
    unfolded = lax.conv_general_dilated_patches(
        x, kernel.shape[:2], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    unfolded = unfolded * jax.random.bernoulli(key, 1 - rate, unfolded.shape)
    flat = kernel.transpose(2, 0, 1, 3).reshape(unfolded.shape[-1], -1)  # its channels come channel first, then kernel
    return unfolded @ flat + variables["params"]["bias"].reshape(1, 1, 1, -1)


def print_table(title, functions, variables, x, arguments) -> None:
    """Compiles the functions, runs them alternately and prints a row for each; times are relative to the first."""
    clock = time.perf_counter if arguments.clock == "wall" else time.process_time
    compiled = {name: jax.jit(function).lower(variables, x).compile() for name, function in functions.items()}
    for function in compiled.values():  # the first call warms up
        jax.block_until_ready(function(variables, x))
    times = {name: [] for name in compiled}
    for _ in range(arguments.repeats):
        for name, function in compiled.items():
            if sum(times[name]) < PATIENCE:
                start = clock()
                jax.block_until_ready(function(variables, x))
                times[name].append(clock() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    yardstick = next(iter(medians.values()))
    print(f"\n{title}\n{'':24}{'median ms':>12}{'fastest ms':>12}{'x plain':>10}{'temp MiB':>12}")
    for name, function in compiled.items():
        temporary = function.memory_analysis().temp_size_in_bytes / 2**20
        print(
            f"{name:24}{1e3 * medians[name]:12.1f}{1e3 * min(times[name]):12.1f}"
            f"{medians[name] / yardstick:10.2f}{temporary:12.1f}"
        )


if __name__ == "__main__":
    main()
