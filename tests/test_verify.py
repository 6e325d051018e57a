"""Images made elsewhere: what is accepted, what it does to the table, and that one bad image costs no other."""

import csv
import dataclasses
import shutil
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from cprl_jax import models, verify
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.cprl import experiment, training
from cprl_jax.layers.sort_mask import SortMaskPlacement
from cprl_jax.models.change import NetworkChange
from cprl_jax.training.setup import trained_model

TEST = range(6, 14)
PARTS = {"train": range(4), "validation": range(4, 6), "test": TEST}
SIZE = 16
FAR = 24.0  # the larger radius, in 1/255


class Small(nn.Module):
    """A score that reads the mean of each channel and how rough the image is."""

    sort_mask: SortMaskPlacement = SortMaskPlacement()
    score_mean: float = 50.0
    score_std: float = 20.0
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0
    change: NetworkChange = NetworkChange()

    @nn.compact
    def __call__(self, images, train=False):
        parts = images.mean(axis=(1, 2)), 5 * jnp.abs(jnp.diff(images, axis=1)).mean(axis=(1, 2))
        x = nn.silu(nn.Dense(6, name="backbone")(jnp.concatenate(parts, axis=-1)))
        return self.score_mean + self.score_std * nn.Dense(1, name="head")(x)[:, 0]


