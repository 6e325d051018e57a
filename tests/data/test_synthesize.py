"""Made sets: the bytes that the recipe says, again and again, whatever interrupts or shares the work."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import filelock
import numpy as np
import pytest
from PIL import Image

from cprl_jax.data import own, synthesize
from cprl_jax.data.distortions import DISTORTIONS, distort
from cprl_jax.data.embedded import make_embedded
from cprl_jax.data.weak_labels import RULES
from cprl_jax.runtime.errors import UserError

NAMES = ("kadid/jpeg", "white-noise", "kadid/brighten")
OPTIONS = {"distortions": NAMES, "levels": (1, 5), "workers": 1, "progress": False}
COUNT = 2 * 3 * 2
ROOT = Path(synthesize.__file__).parents[2]
STOPPED = "stopped; the same command resumes"


def photograph(seed, height=32, width=48):
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for seed, name in enumerate(["roof_1.png", "lake.BMP"]):
        Image.fromarray(photograph(seed)).save(folder / name)
    (folder / "notes.txt").write_text("no photograph")
    return folder


@pytest.fixture(scope="module")
def made(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "made"
    assert synthesize.synthesize(images, out, **OPTIONS) == COUNT
    return out


def contents(folder):
    """Every file by its path, but for the lock, which is empty."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_what_is_in_a_set(images, made):
    references = ["references/lake.png", "references/roof_1.png"]
    distorted = [
        f"images/{photo}_{name.replace('/', '-')}_{level}.png"
        for photo in ("lake", "roof_1")
        for name in NAMES
        for level in (1, 5)
    ]
    lists = [".made.jsonl", "checksums.sha256", "labels.csv", "recipe.json"]
    assert sorted(contents(made)) == sorted([*references, *distorted, *lists])
    head, *_ = (made / "labels.csv").read_text().splitlines()
    assert head.startswith("# WEAK LABELS: computed, no human was asked. Rule 'ours'")

    dataset = own.load(made)
    assert dataset.names.tolist() == distorted
    assert set(dataset.references) == {"lake", "roof_1"} == set(dataset.pristine)
    np.testing.assert_array_equal(dataset.pristine["roof_1"], photograph(0))
    columns = (dataset.references.tolist(), dataset.distortions.tolist(), dataset.levels.tolist())
    for row, (scene, name, level) in enumerate(zip(*columns, strict=True)):
        image = dataset.images[row]
        key = [0, zlib.crc32(f"{scene}_{name}".encode())]
        np.testing.assert_array_equal(image, distort(dataset.pristine[scene], name, level=level, key=key))
        assert dataset.mos[row] == np.float32(RULES["ours"].score(image, dataset.pristine[scene]))


def test_a_second_run_makes_nothing(images, made, monkeypatch):
    before, times = contents(made), {path: path.stat().st_mtime_ns for path in made.glob("*/*.png")}
    monkeypatch.setattr(synthesize, "distort", None)
    assert synthesize.synthesize(images, made, **OPTIONS) == COUNT
    assert contents(made) == before
    assert {path: path.stat().st_mtime_ns for path in made.glob("*/*.png")} == times


def test_interruption(images, made, tmp_path, monkeypatch):
    command = [f"--images={images}", f"--out={tmp_path / 'set'}", f"--distortions={','.join(NAMES)}", "--levels=1,5"]
    command += ["--workers=1"]
    written = []
    write = synthesize.write_file

    def interrupt(path, content):
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(path)
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(synthesize, "write_file", interrupt)
        with pytest.raises(KeyboardInterrupt):
            synthesize.main(command)
    out = tmp_path / "set"
    assert len(list(out.glob("*/*.png"))) == 6 and not (out / "labels.csv").exists()
    # What a process leaves that is killed while it writes: a file under its temporary name, half a line in the journal.
    (out / "images" / ".lake_kadid-jpeg_1.png.123.tmp").write_bytes(b"half")
    journal = (out / ".made.jsonl").read_text()
    (out / ".made.jsonl").write_text(journal[:-20])
    monkeypatch.setattr(synthesize, "write_file", lambda path, content: written.append(path) or write(path, content))
    assert synthesize.main(command) == 0
    assert contents(out) == contents(made)
    assert len(written) == len(set(written))  # no image was made twice


