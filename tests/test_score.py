"""Scores of files: functions of the pixels and the model alone, and those of the tables for saved attacked images."""

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import urllib.parse

import jax
import numpy as np
import pytest
from PIL import Image

from cprl_jax import models, score
from cprl_jax.config import defaults as config_lib
from cprl_jax.data.combined import resize
from cprl_jax.data.crops import Crops
from cprl_jax.data.dataset import QualityDataset
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.runtime.errors import UserError
from cprl_jax.runtime.files import write_file
from cprl_jax.training import setup
from cprl_jax.training.checkpoints import Checkpoints

SIZE = 24


@pytest.fixture(scope="module")
def config():
    config = config_lib.default()
    config.methods = ("plain",)
    config.model.name = "compact"
    evaluation = config.evaluation
    evaluation.crop_size, evaluation.crops, evaluation.batch_size = SIZE, 3, 6
    return config


@pytest.fixture(scope="module")
def network(config):
    module = setup.create_model(config, "plain")
    return module, models.initialize(module, jax.random.key(0), SIZE)


@pytest.fixture
def scorer(config, network, tmp_path, monkeypatch):
    """Makes the function of `score.load` for a run with these changes of its configuration."""
    monkeypatch.setattr(setup, "trained_variables", lambda *arguments: network[1])

    def make(**changes):
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        write_file(tmp_path / "run" / "config.json", config_lib.to_json(changed))
        return score.load(tmp_path / "run")

    return make


def pictures(count, height, width, seed=0):
    generator = np.random.default_rng(seed)
    flat = generator.integers(40, 215, (count, 1, 1, 3))
    return np.clip(flat + generator.integers(-40, 40, (count, height, width, 3)), 0, 255).astype(np.uint8)


def save(folder, images, names=None):
    paths = [folder / (names[i] if names else f"{i}.png") for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


def dataset_of(images):
    count = len(images)
    zeros = np.zeros(count, np.float32)
    names = [f"row {i}" for i in range(count)]
    return QualityDataset("test", list(images), names, zeros, zeros, zeros, names, [""] * count, [0] * count)


def test_the_name_of_a_file_does_not_count(scorer, tmp_path):
    (image,) = pictures(1, 60, 90)
    names = ["a.png", "b.png", "kodim23.png", "ä ö.png"]
    scores = scorer()(save(tmp_path, [image] * len(names), names))
    np.testing.assert_array_equal(scores, scores[0])


@pytest.mark.parametrize("size", [0, 40])
def test_files_are_scored_like_the_images_of_the_run(scorer, config, network, tmp_path, size):
    images = pictures(3, 60, 90)
    dataset = resize(dataset_of(images), size, cache_gib=1) if size else dataset_of(images)
    module, variables = network
    crops = Crops(dataset, range(3), crops=3, crop_size=SIZE, seed=config.seed)
    expected = Scorer(module, batch_size=6).scores(variables, crops)
    found = scorer(**{"dataset.resize": size})(save(tmp_path, images))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    other = scorer(**{"dataset.resize": 60 - size})([tmp_path / "0.png"])
    assert abs(other[0] - expected[0]) > 1e-3


@pytest.mark.sampled
@pytest.mark.parametrize("radius", [pytest.param(0.5, marks=pytest.mark.slow), 1.0, 2.0, 2.5])
def test_saved_attacked_images_have_the_scores_of_the_table(scorer, network, tmp_path, radius):
    """Crops as large as the image: what is attacked is what is saved, rounded to 8 bits inside the radius."""
    from cprl_jax.attacks import round_to_8_bit

    module, variables = network
    images, mos = pictures(4, SIZE, SIZE), np.array([20, 80, 60, 40], np.float32)
    result = Scorer(module, batch_size=6).attack(
        variables, images[:, None], mos, ATTACKS["pgd"].at(radius, steps=3), keep_images=True
    )
    rounded = round_to_8_bit(result["images"][:, 0], images / np.float32(255), radius / 255)
    paths = save(tmp_path, np.round(255 * np.asarray(rounded)).astype(np.uint8))
    np.testing.assert_allclose(scorer()(paths), result["after_8bit"], rtol=1e-5)
    clean = scorer()(save(tmp_path, images))
    np.testing.assert_allclose(clean, result["before"], rtol=1e-5)
    if radius < 1:
        np.testing.assert_allclose(result["after_8bit"], clean, rtol=1e-5)
    else:
        assert np.abs(result["after_8bit"] - clean).min() > 1e-3
    if radius == int(radius):  # then plain rounding stays inside the radius
        np.testing.assert_array_equal(np.round(255 * result["images"][:, 0]), np.round(255 * np.asarray(rounded)))


def test_the_number_of_crops_can_be_asked_for(scorer, config, network, tmp_path):
    images = pictures(1, 60, 90)
    (path,) = save(tmp_path, images)
    module, variables = network
    first = score.load(tmp_path / "run", crops=1) if scorer() else None
    crops = Crops(dataset_of(images), [0], crops=1, crop_size=SIZE, seed=config.seed)
    expected = Scorer(module, batch_size=6).scores(variables, crops)
    np.testing.assert_allclose(first([path]), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("leave_one_out", "'leave_one_out', which keeps no models; give a run of --config=configs/causal_iqa.py"),
        ("perceptual_attack", "'perceptual_attack', which keeps no models; give one of those that it attacks"),
        ("causal_iqa", "method 'plain/seed-0' was not trained .* there are erm/seed-0, cis/seed-0"),
    ],
)
def test_a_run_without_the_model_is_named(config, tmp_path, job, message):
    config = config.copy_and_resolve_references()
    config.job, config.causal_iqa.updates = job, ("erm", "cis")
    write_file(tmp_path / "split-00" / "config.json", config_lib.to_json(config))
    with pytest.raises(UserError, match=message):
        score.load(tmp_path / "split-00", method="plain")
    with pytest.raises(UserError, match="is not the folder of one run; give one in it, such as .*split-00"):
        score.load(tmp_path)


