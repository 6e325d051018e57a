"""Time of a convolution and its two gradients: XLA's own, and what the networks of the package use.

    python benchmarks/convolution.py

The shapes are those of ResNet-18, SqueezeNet 1.1 (224 pixels), the compact network (96 pixels) and the depthwise
convolutions of EfficientNet-Lite0 (160 pixels). On a GPU or TPU both are the same. The two take turns, so that a change
of the machine's load hits both.
"""

import argparse
import functools
import time

import jax
import numpy as np

from cprl_jax.layers.convolution import convolve
from cprl_jax.layers.depthwise import depthwise
from cprl_jax.runtime.memory import keep_freed_memory

# (network, batch, height and width, channels, features (0: depthwise), kernel, stride, padding)
SHAPES = (
    ("ResNet-18 stem", 16, 224, 3, 64, 7, 2, 3),
    ("ResNet-18 stage 1", 16, 56, 64, 64, 3, 1, 1),
    ("ResNet-18 stage 2", 16, 28, 128, 128, 3, 1, 1),
    ("ResNet-18 to stage 2", 16, 56, 64, 128, 3, 2, 1),
    ("ResNet-18 stage 3", 16, 14, 256, 256, 3, 1, 1),
    ("ResNet-18 stage 4", 16, 7, 512, 512, 3, 1, 1),
    ("SqueezeNet stem", 16, 224, 3, 64, 3, 2, 0),
    ("SqueezeNet fire 3", 16, 55, 16, 64, 3, 1, 1),
    ("SqueezeNet fire 5", 16, 27, 32, 128, 3, 1, 1),
    ("SqueezeNet fire 9", 16, 13, 64, 256, 3, 1, 1),
    ("compact stage 1", 24, 48, 24, 48, 3, 1, 1),
    ("compact stage 2", 24, 24, 48, 96, 3, 1, 1),
    ("Lite0 block 0", 16, 80, 32, 0, 3, 1, 1),
    ("Lite0 block 1", 16, 80, 96, 0, 3, 2, 1),
    ("Lite0 block 2", 16, 40, 144, 0, 3, 1, 1),
    ("Lite0 block 3", 16, 40, 144, 0, 5, 2, 2),
    ("Lite0 block 4", 16, 20, 240, 0, 5, 1, 2),
    ("Lite0 block 5", 16, 20, 240, 0, 3, 2, 1),
    ("Lite0 block 6", 16, 10, 480, 0, 3, 1, 1),
    ("Lite0 block 9", 16, 10, 672, 0, 5, 1, 2),
    ("Lite0 block 11", 16, 10, 672, 0, 5, 2, 2),
    ("Lite0 block 12", 16, 5, 1152, 0, 5, 1, 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each (default 7); the fastest counts")
    parser.add_argument("--batch", type=int, default=0, help="images at once (default: as a training step has)")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}; milliseconds: XLA / ours\n")
    print("| | values | gradient in the image | gradient in the kernel |\n|---|---:|---:|---:|")
    for name, batch, size, channels, features, length, stride, padding in SHAPES:
        batch = arguments.batch or batch
        rng = np.random.default_rng(0)
        x = rng.random((batch, size, size, channels), dtype=np.float32)
        kernel = rng.random((length, length, channels if features else 1, features or channels), dtype=np.float32)
        ways = (_xla if features else functools.partial(_xla, groups=channels)), (convolve if features else depthwise)
        calls = [_calls(way, x, kernel, (stride, stride), ((padding, padding),) * 2) for way in ways]
        cells = [_fastest(pair, arguments.repeats) for pair in zip(*calls, strict=True)]
        print(f"| {name} | {' | '.join(f'{xla:.1f} / {ours:.1f}' for xla, ours in cells)} |", flush=True)


def _xla(x, kernel, *, strides, padding, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    )


def _calls(way, x, kernel, strides, padding) -> list:
    """The values, the gradient in the image and that in the kernel."""
    values = jax.jit(lambda x, kernel: way(x, kernel, strides=strides, padding=padding))
    by_image = jax.jit(
        lambda x, kernel, y: jax.vjp(lambda x: way(x, kernel, strides=strides, padding=padding), x)[1](y)[0]
    )
    by_kernel = jax.jit(
        lambda x, kernel, y: jax.vjp(lambda kernel: way(x, kernel, strides=strides, padding=padding), kernel)[1](y)[0]
    )
    y = values(x, kernel)
    return [lambda: values(x, kernel), lambda: by_image(x, kernel, y), lambda: by_kernel(x, kernel, y)]


def _fastest(calls, repeats: int) -> list[float]:
    """Milliseconds of the fastest of each one's calls."""
    times = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, taken in zip(calls, times, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first one compiles
                taken.append(time.perf_counter() - started)
    return [1e3 * min(taken) for taken in times]


if __name__ == "__main__":
    main()
