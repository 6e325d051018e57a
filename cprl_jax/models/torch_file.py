"""Reading a file of `torch.save` without torch, in both of its formats, by an unpickler that knows tensors alone.

Nothing of the file is executed: of all that a pickle may name, storages, the rebuilding of a tensor from one and the
ordered dictionary are understood, and any other name is refused.
"""

import collections
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

from cprl_jax.runtime.errors import UserError

_DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": jnp.bfloat16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
}
# The old format is a sequence of pickles that begins with these two numbers.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    """A tensor whose values are elsewhere in the file."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Refused(Exception):
    """The file holds something else than tensors."""


def read_torch_file(path: Path) -> Any:
    """What the file holds: dictionaries, lists and numbers as they are, tensors as NumPy arrays.

    Raises:
      UserError: no file of `torch.save`, one that ends too early, or one with anything but tensors in it, by name.
    """
    try:
        with open(path, "rb") as file:
            return _read_zip(file) if zipfile.is_zipfile(file) else _read_old(file)
    except _Refused as error:
        raise UserError(
            f"{path}: {error}; if it holds a whole module, save the module's state_dict() with torch instead"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        first = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise UserError(f"{path}: damaged, cut short, or no file of torch.save ({first})") from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        pickles = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError("an archive without data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder").decode() if f"{folder}byteorder" in archive.namelist() else "little"

        def read(storage: _Storage) -> np.ndarray:
            name = f"{folder}data/{storage.key}"
            return _array(storage, archive.read(name), big_endian=order == "big")

        with archive.open(pickles[0]) as pickled:
            return _with_values(_Unpickler(pickled).load(), read)


def _read_old(file: BinaryIO) -> Any:
    file.seek(0)
    magic, protocol, system = (_Unpickler(file).load() for _ in range(3))
    if magic != _MAGIC or protocol != _PROTOCOL:
        raise ValueError("other numbers at its beginning")
    unpickler = _Unpickler(file)
    content = unpickler.load()
    values = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        (count,) = struct.unpack("<q" if system["little_endian"] else ">q", file.read(8))
        if count != storage.count:
            raise ValueError(f"a storage of {count} values that should have {storage.count}")
        data = file.read(count * storage.dtype.itemsize)
        values[key] = _array(storage, data, big_endian=not system["little_endian"])
    return _with_values(content, lambda storage: values[storage.key])


def _array(storage: _Storage, data: bytes, *, big_endian: bool) -> np.ndarray:
    if len(data) != storage.count * storage.dtype.itemsize:
        raise ValueError(f"{len(data)} bytes where {storage.count} values of {storage.dtype} should be")
    if not data:
        return np.zeros(0, storage.dtype)
    return np.frombuffer(data, storage.dtype.newbyteorder(">" if big_endian else "<"))


class _Unpickler(pickle.Unpickler):
    """Understands the names of tensors alone; `storages` are those it has met, by their keys."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _rebuild_tensor(*arguments)  # its own: a pickle may set attributes of it
        if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name.removesuffix("Storage")]))
        raise _Refused(f"it names {module}.{name}, which is no tensor")

    def persistent_load(self, identity: Any) -> _Storage:
        kind, storage_type, key, _, count, *view = identity
        if kind != "storage" or not isinstance(storage_type, _StorageType) or (view and view[0] is not None):
            raise _Refused("it refers to something that is no storage of a tensor")
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"a storage of {count} values")
        return self.storages.setdefault(str(key), _Storage(str(key), storage_type.dtype, count))


def _rebuild_tensor(storage: _Storage, offset: int, shape, strides, *_: Any) -> _Tensor:
    """Its further arguments, whether it needs a gradient and hooks of that, are of no interest."""
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    shape, strides = tuple(map(int, shape)), tuple(map(int, strides))
    last = offset + sum(stride * (length - 1) for length, stride in zip(shape, strides, strict=True))
    size = int(np.prod(shape, dtype=object))
    if min((offset, *shape, *strides)) < 0 or size > storage.count or (size and last >= storage.count):
        raise ValueError(f"a tensor of shape {shape} that is larger than its storage")
    return _Tensor(storage, offset, shape, strides)


def _with_values(content: Any, read: Callable[[_Storage], np.ndarray]) -> Any:
    """The same structure with arrays in the place of tensors; each storage is read once."""
    arrays: dict[str, np.ndarray] = {}

    def replaced(node: Any) -> Any:
        if isinstance(node, _Tensor):
            key = node.storage.key
            if key not in arrays:
                arrays[key] = read(node.storage)
            values = arrays[key][node.offset :]
            strides = tuple(stride * values.itemsize for stride in node.strides)
            return np.lib.stride_tricks.as_strided(values, node.shape, strides, writeable=False)
        if isinstance(node, dict):
            return {key: replaced(value) for key, value in node.items()}
        if isinstance(node, list | tuple) and not isinstance(node, _Storage | _StorageType):
            return [replaced(value) for value in node]
        return node

    return replaced(content)