def test_damage_is_mended(images, made, tmp_path):
    out = tmp_path / "set"
    synthesize.synthesize(images, out, **OPTIONS)
    files = sorted(out.glob("*/*.png"))
    for path in files[::2]:
        path.unlink()
    files[1].write_bytes(files[3].read_bytes())
    files[5].write_bytes(b"no image")
    (out / "labels.csv").write_text("image,mos\n")
    synthesize.synthesize(images, out, **OPTIONS)
    assert contents(out) == contents(made)
    (out / ".made.jsonl").unlink()  # then the images are labelled again
    synthesize.synthesize(images, out, **OPTIONS)
    assert contents(out) == contents(made)


def test_several_processes_and_the_command(images, made, tmp_path):
    out = tmp_path / "set"
    command = [sys.executable, "-m", "cprl_jax.data.synthesize", f"--images={images}", f"--out={out}", "--workers=2"]
    command += [f"--distortions={','.join(NAMES)}", "--levels=5,1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"{COUNT} images in {out}" in done.stdout and "image/s" in done.stderr
    assert contents(out) == contents(made)


def test_ctrl_c_ends_all_processes_and_the_same_command_resumes(images, made, tmp_path):
    out = tmp_path / "set"
    command = [sys.executable, "-m", "cprl_jax.data.synthesize", f"--images={images}", f"--out={out}", "--workers=2"]
    command += [f"--distortions={','.join(NAMES)}", "--levels=1,5"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, cwd=ROOT, text=True
    )
    while not (out / ".made.jsonl").exists():  # until workers start
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output, errors = process.communicate(timeout=60)  # until no process is left that could write
    assert (process.returncode, output) == (130, "")
    said = [line for line in re.split("[\r\n]", errors) if line and "| " not in line and "are skipped" not in line]
    assert said == [STOPPED]
    assert synthesize.main([*command[3:-3], "--workers=1", *command[-2:]]) == 0
    assert contents(out) == contents(made)


def test_the_command_on_a_terminal_that_lacks_letters(images, tmp_path):
    command = [sys.executable, "-m", "cprl_jax.data.synthesize", f"--images={images}", "--out=日\udce9", "--workers=1"]
    command += ["--distortions=kadid/brighten", "--levels=1"]
    environment = dict(os.environ, PYTHONIOENCODING="cp1252", PYTHONPATH=str(ROOT))
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert b" images in \\u65e5\xe9, with" in done.stdout


def test_embedded(tmp_path):
    assert synthesize.main(["--recipe=embedded", f"--out={tmp_path}", "--scenes=1", "--seed=3"]) == 0
    ours, theirs = own.load(tmp_path), make_embedded(seed=3, scenes=1, progress=False)
    assert [Path(name).stem for name in ours.names] == theirs.names.tolist()
    np.testing.assert_array_equal(np.stack(list(ours.images)), theirs.images)
    for column in ("mos", "references", "distortions", "levels"):
        np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))
    before = contents(tmp_path)
    (tmp_path / "images" / f"{theirs.names[5]}.png").unlink()
    synthesize.synthesize("", tmp_path, recipe="embedded", scenes=1, seed=3, progress=False)
    assert contents(tmp_path) == before


def test_recipes():
    for recipe, families in synthesize.RECIPES.items():
        chosen = synthesize._check(recipe, (), (1,), "ours", None, 0, 1)
        assert {DISTORTIONS[name].family for name in chosen} == set(families)
    assert len(synthesize._check("kadid", (), (1,), "ours", None, 0, 1)) == 25
    files = [synthesize._files("x", name, (1,))[0] for name in DISTORTIONS]
    assert len(set(files)) == len(DISTORTIONS) and all("/" not in file.removeprefix("images/") for file in files)


@pytest.mark.parametrize("label", RULES)
def test_labels_and_seed(images, tmp_path, label):
    synthesize.synthesize(images, tmp_path, **OPTIONS | {"distortions": ["white-noise"], "label": label, "seed": 1})
    dataset = own.load(tmp_path)
    expected = [RULES[label].score(dataset.images[row], photograph(0)) for row in (2, 3)]
    np.testing.assert_array_equal(dataset.mos[2:], np.float32(expected))
    key = [1, zlib.crc32(b"roof_1_white-noise")]
    np.testing.assert_array_equal(dataset.images[2], distort(photograph(0), "white-noise", level=1, key=key))


