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
    assert read_tensors("owner/name:heads.npz").keys() == backbone.keys()
    assert asked == [("owner/name", "heads.npz")]
    with pytest.raises(ValueError, match=r"OSError: no connection\); check the name"):
        read_tensors("nobody/nothing:heads.npz")


def test_mistakes_in_files_are_named(backbone, tmp_path):
    with pytest.raises(ValueError, match="no file 'nowhere.npz'; give a path .*'owner/name:file'"):
        read_tensors("nowhere.npz")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="unknown kind of file; allowed: .npz"):
        read_tensors(tmp_path / "a.bin")
    for suffix in ("npz", "safetensors", "pth"):
        (tmp_path / f"a.{suffix}").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=f"not a .{suffix} file of plain tensors"):
            read_tensors(tmp_path / f"a.{suffix}")
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="plain tensors"):
        read_tensors(tmp_path / "pickled.npz")
    with pytest.raises(ValueError, match="the given arrays: 'x' holds values that are not finite"):
        read_tensors({"x": np.array([np.nan])})


def test_mistakes_in_tensors_are_named(backbone):
    def read(tensors):
        return fidelity.lpips_parameters(tensors, network="squeezenet")

    with pytest.raises(ValueError, match="'features.3.squeeze.bias' of squeezenet is missing"):
        read({name: value for name, value in backbone.items() if name != "features.3.squeeze.bias"})
    with pytest.raises(ValueError, match=r"'features.0.weight' has shape \(64, 3, 5, 5\).*needs \(64, 3, 3, 3\)"):
        read(backbone | {"features.0.weight": np.zeros((64, 3, 5, 5), np.float32)})
    with pytest.raises(ValueError, match="'features.99.weight' is not part of squeezenet"):
        read(backbone | {"features.99.weight": np.zeros(3, np.float32)})
