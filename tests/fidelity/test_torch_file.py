"""Files of torch.save read without torch: both formats, and what is refused."""

import argparse
import collections
import functools
import importlib
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from cprl_jax.fidelity.torch_file import NotATensor, read_torch_file

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


def test_parameters_and_views(save):
    import torch

    base = torch.arange(12.0)
    marked = torch.nn.Parameter(base.clone())
    marked.no_decay = True
    tensors = {
        "parameter": torch.nn.Parameter(base.reshape(3, 4)),
        "parameter with an attribute": marked,
        "buffer with an attribute": base[2:4].clone(),
        "shared": base[3:],
        "strided": base[::5],
        "expanded": torch.ones(1).expand(5),
    }
    tensors["buffer with an attribute"].kind = "b"
    content = read_torch_file(save(tensors))
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(content[name], tensor.detach().numpy(), err_msg=name)


def test_what_lies_beside_tensors_is_described_and_not_made(save):
    import torch

    others = {
        "torch.nn.modules.linear.Linear": torch.nn.Linear(2, 2),
        "argparse.Namespace": argparse.Namespace(lr=0.1),
        "torch._utils._rebuild_sparse_tensor": torch.eye(2).to_sparse(),
        "torch._utils._rebuild_meta_tensor_no_storage": torch.zeros(2, device="meta"),
        "torch._utils._rebuild_tensor_v3": torch.zeros(2).to(torch.float8_e4m3fn),
        "numpy._core.multiarray._reconstruct": np.zeros(2),
        "": [pathlib.PurePosixPath("a"), np.float64(0.9), {1, 2}, torch.Size([2]), torch.device("cpu"), b"x"],
    }
    counts = collections.defaultdict(int, {"images": 3})
    content = read_torch_file(save({**others, "a": torch.ones(2), "counts": counts, "dtype": torch.float32}))
    np.testing.assert_array_equal(content["a"], [1, 1])
    assert content["counts"] == {"images": 3}
    for name in others:
        for value in content[name] if name == "" else [content[name]]:
            assert isinstance(value, NotATensor) and value.name == name, name


class Payload:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


CALLS = (exec, os.system, getattr, subprocess.Popen, functools.partial, importlib.import_module)


@pytest.mark.parametrize("function", CALLS, ids=[function.__name__ for function in CALLS])
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
        wanted = rf"{name}.pth: it wants \w+.{function.__name__} to be called.*state_dict\(\)"
        with pytest.raises(ValueError, match=wanted):
            read_torch_file(tmp_path / f"{name}.pth")
    assert not witness.exists()


def write_zip(path, opcodes, members=(), **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + opcodes + b".")
        for name, data in dict(members).items():
            archive.writestr(f"archive/{name}", data)
    return path


TENSOR = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX%sX\x03\x00\x00\x00cpuK\x02tQ"
    b"K\x00K\x02\x85K\x01\x85\x89}tR"
)


def test_hand_made_pickles(tmp_path):
    """Opcodes that reach for code in other ways than a call, or for what is outside of the archive."""
    path = tmp_path / "file.pth"
    key = b"\x01\x00\x00\x000"
    data = {"data/0": np.float32([1, 2]).tobytes()}
    np.testing.assert_array_equal(read_torch_file(write_zip(path, TENSOR % key, data)), [1, 2])
    refused = {
        b"(X\x04\x00\x00\x00trueios\nsystem\n": "wants os.system to be called",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nN)NtR": "wants os.system to be called",
        b"ccollections\nOrderedDict\nN}X\x07\x00\x00\x00__new__cos\nsystem\ns\x86b": "immutable type",
        TENSOR % b"\x10\x00\x00\x00../../etc/passwd": "no item named 'archive/data/../../etc/passwd'",
        b"ctorch._utils\n_rebuild_tensor_v2\n(K\x00K\x00))tR": "a tensor without a storage",
        b"X\x01\x00\x00\x00aQ": "not enough values",
        b"(X\x07\x00\x00\x00storagecos\nsystem\nX\x01\x00\x00\x000NK\x02tQ": "no storage of a tensor",
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000NJ\xff\xff\xff\xfftQ": "of -1 values",
    }
    for opcodes, message in refused.items():
        with pytest.raises(ValueError, match=rf"file.pth: .*{message}"):
            read_torch_file(write_zip(path, opcodes, data))
    with pytest.raises(ValueError, match="8 bytes|4 bytes"):
        read_torch_file(write_zip(path, TENSOR % key, {"data/0": b"\x00" * 4}))
    with pytest.raises(ValueError, match="compressed"):
        read_torch_file(write_zip(path, TENSOR % key, data, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(ValueError, match="torch.save did not write"):
        path.write_bytes(pickle.dumps({"a": 1}, 2))
        read_torch_file(path)


def test_containers_in_themselves_and_in_each_other_are_read_once(tmp_path):
    """2^60 lists by their names, and a dictionary that holds itself."""
    laughs = b"]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60))
    content = read_torch_file(write_zip(tmp_path / "file.pth", laughs))
    assert content[0] is content[1]
    content = read_torch_file(write_zip(tmp_path / "file.pth", b"}q\x00X\x01\x00\x00\x00ah\x00s"))
    assert content["a"] is content


def test_truncated_files(save, tmp_path):
    torch = pytest.importorskip("torch")
    path = save({"a": torch.arange(1000.0), "b": torch.ones(50)})
    whole = path.read_bytes()
    cut = tmp_path / "cut.pth"
    for length in (0, 1, 10, 100, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut.pth: damaged, cut short, or no file of torch.save"):
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
        dict(shape=(2**20, 2**20), strides=(0, 0)),
        dict(shape=(2, 2), strides=(2,)),
        dict(shape=(2, 2), strides=(2, 1), stored=3),
        dict(shape=(2, 2), strides=(2, 1), count=-4),
    ):
        with pytest.raises(ValueError, match="damaged"):
            read_torch_file(old_file(path, **wrong))