def write_images(folder):
    folder.mkdir()
    lines = ["image,mos,split"]
    for part, numbers in PARTS.items():
        for number in numbers:
            generator = np.random.default_rng(number)
            image = generator.integers(20, 180, 3) + generator.integers(0, 56, (SIZE, SIZE + 3, 3))
            Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
            lines.append(f"{number}.png,{generator.integers(10, 90)},{part}")
    (folder / "labels.csv").write_text("\n".join(lines))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of two models, evaluated with a weak attack at two radii."""
    folder = tmp_path_factory.mktemp("trained")
    write_images(folder / "own")
    config = config_lib.default()
    config.methods, config.model.name = ("plain", "plain_longer"), "compact"
    config.dataset.name, config.dataset.manual_dir, config.dataset.split = "own", str(folder / "own"), "official"
    train, evaluation = config.train, config.evaluation
    train.steps, train.batch_size, train.evaluate_every, train.workers = 2, 2, 2, 1
    config.plain_longer.steps, train.head_learning_rate = 1, 1e-2
    train.crop_size = evaluation.crop_size = SIZE
    evaluation.attacks, evaluation.square.queries, evaluation.radii = ("square",), 1, (1.0,)
    evaluation.crops, evaluation.batch_size, evaluation.resamples, evaluation.examples = 2, 8, 10, 0
    evaluation.trust_images, evaluation.landscape_points, evaluation.checkpoint = 0, 0, "last"
    with pytest.MonkeyPatch.context() as patch:
        network = dataclasses.replace(models.NETWORKS["compact"], module=Small)
        patch.setitem(models.NETWORKS, "compact", network)
        patch.setattr(experiment.report, "_sections", lambda results: [])  # a page without figures
        patch.setattr(training, "make_validation", lambda *_, **__: lambda _: {"selection": 0.0})
        experiment.run(config, folder / "run")
        config.job, evaluation.radii = "evaluate", (1.0, FAR)  # more than the run's config.json says
        experiment.run(config, folder / "run")
        yield folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def crops(run):
    path = run.parent / "crops.npz"
    assert verify.main([f"--run={run}", f"--write_crops={path}"]) == 0
    return dict(np.load(path))


def table(run):
    """SRCC against MOS by method, attack and radius."""
    with open(run / "report" / "table.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["against"] == "mos"]
    return {(row["method"], row["attack"], float(row["radius"])): row for row in rows}


def scores(run, attack, method="plain", radius=FAR):
    """MOS, clean and attacked score of each image."""
    with open(run / "report" / "scores.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["method"], row["attack"]) == (method, attack)]
    rows = [row for row in rows if float(row["radius"]) == radius]
    return {row["name"]: [float(row[key]) for key in ("mos", "clean", "score")] for row in rows}


def submit(run, crops, name="attacked.npz", **changes):
    np.savez(run.parent / name, **crops | changes)
    return verify.main([f"--run={run}", str(run.parent / name)])


def strong(run, crops, radius):
    """Each crop moved against its label by the better of all signs of the channels: stronger than one draw."""
    mos = {name: row[0] for name, row in scores(run, "none", radius=0.0).items()}
    module, variables = trained_model(config_lib.read_config(run), "plain", run)
    checker = np.where(np.indices((SIZE, SIZE)).sum(axis=0) % 2, 1, -1)[..., np.newaxis]
    signs = np.stack(np.meshgrid(*[(-1, 1)] * 3), axis=-1).reshape(-1, 1, 1, 1, 3)
    options = [
        np.broadcast_to(int(radius) * sign * base, crops["images"].shape) for sign in signs for base in (1, checker)
    ]
    options = np.clip(crops["images"].astype(int) + np.stack(options), 0, 255).astype(np.uint8)
    found = np.stack([module.apply(variables, option / np.float32(255)) for option in options])
    down = np.array([mos[name] > 50 for name in crops["names"]])
    return options[np.where(down, -found, found).argmax(axis=0), np.arange(len(down))]


def test_the_crops_are_those_of_the_table(run, crops):
    assert crops["images"].shape == (16, SIZE, SIZE, 3) and crops["images"].dtype == np.uint8
    assert sorted(set(crops["names"])) == sorted(f"{number}.png" for number in TEST)
    module, variables = trained_model(config_lib.read_config(run), "plain", run)
    found = np.asarray(module.apply(variables, crops["images"] / np.float32(255)))
    for name, (_, _, score) in scores(run, "none", radius=0.0).items():
        np.testing.assert_allclose(found[crops["names"] == name].mean(), score, rtol=1e-5)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_strong_images_lower_the_worst_case(run, crops, capsys, kind):
    before = table(run)
    assert not any(attack == "submitted" for _, attack, _ in before)
    images = strong(run, crops, FAR)
    given = images if kind == "uint8" else images / np.float64(255)
    assert submit(run, crops, images=given, method="plain", radius=FAR) == 0
    after = table(run)
    assert {key: after[key] for key in before} == before
    assert [key for key in after if key not in before] == [("plain", "submitted", FAR)]  # too far for radius 1
    found, weak, mos = scores(run, "submitted"), scores(run, "square"), []
    module, variables = trained_model(config_lib.read_config(run), "plain", run)
    mine = np.asarray(module.apply(variables, images / np.float32(255)))
    for name, (label, clean, score) in found.items():
        candidates = [clean, weak[name][2], mine[crops["names"] == name].mean()]
        np.testing.assert_allclose(score, (min if label > 50 else max)(candidates), rtol=1e-5)
        mos.append(label)
    row = after["plain", "submitted", FAR]
    expected = stats.spearmanr([score for *_, score in found.values()], mos).statistic
    assert float(row["srcc"]) == pytest.approx(expected) and float(row["max_change"]) == pytest.approx(FAR, abs=1e-4)
    assert float(row["srcc"]) < float(after["plain", "square", FAR]["srcc"]) - 0.05
    assert float(row["rmse"]) > float(after["plain", "square", FAR]["rmse"]) and float(row["ssim"]) < 1
    printed = capsys.readouterr().out
    assert "24/255" in printed and "plain" in printed and f"{expected:.3f}" in printed
    assert "Worst of all, with submitted images" in (run / "report" / "table.md").read_text()
    # Again, and by the command that evaluates: nothing changes.
    files = {path: path.read_bytes() for path in run.rglob("*.npz")}
    assert submit(run, crops, "again.npz", images=given, method="plain", radius=FAR) == 0
    assert {path: path.read_bytes() for path in run.rglob("*.npz")} == files and table(run) == after
    config = config_lib.read_config(run, file="report/settings.json")
    experiment.run(config, run)
    assert table(run) == after


def test_one_bad_image_costs_no_other(run, crops, capsys):
    images = strong(run, crops, 1) / np.float32(255)
    radius, names, numbers = np.ones(16), crops["names"].copy(), crops["crop"].copy()
    original = crops["images"] / np.float32(255)
    images[0, 1, 1, 1] = np.nan
    images[1, 0, 0, 0] = 1.5
    images[2, 3, 3, 0] = original[2, 3, 3, 0] + 1.01 / 255
    names[3], numbers[4] = "none.png", 2
    images[5, 2, 2] = original[5, 2, 2] + 24.5 / 255
    radius[5] = 25
    images[6, 0, 0, 0] = original[6, 0, 0, 0] + 1 / 255 + 5e-7  # rounding of whoever made it
    assert submit(run, crops, images=images, names=names, crop=numbers, radius=radius) == 1
    output = capsys.readouterr()
    lines = [line.partition("attacked.npz: ")[2] for line in output.err.splitlines() if line.startswith("rejected")]
    reasons = ["not finite", "outside [0, 1]", "more than its radius of 1/255", "no test image", "no crop 2"]
    assert len(lines) == 6
    for index, (line, reason) in enumerate(zip(lines, [*reasons, "ends at 24/255"], strict=True)):
        assert line.startswith(f"image {index}: ") and reason in line
    for method in ("plain", "plain_longer"):
        with np.load(next((run / method / "evaluation").glob("submitted-*.npz"))) as kept:
            assert len(kept["row"]) == 10 and np.abs(kept["effect"]).min() > 0
    assert {radius for _, attack, radius in table(run) if attack == "submitted"} == {1.0, FAR}
    numbers = [line.split()[1:4] for line in output.out.splitlines() if line.strip().startswith("plain ")]
    assert numbers == 2 * [["16", "6", "10"]]


def test_a_file_without_a_good_image_changes_nothing(run, crops, capsys):
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert submit(run, crops, names=np.repeat("none.png", 16)) == 1
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == files
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 11 and lines[-1] == "rejected: 6 more"


def test_a_crop_that_nobody_attacked_counts_as_it_is(run, crops):
    images = strong(run, crops, FAR)
    one = {name: values[:1] for name, values in crops.items()}
    # Twice, once too weak to count: the worst of both.
    twice = {name: np.repeat(values, 2, axis=0) for name, values in one.items()}
    assert submit(run, twice, images=np.stack([images[0], one["images"][0]])) == 0
    module, variables = trained_model(config_lib.read_config(run), "plain", run)
    crops_of_it = np.stack([images[0], crops["images"][1]]) / np.float32(255)
    mine = float(np.asarray(module.apply(variables, crops_of_it)).mean())
    found, weak = scores(run, "submitted"), scores(run, "square")
    for name, (label, clean, score) in found.items():
        candidates = [clean, weak[name][2], *([mine] if name == one["names"][0] else [])]
        np.testing.assert_allclose(score, (min if label > 50 else max)(candidates), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((3, 8, 8, 3), np.uint8)}, "have the shape (3, 8, 8, 3); it must be [n, 16, 16, 3]"),
        ({"images": np.zeros((0, SIZE, SIZE, 3), np.uint8)}, "it must be [n, 16, 16, 3], with n at least 1"),
        ({"images": np.zeros((16, SIZE, SIZE, 3), np.int64)}, "images are int64; they must be uint8, or floats"),
        ({"names": np.array(["6.png"])}, "names must be one text for each of the 16 images"),
        ({"crop": np.zeros(3, int)}, "crop must be one whole number for each"),
        ({"radius": np.array("wide")}, "radius must be one number for each"),
        ({"method": "cprl"}, "method is 'cprl'; it must be one of plain, plain_longer"),
    ],
    ids=["shape", "none", "type", "names", "crop", "radius", "method"],
)
def test_a_file_that_does_not_fit_is_named(run, crops, capsys, changes, message):
    assert submit(run, crops, **changes) == 1
    error = capsys.readouterr().err
    assert message in error and str(run.parent / "attacked.npz") in error
    assert not (run / "submitted").exists()


def test_other_files_and_folders(run, crops, capsys, tmp_path):
    (tmp_path / "text.npz").write_text("no arrays")
    np.save(tmp_path / "one.npy", crops["images"])
    np.savez(tmp_path / "bare.npz", images=crops["images"])
    np.savez_compressed(tmp_path / "damaged.npz", **crops)
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    content[200:230] = bytes(30)  # which is no compressed stream any more
    (tmp_path / "damaged.npz").write_bytes(content)
    names = ["text.npz", "one.npy", "damaged.npz", "bare.npz", "missing.npz"]
    assert verify.main([f"--run={run}", *(str(tmp_path / name) for name in names)]) == 1
    lines = capsys.readouterr().err.splitlines()
    reasons = ["no .npz", "no .npz", "no .npz", "no array 'names'", "No such file"]
    for line, name, reason in zip(lines, names, reasons, strict=True):
        assert name in line and reason in line
    assert verify.main([f"--run={tmp_path / 'elsewhere'}", "x.npz"]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    assert verify.main([f"--run={run}"]) == 2
    assert "or --write_crops" in capsys.readouterr().err
