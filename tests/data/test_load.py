"""Datasets by the name they have in a config."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from cprl_jax import data
from cprl_jax.config import defaults as config_lib
from cprl_jax.data import releases
from cprl_jax.data.releases import build
from cprl_jax.runtime.errors import UserError

DEFAULTS = {"manual_dir": "", "data_dir": "", "split_file": "", "seed": 0, "image_size": 32, "scenes": 3, "levels": 2}
DEFAULTS |= {"labels": "", "mos_worst": 0.0, "mos_best": 100.0, "koniq_scores": "zscore"}
DEFAULTS |= {"cache": "memory", "cache_gib": 4.0, "resize": 0}


def config(**changes):
    return ConfigDict(DEFAULTS | changes)


def test_every_file_of_releases_is_the_data_set_of_its_name():
    files = {path.stem for path in Path(releases.__file__).parent.glob("[!_]*.py")} - {"build"}
    assert files == set(data.RELEASES) and {"livec", "koniq"} <= files
    for name, release in data.RELEASES.items():
        assert name == release.NAME
        assert build.builder_of(release) is build.builder_of(release)
    assert len({release.BUILDER for release in data.RELEASES.values()}) == len(files)


def test_data_sets_are_known_without_tfds():
    program = "import sys; from cprl_jax import data; sys.exit('tensorflow_datasets' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fields_of_releases_are_fields_of_the_configuration():
    assert set(data.FIELDS) == {"koniq_scores"}
    for name, field in data.FIELDS.items():
        assert config_lib.default().dataset[name] == field.default


def test_livec(release, tmp_path):
    dataset = data.load(config(name="livec", manual_dir=str(release.manual_dir), data_dir=str(tmp_path / "tfds")))
    assert dataset.name == "livec" and len(dataset) == 10


def test_embedded_gets_its_options(monkeypatch):
    calls = []
    stub = types.SimpleNamespace(make_embedded=lambda **options: calls.append(options))
    monkeypatch.setitem(sys.modules, "cprl_jax.data.embedded", stub)
    data.load(config(name="embedded", seed=5))
    assert calls == [{"seed": 5, "image_size": 32, "scenes": 3, "levels": 2}]


@pytest.mark.parametrize("name", data.RELEASES)
def test_releases_get_their_options(monkeypatch, name):
    calls = []
    monkeypatch.setattr(build, "load", lambda release, **options: calls.append((release.NAME, options)))
    data.load(config(name=name, manual_dir="here", data_dir="there", cache="disk", koniq_scores="mos"))
    options = {"manual_dir": "here", "data_dir": "there", "cache": "disk", "cache_gib": 4.0}
    assert calls == [(name, options | ({"koniq_scores": "mos"} if name == "koniq" else {}))]


def test_own_images_get_their_options(monkeypatch):
    calls = []
    stub = types.SimpleNamespace(load=lambda folder, **options: calls.append((folder, options)))
    monkeypatch.setitem(sys.modules, "cprl_jax.data.own", stub)
    monkeypatch.setattr(data, "own", stub, raising=False)
    data.load(config(name="own", manual_dir="photos", labels="scores.csv", mos_worst=5.0, mos_best=1.0))
    options = {"labels": "scores.csv", "mos_worst": 5.0, "mos_best": 1.0, "data_dir": ""}
    assert calls == [("photos", options | {"cache": "memory", "cache_gib": 4.0})]


@pytest.mark.parametrize("name", ["LIVEC", "", "imagenet", None])
def test_unknown_names(name):
    with pytest.raises(
        UserError, match="is not a dataset; choose one of embedded, cid2013, kadid10k, koniq, live, livec,"
    ) as caught:
        data.load(config(name=name))
    assert "\n" not in str(caught.value)
