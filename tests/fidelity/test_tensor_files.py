"""Files of weights by their content: kinds, places of the tensors in them, types, and files that are none."""

import io
import itertools
import os
import tarfile
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax.fidelity import tensor_files

WANTED = {"conv1.weight", "bn1.running_var", "fc.bias", "params/head/kernel"}


def arrays(seed=0):
    random = np.random.default_rng(seed)
    return {
        "conv1.weight": random.normal(size=(2, 3, 1, 1)).astype(np.float32),
        "bn1.running_var": random.random(2).astype(np.float32),
        "fc.bias": random.random(3).astype(np.float32),
    }


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def write_npz(path, tensors):
    with open(path, "wb") as file:  # np.savez would add an ending
        np.savez(file, **tensors)


def write_compressed_npz(path, tensors):
    with open(path, "wb") as file:
        np.savez_compressed(file, **tensors)


def write_safetensors(path, tensors):
    import safetensors.numpy

    path.write_bytes(safetensors.numpy.save(tensors, metadata={"format": "pt"}))


def write_torch(path, tensors, new=True):
    torch = pytest.importorskip("torch")
    torch.save({k: torch.tensor(v) for k, v in tensors.items()}, path, _use_new_zipfile_serialization=new)


def write_old_torch(path, tensors):
    write_torch(path, tensors, new=False)


WRITERS = (write_npz, write_compressed_npz, write_safetensors, write_torch, write_old_torch)


@pytest.mark.parametrize("write", WRITERS, ids=[write.__name__ for write in WRITERS])
def test_the_name_of_a_file_does_not_matter(tmp_path, write):
    for name in ("a", "a.pth.tar", "a.ckpt", "a.bin", "a.th", "a.PTH", "a.npz", "a.safetensors", "a.h5", "a b:c.é"):
        write(tmp_path / name, arrays())
        assert tensor_files.find(tmp_path / name) == tmp_path / name
        assert_same(tensor_files.read(tmp_path / name), arrays())


# --- Where the tensors are ---

PREFIXES = (
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "backbone.",
    "net.",
    "encoder.",
    "features.",
    "base.",
    "network.",
) + ("module.model.", "model.module.", "student.backbone.", "_forward_module.model.")
WRAPPERS = (
    ("state_dict",),
    ("model_state_dict",),
    ("params",),
    ("params_ema",),
    ("state_dict_ema",),
    ("net",),
    ("weights",),
    ("ema", "module"),
    ("model", "state_dict"),
    ("models", 1),
)


def wrapped(tensors, keys):
    for key in reversed(keys):
        tensors = [{"rate": 0.1}, tensors] if key == 1 else {"epoch": 3, key: tensors, "optimizer": {"state": {0: {}}}}
    return tensors


def test_any_prefix_and_any_wrapper():
    for prefix, wrapper in itertools.product(PREFIXES, ((), *WRAPPERS)):
        content = wrapped({f"{prefix}{name}": value for name, value in arrays().items()}, wrapper)
        found = tensor_files.state_dict(content, WANTED)
        assert_same(found.tensors, arrays())
        assert found.prefix.endswith(prefix) and found.left_over == [], (prefix, wrapper)


def test_parts_in_dictionaries_of_their_own():
    nested = {"net": {"conv1": {"weight": arrays()["conv1.weight"]}, "fc": {"bias": arrays()["fc.bias"]}}}
    found = tensor_files.state_dict(nested, WANTED)
    assert found.tensors.keys() == {"conv1.weight", "fc.bias"} and found.prefix == "net."


