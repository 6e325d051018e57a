"""docs/extending.md, executed: its files in a copy of the package, and what it says can be done with them then.

This file is also the program that does it, in a separate process whose package is the copy.
"""

import contextlib
import csv
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?:^`(\S+\.py)`:\n\n)?^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {path: content for path, _, content in BLOCKS if path}
SNIPPETS = [content for path, language, content in BLOCKS if language == "python" and not path]
COMMANDS = [
    shlex.split(line)
    for _, language, content in BLOCKS
    if not language
    for line in content.replace("\\\n", "").splitlines()
]


def pictures():
    """Two smooth pictures, uint8."""
    import numpy as np

    rows, columns = np.mgrid[:32, :32] / 31
    planes = [np.stack([rows, columns, 0.5 + 0.4 * np.sin(k * columns)], axis=-1) for k in (3, 5)]
    return np.uint8(np.round(255 * np.stack(planes)))


def refused(message, *overrides):
    """A configuration with these overrides is refused with this message."""
    from cprl_jax.config import checks
    from cprl_jax.runtime.errors import UserError

    with pytest.raises(UserError, match=message):
        checks.validate(parsed("--config=configs/quickstart.py", *overrides))


def parsed(*arguments):
    """The configuration of a command line."""
    from absl import flags
    from ml_collections import config_flags

    from cprl_jax.config import command_line

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", "", "", flag_values=values)
    sys.argv = ["main", *arguments]  # where config_flags looks for overrides
    return command_line.parse(values, sys.argv, usage="")[0]


def check_commands():
    """Every command of the page: a training as far as to its checks, the others as they are."""
    from PIL import Image

    from cprl_jax.config import checks
    from cprl_jax.data import distortion_sheet, synthesize

    Path("photographs").mkdir()
    Image.fromarray(pictures()[0].repeat(3, 0).repeat(3, 1)).save("photographs/one.png")
    ran = set()
    for python, option, module, *arguments in COMMANDS:
        assert (python, option) == ("python", "-m")
        ran.add(module)
        if module == "cprl_jax.main":
            checks.validate(parsed(*arguments))
        elif module == "cprl_jax.data.synthesize":
            assert synthesize.main([*arguments, "--workers=1"]) == 0
            assert len(list(Path("hazy/images").glob("one_weather-haze_?.png"))) == 5
        else:
            assert distortion_sheet.main(arguments) == 0
            assert Image.open("weather.png").width > 300
    assert len(ran) == 3


def check_help():
    from cprl_jax.config import command_line

    text = command_line.help_text(every_field=True)
    assert re.search(r"--config.methods:.*(?:\n  .+)*\n  noise_training +noise training.*: docs/extending.md", text)
    assert re.search(r"\n  tiny +a tiny network: docs/extending.md", text)
    assert re.search(r"\n  random_noise +Random noise: docs/extending.md", text)
    assert "--config.noise_training.epsilon=2.0  size of the noise (above 0 and at most 255 (1/255))" in text
    assert "--config.model.tiny.width=24  " in text
    assert "--config.evaluation.random_noise.law=signs  " in text


def check_mistakes():
    refused("noise_training.epsilon is 0.0; it must be above 0 and at most 255", "--config.noise_training.epsilon=0.")
    refused("noise_training.weight is 1.5; it must be", "--config.noise_training.weight=1.5")
    refused("did you mean 'noise_training'", "--config.methods=('noise_trainign',)")
    refused("config.model.tiny.width is 0; it must be at least 1", "--config.model.tiny.width=0")
    refused("'tinny' .did you mean 'tiny'", "--config.model.name=tinny")
    refused("'random_nois' .did you mean 'random_noise'", "--config.evaluation.attacks=('random_nois',)")
    refused("'sign' .did you mean 'signs'", "--config.evaluation.random_noise.law=sign")
    refused("'balcon' .did you mean 'balcony'", "--config.dataset.name=balcon")
    refused("'balcon' .did you mean 'balcony'", "--config.evaluation.datasets=('balcon',)")


def check_run():
    """A whole run: the method trains the network, and the attack is in its tables."""
    import numpy as np

    from cprl_jax import main, methods
    from cprl_jax.config.defaults import default

    settings = """dataset.scenes=10 dataset.image_size=32 dataset.levels=1 model.name=tiny model.tiny.width=8
        train.steps=3 train.batch_size=8 train.crop_size=32 train.warmup_steps=0 evaluation.crop_size=32
        evaluation.crops=1 evaluation.radii=(1.,2.) evaluation.attacks=('random_noise',)
        evaluation.examples=0 evaluation.trust_images=0 evaluation.landscape_points=0"""
    arguments = ["--config=configs/quickstart.py:methods=noise_training", "--workdir=run"]
    sys.argv = ["main", *arguments, *(f"--config.{setting}" for setting in settings.split())]
    assert main.main(sys.argv) == 0
    with open("run/noise_training/metrics.csv") as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == 3
    values = np.array([[float(row[name]) for name in ("loss", "mos_loss", "noise_loss")] for row in steps])
    assert np.isfinite(values).all() and (np.diff(values[:, 1:]) != 0).all()
    with open("run/report/table.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["attack"] == "random_noise"]
    assert {(row["method"], float(row["radius"]), row["against"]) for row in rows} == {
        ("noise_training", radius, against) for radius in (1.0, 2.0) for against in ("mos", "prediction")
    }
    for row in rows:
        radius = float(row["radius"])
        assert 0.99 * radius < float(row["max_change"]) <= radius * (1 + 1e-6) and float(row["ssim"]) < 1
    title = methods.title("noise_training", default().noise_training)
    assert title == "noise training (noise of 2/255)"
    page, table = (Path("run/report", name).read_text() for name in ("report.html", "table.md"))
    for text in (title, "Random noise", "Noise inside the radius that knows neither the model nor the label."):
        assert text in page, text
    assert title in table and "Random noise" in table


def check_network():
    import jax
    import numpy as np

    from cprl_jax import models
    from cprl_jax.config.defaults import default

    config = default().model
    config.name, config.tiny.width, config.sort_mask.min_channels = "tiny", 16, 0
    config.sort_mask.stages = ()
    module = models.create(config)
    assert models.masked_convolutions(module, 32) == ["backbone/conv3"]
    variables = models.initialize(module, jax.random.key(0), 32)
    scores = jax.jit(models.score_fn(module, variables))(pictures() / np.float32(255))
    assert scores.shape == (2,) and np.isfinite(scores).all() and scores[0] != scores[1]
    models.save_weights("tiny.npz", variables)
    again = models.load_weights(variables, "tiny.npz", config_model=config)
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))


