"""A model's folder: what is written is read; what is damaged, of another version or another's is named."""

import hashlib
import json
import os
import pickle
import sys

import jax
import numpy as np
import pytest

from cprl_jax.deploy import package
from cprl_jax.runtime.errors import UserError


def test_what_is_written_is_read(content, folder):
    assert sorted(os.listdir(folder)) == sorted(package.FILES)
    found = package.read(folder)
    assert found.module == content.module and found[1:3] == ("cprl", "cprl") and found.dtype == "float32"
    jax.tree.map(np.testing.assert_array_equal, found.variables, content.variables)
    for name in ("seed", "evaluation.crops", "evaluation.crop_size", "evaluation.batch_size", "dataset.resize"):
        values = [config.to_dict() for config in (found.config, content.config)]
        for part in name.split("."):
            values = [value[part] for value in values]
        assert values[0] == values[1], name


def test_the_description_is_plain_and_knows_no_place_of_this_machine(folder):
    text = (folder / "config.json").read_text()
    description = json.loads(text)
    assert (description["format"], description["version"]) == ("cprl_jax model", 1)
    assert description["weights"]["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert "somebody" not in text and str(folder) not in text and "resnet" not in text


def edited(**changes):
    """Changes entries of config.json, by their dotted names with `__`; None removes one."""

    def change(folder):
        path = folder / "config.json"
        description = json.loads(path.read_text())
        for name, value in changes.items():
            *places, last = name.split("__")
            block = description
            for place in places:
                block = block[place]
            if value is None:
                del block[last]
            else:
                block[last] = value
        path.write_text(json.dumps(description))

    return change


def rewritten(name, make):
    def change(folder):
        path = folder / name
        content = make(path.read_bytes())
        path.unlink() if content is None else path.write_bytes(content)

    return change


def flipped(content):
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


DAMAGES = {
    "weights gone": (rewritten("model.safetensors", lambda _: None), "model.safetensors cannot be read"),
    "weights cut": (rewritten("model.safetensors", lambda c: c[:-100]), "model.safetensors: its checksum"),
    "one bit of the weights": (rewritten("model.safetensors", flipped), "model.safetensors: its checksum"),
    "a pickle": (rewritten("model.safetensors", lambda _: pickle.dumps([1])), "model.safetensors: its checksum"),
    "no config": (rewritten("config.json", lambda _: None), "config.json cannot be read"),
    "config cut": (rewritten("config.json", lambda c: c[:99]), "config.json is damaged"),
    "config of bytes": (rewritten("config.json", lambda _: b"\xff\xfe"), "config.json is damaged"),
    "config is a list": (rewritten("config.json", lambda _: b"[]"), "config.json is not that of a model"),
    "config of lists in lists": (
        rewritten("config.json", lambda _: b"[" * 99_999 + b"]" * 99_999),
        "config.json is damaged .*depth",
    ),
    "another format": (edited(format="bert"), "config.json is not that of a model"),
    "a later version": (edited(version=2), "config.json is of version 2; this cprl_jax reads version 1"),
    "no method": (edited(method=None), "config.json is damaged: method"),
    "no config in it": (edited(config=[]), "config.json is damaged: config"),
    "unknown dtype": (edited(weights__dtype="int4"), "config.json is damaged: weights"),
    "another scale": (edited(scale={"worst": 1, "best": 5}), "config.json is damaged: scale"),
    "unknown method": (edited(network="cprll"), r"config.json: network is 'cprll'.*did you mean 'cprl'"),
    "unknown network": (edited(config__model__name="compactt"), "config.json: .*compactt"),
    "unknown field": (edited(config__model__depth=3), "config.json: config.model.depth is not known"),
    "a wrong value": (edited(config__evaluation__crops=0), "config.json: evaluation.crops is 0; it must be at least 1"),
    "a wrong type": (edited(config__evaluation__crops="3"), "config.json: evaluation.crops is '3'"),
    "no block": (edited(config__evaluation=3), "config.json: config.evaluation is not known|not a JSON object"),
    "another network": (edited(config__model__name="cnniqa"), "config.json: CNNIQA takes images of at least 32x32"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_wrong_is_one_sentence_about_the_file(folder, name):
    change, message = DAMAGES[name]
    change(folder)
    with pytest.raises(UserError, match=message) as found:
        package.read(folder)
    assert "\n" not in str(found.value) and str(folder) in str(found.value)


def test_nothing_but_the_model_is_opened(folder):
    for name in ("model.pkl", "pytorch_model.bin", "model.py"):
        (folder / name).write_bytes(pickle.dumps(print))
    opened, watching = [], [True]
    sys.addaudithook(lambda event, arguments: watching and event == "open" and opened.append(str(arguments[0])))
    package.read(folder)
    watching.clear()
    inside = {os.path.basename(path) for path in opened if path.startswith(str(folder))}
    assert inside == {"model.safetensors", "config.json"}


def test_a_folder_is_replaced_whole_or_not_at_all(content, folder, monkeypatch):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(package, "write_file", full)
        package.write(folder, content._replace(dtype="int8"), "# Another\n")
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before
    package.write(folder, content._replace(dtype="int8"), "# Another\n")
    assert package.read(folder).dtype == "int8" and (folder / "README.md").read_text() == "# Another\n"
    assert os.listdir(folder.parent) == ["model"]


def test_an_older_model_is_put_back_where_the_new_one_cannot_take_its_place(content, folder, monkeypatch):
    before = (folder / "model.safetensors").read_bytes()
    rename = os.rename

    def failing(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error", str(target))
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="Input/output"):
        patch.setattr(os, "rename", failing)
        package.write(folder, content._replace(dtype="int8"), "# Another\n")
    assert (folder / "model.safetensors").read_bytes() == before and os.listdir(folder.parent) == ["model"]


def test_nothing_else_is_written_over(content, folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds notes.txt, which is of no model; give another folder"):
        package.write(folder, content, "")
    run = folder.parent / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(UserError, match="holds config.json, which is of no model"):
        package.write(run, content, "")
    with pytest.raises(UserError, match="notes.txt is a file"):
        package.write(folder / "notes.txt", content, "")
    (folder.parent / "empty").mkdir()
    package.write(folder.parent / "empty", content, "")
