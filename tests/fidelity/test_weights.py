import jax
import numpy as np
import pytest

from cprl_jax import fidelity
from cprl_jax.fidelity.weights import read_tensors


@pytest.fixture(scope="module")
def backbone():
    return fidelity.random_backbone(jax.random.key(0), network="squeezenet")


def test_every_kind_of_file_reads_the_same(backbone, tmp_path):
    import safetensors.numpy

    torch = pytest.importorskip("torch")
    with_classifier = backbone | {"classifier.1.weight": np.zeros((2, 3), np.float32)}
    np.savez(tmp_path / "a.npz", **with_classifier)
    safetensors.numpy.save_file(
        {name: np.ascontiguousarray(value) for name, value in with_classifier.items()}, tmp_path / "a.safetensors"
    )
    torch.save(
        {name: torch.tensor(value) for name, value in with_classifier.items()} | {"steps": torch.tensor(3)},
        tmp_path / "a.pth",
    )
    expected = fidelity.lpips_parameters(backbone, network="squeezenet")
    np.testing.assert_array_equal(
        expected["squeezenet"]["features.3.expand3x3"]["kernel"][2, 1, 5, 7],
        backbone["features.3.expand3x3.weight"][7, 5, 2, 1],
    )
    for suffix in ("npz", "safetensors", "pth"):
        parameters = fidelity.lpips_parameters(tmp_path / f"a.{suffix}", network="squeezenet")
        jax.tree.map(np.testing.assert_array_equal, parameters, expected)


def test_random_backbones_are_reproducible_and_keep_the_size_of_features(backbone):
    again = fidelity.random_backbone(jax.random.key(0), network="squeezenet")
    jax.tree.map(np.testing.assert_array_equal, backbone, again)
    other = fidelity.random_backbone(jax.random.key(1), network="squeezenet")
    assert np.any(other["features.0.weight"] != backbone["features.0.weight"])
    kernel = backbone["features.12.expand3x3.weight"]
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / np.prod(kernel.shape[1:])), rtol=0.02)


def test_files_on_hugging_face(backbone, tmp_path, monkeypatch):
    import huggingface_hub

    np.savez(tmp_path / "heads.npz", **backbone)
    asked = []

    def download(repository, file):
        asked.append((repository, file))
        if repository == "nobody/nothing":
            raise OSError("no connection\nand more")
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert read_tensors("owner/name:heads.npz", set(backbone)).keys() == backbone.keys()
    assert asked == [("owner/name", "heads.npz")]
    with pytest.raises(ValueError, match=r"OSError: no connection\); check the name"):
        read_tensors("nobody/nothing:heads.npz", set(backbone))


def test_trunks_under_a_prefix_in_a_checkpoint_or_alone(backbone, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: torch.tensor(value) for name, value in backbone.items()}
    expected = fidelity.lpips_parameters(backbone, network="squeezenet")
    for content in (
        {
            "epoch": 3,
            "model": {f"module.net.{name}": value for name, value in state.items()},
            "optimizer": {"state": {}},
        },
        {name.removeprefix("features."): value for name, value in state.items()},  # network.features.state_dict()
    ):
        torch.save(content, tmp_path / "a.ckpt")
        parameters = fidelity.lpips_parameters(tmp_path / "a.ckpt", network="squeezenet")
        jax.tree.map(np.testing.assert_array_equal, parameters, expected)


def test_heads_in_a_checkpoint(backbone, tmp_path):
    torch = pytest.importorskip("torch")
    widths = (64, 128, 256, 384, 384, 512, 512)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(widths)}
    torch.save({"state_dict": {f"module.{name}": value for name, value in heads.items()}}, tmp_path / "heads")
    parameters = fidelity.lpips_parameters(backbone, heads=tmp_path / "heads", network="squeezenet")
    for ours, theirs in zip(parameters["heads"], heads.values(), strict=True):
        np.testing.assert_array_equal(ours, theirs.flatten())
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole")
    with pytest.raises(ValueError, match=r"whole: .*torch.nn.modules.linear.Linear.*state_dict\(\)"):
        fidelity.dists_parameters({}, weights=tmp_path / "whole")


def test_mistakes_in_files_are_named(backbone, tmp_path):
    with pytest.raises(ValueError, match="no file 'nowhere.npz'; give the path .*owner/name:file"):
        fidelity.lpips_parameters("nowhere.npz")
    (tmp_path / "a.npz").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="a.npz: of an unknown kind"):
        fidelity.lpips_parameters(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="the given arrays: no tensors"):
        fidelity.lpips_parameters({})


def test_mistakes_in_tensors_are_named(backbone):
    def read(tensors):
        return fidelity.lpips_parameters(tensors, network="squeezenet")

    with pytest.raises(ValueError, match="'features.3.squeeze.bias' of squeezenet is missing"):
        read({name: value for name, value in backbone.items() if name != "features.3.squeeze.bias"})
    with pytest.raises(ValueError, match=r"'features.0.weight' has shape \(64, 3, 5, 5\).*needs \(64, 3, 3, 3\)"):
        read(backbone | {"features.0.weight": np.zeros((64, 3, 5, 5), np.float32)})
    name = "features.0.bias"
    with pytest.raises(ValueError, match=f"the given arrays: '{name}' holds values that are not finite"):
        read(backbone | {name: np.full_like(backbone[name], np.nan)})
    with pytest.raises(ValueError, match=f"the given arrays: '{name}' has type int64"):
        read(backbone | {name: np.zeros(64, np.int64)})
    with pytest.raises(ValueError, match="'features.99.weight' is not part of squeezenet"):
        read(backbone | {"features.99.weight": np.zeros(3, np.float32)})