class Made:
    """In the place of a trained model: a file scores as many points as its name has characters."""

    def __init__(self, before=lambda path: None):
        self.before = before

    def each(self, files):
        for path in files:
            self.before(path)
            name = os.path.basename(path)
            yield UserError(f"{path} cannot be read: it is bad") if "bad" in name else float(len(name))


@pytest.fixture
def made(monkeypatch):
    """Makes the command score with `Made`; returns a call of it."""

    def call(*arguments, **options):
        monkeypatch.setattr(score, "load", lambda *given, **options_of_load: Made(**options))
        return score.main([*map(str, arguments), "--checkpoint=run"])

    return call


@pytest.fixture
def stdout(monkeypatch):
    """Makes a standard output of an encoding, as `program.own_terminal` does; returns its bytes."""

    def make(encoding):
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding, "readable"))
        return content

    return make


def test_every_line_is_printed_before_the_next_file_is_asked_for(made, stdout, capsys):
    printed, seen = stdout("utf-8"), []
    code = made("a", "bad\n1", "ccc", "bad 2", "dd", before=lambda path: seen.append(printed.getvalue()))
    assert code == 1
    assert seen == [b"", b"1.00\ta\n", b"1.00\ta\n", *2 * [b"1.00\ta\n3.00\tccc\n"]]
    assert printed.getvalue() == b"1.00\ta\n3.00\tccc\n2.00\tdd\n"
    assert capsys.readouterr().err == "".join(
        f"error: {name} cannot be read: it is bad\n" for name in ("bad\\n1", "bad 2")
    )
    assert made("a", "bb") == 0


def test_a_folder_stands_for_the_files_in_it(made, capsys, tmp_path):
    for name in ("b.png", "a.txt", ".c", "bad"):
        (tmp_path / "full" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "full" / name).touch()
    (tmp_path / "empty").mkdir()
    assert made("z.png", tmp_path / "empty", tmp_path / "full", "y.png") == 1
    output = capsys.readouterr()
    paths = [line.split("\t")[1] for line in output.out.splitlines()]
    assert paths == ["z.png", *(str(tmp_path / "full" / name) for name in ("a.txt", "b.png")), "y.png"]
    empty, bad = output.err.splitlines()
    assert empty == f"error: {tmp_path / 'empty'} has no files in it" and "bad cannot be read" in bad


