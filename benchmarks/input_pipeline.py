"""How fast training batches are made, and how long a training step waits for them.

    python benchmarks/input_pipeline.py                        # random JPEG photographs of 500 x 500 pixels
    python benchmarks/input_pipeline.py --manual_dir=FOLDER    # LIVE-C from its official release
    python benchmarks/input_pipeline.py --config=configs/own.py --manual_dir=FOLDER

The first table gives images per second of every way to a batch: decoding alone, crops of decoded images in memory and
in a memory-mapped file for one thread and more, crops cut on the devices. The second one runs training steps of the
plain method (SqueezeNet 1.1, 224 pixels, 16 images a step, unless --config says otherwise) as `training.loop.fit` does:
`waiting` is the time from asking for a batch to having it, beside the time of the whole step; `one batch` repeats a
batch that was made before, so what a step takes longer than that is what making the batches costs.
"""

import argparse
import itertools
import os
import runpy
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from cprl_jax import data, models
from cprl_jax.data.dataset import CachedImages, QualityDataset, decode_rgb
from cprl_jax.data.decoded_file import DecodedImages
from cprl_jax.data.device_images import training_feed
from cprl_jax.data.pipeline import prefetch, training_batches
from cprl_jax.runtime import parallel
from cprl_jax.runtime.memory import keep_freed_memory
from cprl_jax.training.optimizers import make_optimizer
from cprl_jax.training.setup import create_model
from cprl_jax.training.state import create_state
from cprl_jax.training.step import make_step

DEFAULT_CONFIG = f"{Path(__file__).parents[1] / 'configs' / 'livec.py'}:backbone=squeezenet,schedule=paper"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="", help="FILE[:key=value,...] of an experiment: its data, network, sizes")
    parser.add_argument("--manual_dir", default="", help="the folder of the official release, as in a configuration")
    parser.add_argument("--images", type=int, default=500, help="number of images, at most (default 500)")
    parser.add_argument("--size", type=int, default=500, help="side of random photographs in pixels (default 500)")
    parser.add_argument("--batch_size", type=int, default=0, help="default: that of the configuration, 16")
    parser.add_argument("--crop_size", type=int, default=0, help="default: that of the configuration, 224")
    parser.add_argument("--batches", type=int, default=200, help="batches for a row of the first table (default 200)")
    parser.add_argument("--steps", type=int, default=100, help="steps for a row of the second table (default 100)")
    parser.add_argument("--threads", default="", help="such as 1,2,4; default: doubling up to the number of cores")
    arguments = parser.parse_args()
    keep_freed_memory()
    path, _, argument = (arguments.config or DEFAULT_CONFIG).partition(":")
    config = runpy.run_path(path)["get_config"](argument or None)
    batch_size = arguments.batch_size or config.plain.batch_size or config.train.batch_size
    crop_size = arguments.crop_size or config.plain.crop_size or config.train.crop_size
    cores = os.cpu_count() or 1
    threads = [1 << i for i in range(cores.bit_length()) if 1 << i < cores] + [cores]
    if arguments.threads:
        threads = [int(number) for number in arguments.threads.split(",")]
    options = {"batch_size": batch_size, "crop_size": crop_size, "seed": config.seed}
    with tempfile.TemporaryDirectory() as folder:
        if arguments.config or arguments.manual_dir:
            config.dataset.manual_dir = arguments.manual_dir
            config.dataset.cache, config.dataset.cache_gib = "memory", 0.0  # decodes at every access
            dataset = data.load(config.dataset)
        else:
            dataset = random_photographs(Path(folder), count=arguments.images, size=arguments.size)
        print(
            f"{dataset.name}, batches of {batch_size} crops of {crop_size} pixels; {cores} "
            f"cores, jax {jax.__version__}, {jax.device_count()} x {jax.devices()[0].device_kind}"
        )
        in_memory = decode_rows(dataset, min(len(dataset), arguments.images), threads)
        rows = list(crop_rows(in_memory, Path(folder), options, threads, arguments.batches))
        print(f"\n{'crops':40}{'images/s':>12}")
        for name, speed in rows:
            print(f"{name:40}{speed:12.0f}")
        waiting_rows(config, in_memory, options, threads, arguments.steps)


def random_photographs(folder: Path, *, count: int, size: int) -> QualityDataset:
    """JPEG files of noise with the spectrum of photographs, which take about as long to decode."""
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size))[..., None]
    files = []
    for i in tqdm(range(count), desc="random photographs", unit="image", leave=False):
        noise = np.fft.rfft2(rng.normal(size=(size, size, 3)), axes=(0, 1)) / np.maximum(frequency, 1 / size)
        pixels = np.fft.irfft2(noise, s=(size, size), axes=(0, 1))
        pixels = np.clip(128 + 50 * pixels / pixels.std(), 0, 255).astype(np.uint8)
        files.append(folder / f"{i}.jpg")
        Image.fromarray(pixels).save(files[-1], quality=90)
    names = [file.name for file in files]
    mos = rng.uniform(0, 100, count)
    images = CachedImages(lambda i: decode_rgb(files[i].read_bytes()), count, cache_bytes=0)  # decodes every time
    return QualityDataset(
        name="random photographs",
        images=images,
        names=names,
        mos=mos,
        mos_raw=mos,
        mos_std=np.full(count, np.nan),
        references=names,
        distortions=[""] * count,
        levels=[0] * count,
    )