def test_what_else_a_checkpoint_has_is_no_part_of_the_weights(caplog):
    """The state of an optimizer, arrays of the training, another network; what is beside the weights is told."""
    state = {f"model.{name}": value for name, value in arrays().items()}
    state |= {"model.bn1.num_batches_tracked": np.int64(3), "n_averaged": np.array(7), "model.neck.weight": np.zeros(2)}
    content = {
        "loss.weight": np.zeros(3),
        "optimizer": {"state": {0: {"exp_avg": np.zeros(3)}}},
        "discriminator": {"conv1.weight": np.zeros(3)},
        "state_dict": {**state, "criterion.weight": np.zeros(3)},
    }
    with caplog.at_level("INFO"):
        found = tensor_files.state_dict(content, WANTED)
    assert "left aside: '', 'optimizer.state.0', 'discriminator'" in caplog.text
    assert_same(found.tensors, {**arrays(), "neck.weight": np.zeros(2)})
    assert (found.prefix, found.left_over) == ("state_dict.model.", ["state_dict.criterion.weight"])


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ("state_dict", "state_dict_ema", 1),
        ("params_ema", "params", 0),
        ("model.module", "ema.module", 1),
        ("net", "swa", 1),
        ("averaged", "last", 0),
        ("a", "b", 0),
        ("schema", "gemma", 0),  # no averages
    ],
)
@pytest.mark.parametrize("flat", [True, False], ids=["one dictionary", "dictionaries"])
def test_of_several_copies_the_average_else_the_first_is_taken(caplog, first, second, taken, flat):
    if flat:
        content = {
            f"{place}.{name}": value
            for seed, place in enumerate((first, second))
            for name, value in arrays(seed).items()
        }
    else:
        content = {place: arrays(seed) for seed, place in enumerate((first, second))}
    found = tensor_files.state_dict(content, WANTED)
    assert_same(found.tensors, arrays(taken))
    assert found.left_over == []
    chosen, other = ((first, second), (second, first))[taken]
    assert f"taken are those under '{chosen}' and not those under '{other}'" in caplog.text


def test_one_dictionary_by_two_names_is_no_second_copy(caplog):
    same = arrays()
    assert_same(tensor_files.state_dict({"model": same, "best": same}, WANTED).tensors, same)
    assert not caplog.records


def test_without_wanted_names_the_largest_dictionary_is_given():
    content = {"a": {"x": np.zeros(2)}, "b": {"y/w": np.zeros(2), "z/w": np.ones(2)}}
    found = tensor_files.state_dict(content, WANTED)
    assert found.prefix == "b." and found.tensors.keys() == {"y/w", "z/w"}


def test_no_state_dict(tmp_path):
    torch = pytest.importorskip("torch")
    for content in ({}, [1, 2], {"epoch": 3, "rates": [0.1]}):
        with pytest.raises(ValueError, match="no tensors in it"):
            tensor_files.state_dict(content, WANTED)
    for content in (
        torch.nn.Linear(2, 2),
        {"model": torch.nn.Linear(2, 2), "best": np.float64(1), "n": torch.ones(())},
    ):
        torch.save(content, tmp_path / "a")
        with pytest.raises(ValueError, match=r"object of torch.nn.modules.linear.Linear, .*not run; .*state_dict\(\)"):
            tensor_files.state_dict(tensor_files.read(tmp_path / "a"), WANTED)
    torch.save({"conv1.weight": torch.eye(2).to_sparse()}, tmp_path / "a")
    with pytest.raises(ValueError, match="conv1.weight is no plain tensor but made by torch._utils._rebuild_sparse"):
        tensor_files.state_dict(tensor_files.read(tmp_path / "a"), WANTED)


# --- Types ---


def test_floating_point_types_of_every_kind_of_file(tmp_path):
    for write, dtype in itertools.product(WRITERS, (np.float16, np.float32, np.float64, jnp.bfloat16)):
        values = np.array([[1.5, -0.25], [0.0, 3.0]]).astype(dtype)
        if dtype == jnp.bfloat16 and write in (write_torch, write_old_torch):
            torch = pytest.importorskip("torch")
            tensors = {"a": torch.tensor(values.astype(np.float32)).bfloat16()}
            torch.save(tensors, tmp_path / "a", _use_new_zipfile_serialization=write is write_torch)
        else:
            write(tmp_path / "a", {"a": values})
        result = tensor_files.as_float32(tensor_files.read(tmp_path / "a")["a"], "a")
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, values.astype(np.float32), err_msg=f"{write.__name__} {dtype}")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(2, np.int8), "a has type int8; .*not quantised"),
        (np.zeros(2, np.complex64), "a has type complex64; weights are real"),
        (np.array(["text"]), "a has type <U4"),
        (np.array([1e300]), "a holds values that are not finite"),
        (np.array([np.inf]), "a holds values that are not finite"),
        (jnp.array([1, 2]), "a has type int32"),
    ],
    ids=["int8", "complex", "text", "too large", "infinite", "int32"],
)
def test_values_that_are_no_weights(value, message):
    with pytest.raises(ValueError, match=message):
        tensor_files.as_float32(value, "a")