def parsed_name(text):
    """The name that --csv and --json mean, as their help says."""
    return os.fsdecode(urllib.parse.unquote_to_bytes(text[6:])) if text.startswith("bytes:") else text


EXACT = (
    *("a,b.jpg", 'say "x".png', "two\nlines\r.png", "\\back\\slash", "caf\udce9.jpg", "grün 日本.png"),
    "bytes:%41\udce9",
)


def test_csv_and_json_can_be_read_back_exactly(made, stdout, capsys, monkeypatch):
    names = [*EXACT, "bytes:%41", "bad", " spaces ", "\u2028"]
    for kind in ("csv", "json"):
        printed = stdout("ascii")
        assert made(*names, f"--{kind}") == 1
        text = printed.getvalue().decode("utf-8")
        rows = (
            list(csv.DictReader(io.StringIO(text, newline="")))
            if kind == "csv"
            else [json.loads(line) for line in text.split("\n")[:-1]]
        )
        assert [parsed_name(row["path"]) for row in rows] == [name for name in names if name != "bad"]
        assert [float(row["score"]) for row in rows] == [len(name) for name in names if name != "bad"]
    assert "bad cannot be read" in capsys.readouterr().err
    assert score.main(["a", "--csv", "--json"]) == 2


@pytest.mark.parametrize("number", [1 / 3, 62.129_999, 1e-30, -7.0, 16_777_217.0])
def test_no_digit_of_a_score_is_lost(number):
    single = float(np.float32(number))
    for line in (score._csv_line(["score"], "a", (single,)), score._json_line(["score"], "a", (single,))):
        found = json.loads(line)["score"] if line.startswith("{") else line.split(",")[0]
        assert np.float32(found) == np.float32(number)


def test_certified_intervals(monkeypatch, capsys):
    from cprl_jax import deploy

    class Certifying:
        def certify_each(self, files, **options):
            assert options == {"radius": 0.5, "sigma": 0.12, "samples": 11}
            yield deploy.Certified(50.0, 40.25, np.inf, 0.2)
            yield UserError("b cannot be read: it is bad")

    monkeypatch.setattr(deploy, "load", lambda *_, **__: Certifying())
    command = ["a", "b", "--certify", "--radius=0.5", "--samples=11"]
    assert score.main(command) == 1
    assert capsys.readouterr() == ("50.00\t40.25\tinf\ta\n", "error: b cannot be read: it is bad\n")
    assert score.main([*command, "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == {"score": 50.0, "lower": 40.25, "upper": None, "path": "a"}
    assert score.main([*command, "--csv"]) == 1
    assert capsys.readouterr().out == "score,lower,upper,path\n50.0,40.25,inf,a\n"
    for wrong in ("--sigma=0", "--sigma=2", "--radius=nan", "--radius=-1", "--radius=inf", "--samples=10"):
        assert score.main(["a", "--certify", wrong]) == 2
        assert capsys.readouterr().err.startswith(f"error: {wrong.split('=')[0]} is ")
    for without in ("--radius=0.5", "--sigma=0.12", "--samples=1000"):
        assert score.main(["a", without]) == 2
        assert f"error: {without.split('=')[0]} says how a score is certified: add --certify" in capsys.readouterr().err


def test_a_score_that_is_not_finite_is_none(monkeypatch, capsys):
    for bad in (math.nan, math.inf):
        monkeypatch.setattr(Made, "each", lambda self, files, bad=bad: iter([bad, 1.0]))
        monkeypatch.setattr(score, "load", lambda *_, **__: Made())
        assert score.main(["a", "b", "--csv"]) == 1
        assert capsys.readouterr() == ("score,path\n1.0,b\n", f"error: a has no score: the model's is {bad}\n")


def test_the_model_is_the_robust_one_unless_another_is_named(monkeypatch, capsys):
    asked = []

    def load(model, **options):
        asked.append(model)
        return Made()

    monkeypatch.setattr(score, "load", load)
    for options in ([], ["--model=plain"], ["--checkpoint=run"]):
        assert score.main(["a", *options]) == 0
    assert asked == ["robust", "plain", "run"]


NAMES = ("plain.jpg", "caf\udce9.jpg", "grün.png", "日本.png", "two\nlines\tand\x1b[31m\u2028.png", "日\udce9")


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "utf-16-le", "shift_jis"])
def test_every_name_can_be_printed_in_every_encoding(made, stdout, encoding):
    printed = stdout(encoding)
    assert made(*NAMES) == 0
    lines = printed.getvalue().decode(encoding, "surrogateescape").split("\n")
    assert lines.pop() == "" and len(lines) == len(NAMES)
    shown = [line.split("\t")[1] for line in lines]
    assert shown[4].isprintable()
    assert shown[0] == "plain.jpg" and shown[4].startswith("two\\nlines\\tand\\x1b[31m\\u2028")
    name = b"caf\xe9.jpg" if encoding != "utf-16-le" else r"caf\udce9.jpg".encode(encoding)
    assert name in printed.getvalue()  # where it can be, the byte
    assert shown[2] == ("gr\\xfcn.png" if encoding in ("ascii", "shift_jis") else "grün.png")
    assert shown[3] == ("\\u65e5\\u672c.png" if encoding in ("ascii", "cp1252") else "日本.png")