def decode_rows(dataset: QualityDataset, count: int, threads: list[int]) -> QualityDataset:
    """Prints how fast images are decoded; returns a dataset of the first `count` images, decoded."""
    print(f"\n{f'{count} images':40}{'images/s':>12}")
    for number in threads:
        with ThreadPoolExecutor(number) as pool:
            start = time.perf_counter()
            images = list(pool.map(dataset.images.__getitem__, range(count)))
            seconds = time.perf_counter() - start
        print(f"{named('reading and decoding', number):40}{count / seconds:12.0f}", flush=True)
    return with_images(dataset, images)


def with_images(dataset: QualityDataset, images) -> QualityDataset:
    """The first rows of a dataset, with these images."""
    columns = ("names", "mos", "mos_raw", "mos_std", "references", "distortions", "levels")
    return QualityDataset(
        name=dataset.name, images=images, **{name: getattr(dataset, name)[: len(images)] for name in columns}
    )


def crop_rows(dataset: QualityDataset, folder: Path, options: dict, threads: list[int], batches: int):
    """Images per second of every place where crops are cut, as (name, speed)."""
    on_disk = with_images(dataset, DecodedImages(dataset.images.__getitem__, len(dataset), path=folder / "pixels"))
    for name, source in (("from memory", dataset), ("from a memory-mapped file", on_disk)):
        for number in threads:
            iterator = prefetch(training_batches(source, range(len(source)), **options), threads=number)
            yield named(name, number), images_per_second(iterator, options["batch_size"], batches)
    feed = training_feed(dataset, range(len(dataset)), **options, crop_on="device")
    yield "on the devices", images_per_second(feed(0), options["batch_size"], batches)


def images_per_second(iterator, batch_size: int, batches: int) -> float:
    """The speed of making `batches` batches, after one that starts the threads and compiles."""
    jax.block_until_ready(next(iterator))
    start = time.perf_counter()
    for batch in itertools.islice(iterator, batches):
        jax.block_until_ready(batch)  # nothing to wait for where NumPy made it
    seconds = time.perf_counter() - start
    iterator.close()
    return batches * batch_size / seconds


def waiting_rows(config, dataset: QualityDataset, options: dict, threads: list[int], steps: int) -> None:
    """Prints what share of a training step is spent waiting for its batch."""
    module = create_model(config, "plain", axis_name=parallel.AXIS)
    optimizer = make_optimizer(config.train, steps=steps)
    variables = models.initialize(module, jax.random.key(0), options["crop_size"])
    initial = create_state(variables, optimizer.init(variables["params"]))
    step_fn = parallel.map_step(make_step(module, optimizer, config, method="plain", axis_name=parallel.AXIS))
    feeds = {named("host", number): {"crop_on": "host", "workers": number} for number in threads}
    if parallel.platform(mapped=True) != "cpu":  # there, crop_on='auto' stays on the host
        feeds["on the devices"] = {"crop_on": "device"}
    rows = range(len(dataset))
    batch = next(training_feed(dataset, rows, **options, crop_on="host")(0))
    columns = ("step ms", "waiting ms", "longest ms", "waiting %", "images/s")
    print(f"\n{'training':24}" + "".join(f"{column:>12}" for column in columns))
    for name in ("one batch", *feeds):
        iterator = itertools.repeat(batch)
        if name != "one batch":
            iterator = training_feed(dataset, rows, **options, **feeds[name])(0)
        seconds, waits = timed_steps(step_fn, parallel.replicate(initial), iterator, steps)
        print(
            f"{name:24}{1e3 * seconds / steps:12.1f}{1e3 * statistics.mean(waits):12.2f}{1e3 * max(waits):12.2f}"
            f"{100 * sum(waits) / seconds:12.2f}{steps * options['batch_size'] / seconds:12.1f}",
            flush=True,
        )


def timed_steps(step_fn, state, iterator, steps: int) -> tuple[float, list[float]]:
    """Runs steps as `training.loop.fit` does; returns the seconds of all and those that each waited for its batch."""
    for _ in range(2):  # starts the threads, compiles
        state, metrics = step_fn(state, next(iterator))
        float(metrics["loss"])
    waits = []
    start = time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(iterator)
        waits.append(time.perf_counter() - asked)
        pending, (state, metrics) = metrics, step_fn(state, batch)
        float(pending["loss"])  # the previous step's, read while the devices work on this one
    float(metrics["loss"])
    return time.perf_counter() - start, waits


def named(name: str, threads: int) -> str:
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


if __name__ == "__main__":
    main()
