"""Which model a name means, and what is said where there is none."""

import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest

import cprl_jax
from cprl_jax.deploy import sources
from cprl_jax.runtime.errors import UserError


def test_a_shipped_name_is_never_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename(tmp_path / "robust")
    monkeypatch.setattr(sources, "_SHIPPED_FOLDER", tmp_path / "shipped")
    with pytest.raises(UserError, match="'robust' is not in this installation .* `make weights DATA=DIR`, or name"):
        cprl_jax.load("robust")
    for other in ("./robust", Path("robust"), str(tmp_path / "robust")):
        assert cprl_jax.load(other).method == "cprl"
    shutil.copytree("robust", tmp_path / "shipped" / "plain")
    assert cprl_jax.load("plain").name == "plain"


def test_hugging_face_is_asked_for_three_files(folder, tmp_path, monkeypatch):
    asked = []

    def download(name, *, allow_patterns):
        asked.append((name, sorted(allow_patterns)))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    model = cprl_jax.load("somebody/model")
    assert asked == [("somebody/model", ["README.md", "config.json", "model.safetensors"])]
    assert (model.name, model.card) == ("somebody/model", "# A card\n")
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(UserError, match="somebody/model on Hugging Face is no model of cprl_jax"):
        cprl_jax.load("somebody/model")

    def fail(name, *, allow_patterns):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"somebody/model is no folder here, .* Hugging Face \(no network\)"):
        cprl_jax.load("somebody/model")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere is not there; give 'robust', 'plain', the folder"),
        ("here/nowhere", "here/nowhere is not there"),
        ("./somebody/model", "is not there"),
        ("../model", "is not there"),
        ("file", "file is a file; give"),
        ("", "the model is empty"),
        ("a\0b", "the model is .* no usable path"),
        ("here", "here is not the folder of a run: config.json cannot be read"),
    ],
)
def test_what_is_no_model(tmp_path, monkeypatch, source, message):
    def download(*_, **__):
        raise AssertionError("nobody wanted the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=message):
        cprl_jax.load(source)


def test_options_of_a_folder(folder):
    with pytest.raises(UserError, match="is a model of cprl, not of plain; leave the method out"):
        cprl_jax.load(folder, method="plain")
    with pytest.raises(UserError, match="crops=-1 is not allowed"):
        cprl_jax.load(folder, crops=-1)
    other = cprl_jax.load(folder, method="cprl", crops=2)
    assert other.config.evaluation.crops == 2 and "crops at 2 places of an image, and was that at" in other.card
    assert cprl_jax.load(folder, crops=cprl_jax.load(folder).config.evaluation.crops).card in other.card
    (folder / "README.md").unlink()
    model = cprl_jax.load(folder)
    assert model(np.zeros((1, 24, 24, 3), np.uint8)).shape == (1,)
    with pytest.raises(UserError, match="README.md, the model's card, cannot be read"):
        model.card  # noqa: B018
