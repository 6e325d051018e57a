"""Files of torch.save read without torch: both formats, and what is refused."""

import collections
import pickle
import struct
import sys
import zipfile

import numpy as np
import pytest

from cprl_jax.models.torch_file import read_torch_file
from cprl_jax.runtime.errors import UserError

FORMATS = ("zip", "old")


@pytest.fixture(params=FORMATS)
def save(request, tmp_path):
    """Saves an object with torch, in either format; gives the path."""
    torch = pytest.importorskip("torch")

    def to_file(content, name="file.pth"):
        torch.save(content, tmp_path / name, _use_new_zipfile_serialization=request.param == "zip")
        return tmp_path / name

    return to_file


def test_tensors_of_all_kinds(save, monkeypatch):
    import torch

    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(4, 6, generator=generator)
    tensors = {
        "float": whole,
        "view": whole.T[1:3],  # of the same storage, with an offset and strides
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5, generator=generator).to(memory_format=torch.channels_last),
        "double": torch.randn(3, generator=generator, dtype=torch.float64),
        "half": torch.randn(3, generator=generator).half(),
        "bfloat16": torch.randn(3, generator=generator).bfloat16(),
        "bool": torch.tensor([True, False]),
        **{name: torch.tensor([-1, 7]).to(getattr(torch, name)) for name in ("int64", "int32", "int16", "int8")},
        "uint8": torch.tensor([255, 0], dtype=torch.uint8),
    }
    path = save({"epoch": 3, "state_dict": collections.OrderedDict(tensors), "rates": [0.1, (1, None)], "on": True})
    with monkeypatch.context() as without_torch:
        without_torch.setitem(sys.modules, "torch", None)
        content = read_torch_file(path)
    assert (content["epoch"], content["rates"], content["on"]) == (3, [0.1, [1, None]], True)
    assert list(content["state_dict"]) == list(tensors)
    for name, tensor in tensors.items():
        array = content["state_dict"][name]
        expected = tensor.float().numpy() if name == "bfloat16" else tensor.numpy()
        assert str(array.dtype) == str(tensor.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(array.astype(expected.dtype), expected, err_msg=name)


def test_a_state_dict_of_a_network(save):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    content = read_torch_file(save(network.state_dict()))
    for name, tensor in network.state_dict().items():
        np.testing.assert_array_equal(content[name], tensor.numpy())


def test_anything_but_tensors_is_refused_by_name(save):
    torch = pytest.importorskip("torch")
    with pytest.raises(UserError, match=r"names torch.nn.modules.linear.Linear, .*state_dict\(\)"):
        read_torch_file(save(torch.nn.Linear(2, 2)))
    with pytest.raises(UserError, match="names pathlib"):
        read_torch_file(save({"path": pytest.importorskip("pathlib").PurePosixPath("a")}))


class Payload:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [exec, __import__("os").system, getattr])
def test_code_is_refused_and_not_run(tmp_path, function):
    witness = tmp_path / "witness"
    payload = Payload(function, f"open({str(witness)!r}, 'w')")
    pickled = pickle.dumps({"a": payload}, protocol=2)
    with zipfile.ZipFile(tmp_path / "new.pth", "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    numbers = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    (tmp_path / "old.pth").write_bytes(b"".join([*numbers, pickled, pickle.dumps([], 2)]))
    (tmp_path / "early.pth").write_bytes(pickled)  # where the format's number should be
    for name in ("new", "old", "early"):
        with pytest.raises(UserError, match=rf"names \w+.{function.__name__}, which is no tensor"):
            read_torch_file(tmp_path / f"{name}.pth")
    assert not witness.exists()


def test_truncated_files(save, tmp_path):
    torch = pytest.importorskip("torch")
    path = save({"a": torch.arange(1000.0), "b": torch.ones(50)})
    whole = path.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut.pth: damaged, cut short, or no file of torch.save"):
            read_torch_file(cut)


def old_file(path, shape, strides, *, offset=0, count=4, stored=4):
    """A file {'a': a tensor} in the old format, written by hand, with sizes that need not agree."""
    with open(path, "wb") as file:
        for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}):
            pickle.dump(value, file, 2)
        file.write(b"\x80\x02}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage")
        file.write(b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu")
        file.write(b"J" + struct.pack("<i", count))
        file.write(b"NtQJ" + struct.pack("<i", offset))
        for numbers in (shape, strides):
            file.write(b"(" + b"".join(b"J" + struct.pack("<i", number) for number in numbers) + b"t")
        file.write(b"\x89}tRs.")
        pickle.dump(["0"], file, 2)
        file.write(struct.pack("<q", stored) + np.arange(stored, dtype="<f4").tobytes())
    return path


def test_sizes_are_checked(tmp_path):
    path = tmp_path / "file.pth"
    np.testing.assert_array_equal(read_torch_file(old_file(path, (2, 2), (2, 1)))["a"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(read_torch_file(old_file(path, (1, 2), (9, 2), offset=1))["a"], [[1, 3]])
    for wrong in (
        dict(shape=(2, 3), strides=(3, 1)),
        dict(shape=(2, 2), strides=(2, 1), offset=1),
        dict(shape=(2, 2), strides=(2, -1), offset=1),
        dict(shape=(2, 2), strides=(2, 1), offset=-1),
        dict(shape=(-2, -2), strides=(2, 1)),
        dict(shape=(1000, 1000), strides=(0, 0)),
        dict(shape=(2, 2), strides=(2,)),
        dict(shape=(2, 2), strides=(2, 1), stored=3),
        dict(shape=(2, 2), strides=(2, 1), count=-4),
    ):
        with pytest.raises(UserError, match="damaged"):
            read_torch_file(old_file(path, **wrong))
