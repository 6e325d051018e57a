"""The folder of a made set: lists that others can read, a journal that survives, a recipe that is not overwritten."""

import hashlib
import io
import json

import pytest

from cprl_jax.data import made_set, own
from cprl_jax.data.made_set import Made
from cprl_jax.runtime.errors import UserError

ROWS = [
    Made("references/été, 1.png", "0" * 64, "", "été, 1"),
    Made("images/été, 1_kadid-jpeg_2.png", "1" * 64, "71.5", "été, 1", "kadid/jpeg", 2),
]


def test_journal(tmp_path):
    assert made_set.read_journal(tmp_path) == {}
    journal = io.StringIO()
    made_set.note(journal, [ROWS[0], ROWS[1]])
    path = tmp_path / made_set.JOURNAL
    path.write_text(journal.getvalue(), encoding="utf-8")
    assert list(made_set.read_journal(tmp_path).values()) == ROWS
    for cut in (1, 3, 20, 100):
        path.write_bytes(journal.getvalue().encode()[:-cut])
        left = ROWS if cut == 1 else ROWS[:1]  # the line's end alone is no loss
        assert list(made_set.read_journal(tmp_path).values()) == left


def test_lists(tmp_path):
    (tmp_path / "recipe.json").write_text("{}")
    made_set.write_lists(tmp_path, ROWS, "ssim")
    head, *lines = (tmp_path / "labels.csv").read_text(encoding="utf-8").splitlines()
    assert head.startswith("# WEAK LABELS: computed, no human was asked. Rule 'ssim': 100 max(SSIM, 0)")
    assert lines[1:] == [
        "image,mos,reference,distortion,level",
        '"images/été, 1_kadid-jpeg_2.png",71.5,"été, 1",kadid/jpeg,2',
    ]
    sums = dict(
        line.split("  ", 1)[::-1] for line in (tmp_path / "checksums.sha256").read_text(encoding="utf-8").splitlines()
    )
    labels = hashlib.sha256((tmp_path / "labels.csv").read_bytes()).hexdigest()
    recipe = hashlib.sha256(b"{}").hexdigest()
    assert sums == {row.file: row.sha256 for row in ROWS} | {"labels.csv": labels, "recipe.json": recipe}
    assert list(made_set.read_journal(tmp_path).values()) == ROWS
    with pytest.raises(UserError, match="line 4.*no such file"):  # the lines on top are not rows
        own.load(tmp_path)


def test_claim(tmp_path):
    recipe = {"seed": 0, "size": (20, 16)} | made_set.describe(["kadid/jpeg"], "ours")
    made_set.claim(tmp_path, recipe)
    written = json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))
    assert written["label"]["weak"] and len(written["distortions"]["kadid/jpeg"]["parameters"]) == 5
    assert {"numpy", "pillow", "jpg"} <= set(written["software"])
    (tmp_path / "images").mkdir()
    leftover = tmp_path / "images" / ".a.png.1.tmp"
    leftover.write_bytes(b"half")
    made_set.claim(tmp_path, recipe)  # its own
    assert not leftover.exists()
    with pytest.raises(UserError, match=r"another recipe: .*differs in seed, size;.*another --out"):
        made_set.claim(tmp_path, recipe | {"seed": 1, "size": None})
    (tmp_path / "recipe.json").write_text("[]")
    with pytest.raises(UserError, match="damaged"):
        made_set.claim(tmp_path, recipe)
    (tmp_path / "recipe.json").unlink()
    with pytest.raises(UserError, match=r"holds other files \(images\)"):
        made_set.claim(tmp_path, recipe)