# --- Files that are none ---


def archive_of(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, "text")
    return file.getvalue()


def tar():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pth"))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b'{"message": "Not Found"}', "JSON"),
        (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        (b"\x1f\x8b\x08\x00", "gzip: unpack"),
        (tar(), "a tar archive: unpack"),
        (archive_of("weights.pth"), r"an archive of other files \(weights.pth\); unpack"),
        (b"nonsense", "of an unknown kind; give the path of"),
        (b"\x80\x02nonsense", "damaged, cut short, or no file of torch.save"),
        (b"PK\x03\x04nonsense", "damaged or cut short"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{nonsense", "not a safetensors file"),
    ],
    ids=["empty", "lfs", "html", "json", "hdf5", "gzip", "tar", "zip", "text", "pickle", "pk", "safetensors"],
)
def test_what_a_file_is_instead(tmp_path, content, message):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights.pth: .*{message}") as caught:
        tensor_files.read(tmp_path / "weights.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", WRITERS, ids=[write.__name__ for write in WRITERS])
def test_files_cut_short(tmp_path, write):
    path = tmp_path / "a"
    write(path, arrays())
    whole = path.read_bytes()
    for length in (0, 5, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a: (.*cut short|.*is empty|of an unknown kind)"):
            tensor_files.read(path)


@pytest.mark.parametrize("write", WRITERS, ids=[write.__name__ for write in WRITERS])
def test_damaged_bytes_are_read_or_refused(tmp_path, write):
    path, random = tmp_path / "a", np.random.default_rng(0)
    write(path, arrays())
    whole = np.fromfile(path, np.uint8)
    for _ in range(40):
        damaged = whole.copy()
        damaged[random.integers(len(whole), size=2)] = random.integers(256, size=2)
        path.write_bytes(damaged.tobytes())
        try:
            tensor_files.state_dict(tensor_files.read(path), WANTED)
        except ValueError:
            continue


def test_objects_in_an_npz_file(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="a.npz: not an .npz file of plain arrays"):
        tensor_files.read(tmp_path / "a.npz")


def test_unreadable_files(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"a")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", "a")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(ValueError, match="a: cannot be read .*Permission denied"):
        tensor_files.read(tmp_path / "a")


def test_sources_that_are_no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("folder")
    os.mkfifo("pipe")
    os.symlink("nowhere", "link")
    for source, message in {
        "folder": "'folder' is a folder: name the file in it",
        "pipe": "'pipe' is not a file that can be read",
        "link": "no file 'link'",
        "/proc/x": "no file '/proc/x'",
        "/dev/null": "is not a file",
        "none": "no file 'none'; give the path of an .npz",
        "weights/none.ckpt": "no file 'weights/none.ckpt'",
        "folder/none": "no file 'folder/none'",  # and no owner on Hugging Face
        "a/b/c": "no file 'a/b/c'",
        "n" * 300: "'n{60}...' cannot be opened .*File name too long",
        "a\0b": "cannot be opened .*null",
        "https://example.org/a.pth": "'https://example.org/a.pth' is an address; download the file",
        "data:;base64,AAAA": "is an address",
        "~nobody-of-that-name/a.pth": "the home folder '~nobody-of-that-name' is not known",
    }.items():
        with pytest.raises(ValueError, match=message):
            tensor_files.find(source)


def test_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a").touch()
    assert tensor_files.find("~/a") == tmp_path / "a"
