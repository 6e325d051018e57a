"""Datasets by the name they have in a config."""

import sys

import pytest
from ml_collections import ConfigDict

from cprl_jax import data
from cprl_jax.errors import UserError

DEFAULTS = {"manual_dir": "", "data_dir": "", "split_file": "", "seed": 0, "image_size": 32, "scenes": 3, "levels": 2}


def config(**changes):
    return ConfigDict(DEFAULTS | changes)


def test_livec(release, tmp_path):
    dataset = data.load(config(name="livec", manual_dir=str(release.manual_dir), data_dir=str(tmp_path / "tfds")))
    assert dataset.name == "livec" and len(dataset) == 10


def test_embedded_gets_its_options(monkeypatch):
    calls = []

    class Stub:
        @staticmethod
        def make_embedded(**options):
            calls.append(options)

    monkeypatch.setitem(sys.modules, "cprl_jax.data.embedded", Stub)
    data.load(config(name="embedded", seed=5))
    assert calls == [{"seed": 5, "image_size": 32, "scenes": 3, "levels": 2}]


@pytest.mark.parametrize("name", ["live", "vcl", "koniq"])
def test_sets_to_come(name):
    with pytest.raises(UserError, match=f"{name}.*is not part of this version yet") as caught:
        data.load(config(name=name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["LIVEC", "", "imagenet", None])
def test_unknown_names(name):
    with pytest.raises(UserError, match="is not a dataset; choose one of embedded, livec, live, vcl, koniq"):
        data.load(config(name=name))
