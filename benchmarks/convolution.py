"""Time of a convolution and its two gradients: XLA's own, and what the networks of the package use.

    python benchmarks/convolution.py

The shapes are those of ResNet-18, SqueezeNet 1.1 (224 pixels) and the compact network (96 pixels). On a GPU or TPU both
are the same.
"""

import argparse
import time

import jax
import numpy as np

from cprl_jax.layers import convolution
from cprl_jax.runtime.memory import keep_freed_memory

# (network, batch, height and width, channels, features, kernel, stride, padding)
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
        kernel = rng.random((length, length, channels, features), dtype=np.float32)
        cells = []
        for way in (_xla, convolution.convolve):
            cells.append(_times(way, x, kernel, (stride, stride), ((padding, padding),) * 2, arguments.repeats))
        columns = [" / ".join(f"{cell[place]:.1f}" for cell in cells) for place in range(3)]
        print(f"| {name} | {' | '.join(columns)} |", flush=True)


def _xla(x, kernel, *, strides, padding):
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _times(way, x, kernel, strides, padding, repeats: int) -> list[float]:
    values = jax.jit(lambda x, kernel: way(x, kernel, strides=strides, padding=padding))
    by_image = jax.jit(
        lambda x, kernel, y: jax.vjp(lambda x: way(x, kernel, strides=strides, padding=padding), x)[1](y)[0]
    )
    by_kernel = jax.jit(
        lambda x, kernel, y: jax.vjp(lambda kernel: way(x, kernel, strides=strides, padding=padding), kernel)[1](y)[0]
    )
    y = values(x, kernel)
    return [
        _time(lambda: values(x, kernel), repeats),
        _time(lambda: by_image(x, kernel, y), repeats),
        _time(lambda: by_kernel(x, kernel, y), repeats),
    ]


def _time(call, repeats: int) -> float:
    jax.block_until_ready(call())
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - started)
    return 1e3 * min(times)


if __name__ == "__main__":
    main()