def test_other_folders_are_refused(images, made, tmp_path):
    before = contents(made)
    for changes, field in (({"seed": 1}, "seed"), ({"levels": (1,)}, "levels"), ({"label": "psnr"}, "label")):
        with pytest.raises(UserError, match=f"made by another recipe: .*recipe.json differs in {field};"):
            synthesize.synthesize(images, made, **OPTIONS | changes)
    with pytest.raises(UserError, match="another recipe"):
        synthesize.synthesize("", made, recipe="embedded", scenes=1, progress=False)
    recipe = json.loads(before["recipe.json"])
    assert set(recipe["photographs"]) == {"lake", "roof_1"} and set(recipe["distortions"]) == set(NAMES)
    assert contents(made) == before
    (tmp_path / "thesis.doc").write_text("years of work")
    with pytest.raises(UserError, match=r"holds other files \(thesis.doc\).*--out"):
        synthesize.synthesize(images, tmp_path, **OPTIONS)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="recipe.json is damaged"):
        synthesize.synthesize(images, tmp_path, **OPTIONS)
    with filelock.FileLock(made / ".lock"), pytest.raises(UserError, match="another process is writing"):
        synthesize.synthesize(images, made, **OPTIONS)


def test_a_folder_that_cannot_be_written(images):
    with pytest.raises(UserError, match="could not be written.*make room.*another --out"):
        synthesize.synthesize(images, images / "notes.txt" / "out", **OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images=."], "required: --out"),
        (["--out=x"], "--images=DIR is missing"),
        (["--out=x", "--images=nowhere"], "there is no folder nowhere"),
        (["--out=x", "--images=IMAGES", "--recipe=live"], "recipe 'live' is not one; choose one of kadid, tid2013"),
        (["--out=x", "--images=IMAGES", "--distortions=kadid/jpg"], "did you mean 'kadid/jpeg'"),
        (["--out=x", "--images=IMAGES", "--distortions=jpeg,jpeg"], "name each once"),
        (["--out=x", "--images=IMAGES", "--levels=0,1"], "levels 0, 1: name some of 1, 2, 3, 4, 5"),
        (["--out=x", "--images=IMAGES", "--levels=one"], "--levels"),
        (["--out=x", "--images=IMAGES", "--label=vmaf"], "choose one of ours, ssim, gmsd, psnr"),
        (["--out=x", "--images=IMAGES", "--size=512"], "--size"),
        (["--out=x", "--images=IMAGES", "--size=8x64"], "size 8x64 is not allowed"),
        (["--out=x", "--images=IMAGES", "--size=100000x100000"], "size 100000x100000 is not allowed"),
        (["--out=", "--images=IMAGES"], "--out is empty"),
        (["--out=x", "--images=IMAGES", "--seed=-1"], "0 or more"),
        (["--out=x", "--images=IMAGES", "--colour=red"], "unrecognized arguments: --colour=red; --help"),
        (["--out=x", "--images=EMPTY"], "no photographs in"),
        (["--out=x", "--recipe=embedded", "--label=psnr"], "takes only out, seed and scenes"),
        (["--out=x", "--recipe=embedded", "--scenes=0"], "scenes=0"),
    ],
)
def test_mistakes_of_the_command_line(arguments, message, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    arguments = [argument.replace("IMAGES", str(images)).replace("EMPTY", "empty") for argument in arguments]
    assert synthesize.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not (tmp_path / "x" / "recipe.json").exists()  # the folder is still free for the right command


def test_paths_that_the_system_does_not_take(images, tmp_path, capsys):
    for options in (
        ["--images=~nobody-of-that-name/x", f"--out={tmp_path}"],
        [f"--images={images}", f"--out={300 * 'n'}"],
    ):
        assert synthesize.main(options) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: --") and error.count("\n") == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        synthesize.main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in [*DISTORTIONS, *RULES])