PROGRAM = """
import sys
from cprl_jax import score
class Made:
    def each(self, files):
        return map(len, files)
score.load = lambda *arguments, **options: Made()
sys.exit(score.main(["a", "bb", "missing", "--checkpoint=run"]))
"""


@pytest.mark.parametrize(
    ("redirection", "code", "complaint"),
    [
        (">/dev/full", 1, "error: the scores cannot be written: No space left on device\n"),
        (">&-", 1, "error: the scores cannot be written: the output is closed\n"),
        ("| true", 141, ""),
        (">/dev/null 2>/dev/full", 0, ""),
        (">/dev/null 2>&-", 0, ""),
    ],
)
def test_an_output_that_takes_no_more(redirection, code, complaint):
    """To the end of the program: Python tries again to write what is left."""
    if "/dev/full" in redirection and not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    wait = '{ sleep 0.2; exec "$0" -c "$1"; }'  # until `true` is gone
    shell = ["bash", "-c", f"{wait} {redirection}; exit ${{PIPESTATUS[0]}}", sys.executable, PROGRAM]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr, done.stdout) == (code, complaint, "")


def test_the_command_to_its_end(config, network, tmp_path):
    """A run on disk, bad files among good ones, and Ctrl-C while the last one is waited for."""
    write_file(tmp_path / "run" / "config.json", config_lib.to_json(config))
    with Checkpoints(tmp_path / "run" / "plain" / "checkpoints") as checkpoints:
        checkpoints.save(1, network[1])
    paths = save(tmp_path, pictures(7, 60, 90))
    expected = score.load(tmp_path / "run")(paths)
    paths[2].write_bytes(paths[2].read_bytes()[:999])
    paths[4].write_text("no picture")
    good = [0, 1, 3, 5, 6]
    endless, end = os.pipe()
    command = [sys.executable, "-m", "cprl_jax.score", *map(str, paths), f"/dev/fd/{endless}", "--checkpoint=run"]
    process = subprocess.Popen(
        command, cwd=tmp_path, pass_fds=[endless], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    lines = [process.stdout.readline() for _ in good]
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    os.close(endless)
    os.close(end)
    assert (process.returncode, rest) == (130, "")
    assert [line.split("\t")[1].strip() for line in lines] == [str(paths[index]) for index in good]
    np.testing.assert_allclose([float(line.split("\t")[0]) for line in lines], expected[good], atol=0.006)
    *sentences, _, last = errors.splitlines()
    assert [sentence.partition(" cannot be read: ")[0] for sentence in sentences] == [
        f"error: {paths[index]}" for index in (2, 4)
    ]
    assert last == "stopped; every score that was printed stands"