def check_dataset():
    """A release in a folder, one with a mistake, and what is said where there is none."""
    import numpy as np
    from PIL import Image

    from cprl_jax import data
    from cprl_jax.config.defaults import default
    from cprl_jax.runtime.errors import UserError

    config = default().dataset
    config.name, config.manual_dir, config.data_dir = "balcony", "releases", "tfds"
    with pytest.raises(UserError, match="get balcony from https://example.org/balcony and unpack it there so that"):
        data.load(config)
    folder = Path("releases/balcony")
    (folder / "photographs").mkdir(parents=True)
    for name, pixels in zip(("dawn.png", "dusk.png"), pictures(), strict=True):
        Image.fromarray(pixels).save(folder / "photographs" / name)
    (folder / "scores.csv").write_text("image,score\ndawn.png,4\ndusk.png,7\nnoon.png,3\n")
    with pytest.raises(UserError, match="row 2 .'dusk.png'.: the score is 7.0, not within 1..5; row 3 .'noon.png'."):
        data.load(config)
    (folder / "scores.csv").write_text("image,score\ndawn.png,4\ndusk.png,1.5\n")
    dataset = data.load(config)
    assert dataset.name == "balcony" and dataset.names.tolist() == ["dawn.png", "dusk.png"]
    assert dataset.mos.tolist() == [75.0, 12.5] and dataset.mos_raw.tolist() == [4.0, 1.5]
    np.testing.assert_array_equal(dataset.images[1], pictures()[1])


def check_distortion():
    import jax
    import numpy as np

    from cprl_jax.data.distortions import DISTORTIONS, FAMILIES, distort

    assert FAMILIES[-1] == "weather" and list(DISTORTIONS)[-1] == "weather/haze"
    image = pictures()[0]
    contrasts = [distort(image, "weather/haze", level=level, key=0).std() for level in (1, 2, 3, 4, 5)]
    np.testing.assert_allclose(contrasts, image.std() * (1 - np.array([0.1, 0.2, 0.35, 0.5, 0.7])), rtol=0.01)
    slope = jax.grad(lambda x: DISTORTIONS["weather/haze"].apply(x, 0.2, 0).mean())(image.astype(np.float32))
    np.testing.assert_allclose(slope, 0.8 / image.size, rtol=1e-5)


def check_fidelity():
    import jax
    import numpy as np

    from cprl_jax import fidelity

    references = pictures() / np.float32(255)
    images = references * np.float32(0.9)
    luma = (0.1 * references) @ np.array([0.299, 0.587, 0.114])
    measure = fidelity.distance("luma_rmse")
    np.testing.assert_allclose(measure(images, references), np.sqrt((luma**2).mean(axis=(1, 2))), rtol=1e-5)
    assert np.all(jax.grad(lambda x: measure(x, references).sum())(references) == 0)
    with pytest.raises(ValueError, match="Did you mean 'luma_rmse'"):
        fidelity.distance("luma-rmse")


def check_snippets():
    import jax
    import numpy as np

    assert len(SNIPPETS) == 2
    images = pictures() / np.float32(255)
    names = {"image": pictures()[0], "images": images, "references": images[::-1]}
    names |= {"score_fn": lambda images: images.mean(axis=(1, 2, 3)), "key": jax.random.key(0)}
    for snippet in SNIPPETS:
        exec(snippet, names)
    assert names["hazy"].dtype == np.uint8 and names["change"].shape == (2,)
    assert names["result"].images.shape == (2, *images.shape)


CHECKS = {name.removeprefix("check_"): value for name, value in globals().items() if name.startswith("check_")}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """For every check: '', or its traceback."""
    folder = tmp_path_factory.mktemp("extended")
    for name in ("cprl_jax", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path, content in FILES.items():
        assert not (folder / path).exists()
        (folder / path).write_text(content)
    environment = {**os.environ, "PYTHONPATH": str(folder), "JAX_NUM_CPU_DEVICES": "1"}
    command = [sys.executable, __file__, str(folder / "outcomes.json")]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "outcomes.json").read_text())


def test_the_page_has_an_example_of_each():
    rooms = ["methods", "models", "evaluation/table_attacks", "data/releases", "data/distortions", "fidelity"]
    assert [str(Path(path).parent.relative_to("cprl_jax")) for path in FILES] == rooms


@pytest.mark.parametrize("check", CHECKS)
def test_extending(outcomes, check):
    assert outcomes[check] == "", outcomes[check]


def main(out):
    import cprl_jax

    assert Path(cprl_jax.__file__).is_relative_to(Path.cwd())
    outcomes = {}
    for name, check in CHECKS.items():
        output = io.StringIO()
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                check()
            outcomes[name] = ""
        except BaseException:
            outcomes[name] = f"{output.getvalue()[-2000:]}\n{traceback.format_exc()}"
    Path(out).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main(sys.argv[1])
