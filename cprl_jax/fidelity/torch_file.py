"""Reading a file of `torch.save` without torch, in both of its formats, by an unpickler that makes tensors alone.

Nothing of the file is executed or imported. Tensors become arrays; an object of any class becomes a `NotATensor`, which
has no code; and whatever the file wants called is refused by name, but for the few functions that are known here.
"""

import collections
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np

_DTYPES = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "BFloat16": jnp.bfloat16,
    "ComplexDouble": np.complex128,
    "ComplexFloat": np.complex64,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "QInt32": np.int32,
    "QInt8": np.int8,
    "QUInt8": np.uint8,
    "Untyped": np.uint8,
}
# Calls that describe a plain value, as checkpoints have them beside the weights.
_VALUES = re.compile(
    r"(builtins|__builtin__)\.(set|frozenset|complex|bytearray)|_codecs\.encode|datetime\.\w+"
    r"|pathlib(\._local)?\.(Pure)?(Posix|Windows)Path|numpy\.dtype|numpy\._?core\.multiarray\.scalar"
    r"|torch\.(Size|device)|torch\.serialization\._get_layout"
)
# Calls that would make other tensors than plain ones.
_OTHER_TENSORS = re.compile(r"torch\._utils\._rebuild_\w+|numpy\._?core\.multiarray\._reconstruct")
# The old format is a sequence of pickles that begins with these two numbers.
_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST_REPEATED = 2**28  # values of a tensor that has more of them than its storage: it repeats some


class _Uncallable(type):
    def __call__(cls, *_: Any, **__: Any) -> Any:
        raise _Refused(f"it wants {cls.name} to be called, which is not done")


class NotATensor(metaclass=_Uncallable):
    """Stands for something that a file describes and that is not made, an object or a quantised tensor.

    Attributes:
      name: of its class, or of the function that would make it, as 'module.name'; '' for a plain value.
    """

    name = ""

    def _ignore(self, *_: Any) -> None:
        pass

    # What a pickle does with an object once it has it.
    __setstate__ = __setitem__ = append = extend = add = _ignore


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
    """The file wants something done that is not done."""


def read_torch_file(path: Path) -> Any:
    """What the file holds: dictionaries and lists as they are, tensors as NumPy arrays, objects as `NotATensor`.

    Raises:
      ValueError: no file of `torch.save`, one that ends too early, or one that wants code to be run, by name.
    """
    try:
        with open(path, "rb") as file:
            return _read_zip(file) if zipfile.is_zipfile(file) else _read_old(file)
    except _Refused as error:
        raise ValueError(
            f"{path}: {error}, since a file of weights is no program; save the state_dict() of the network, and "
            "nothing else, with torch"
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        first = ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])
        raise ValueError(f"{path}: damaged, cut short, or no file of torch.save ({first})") from error


def _read_zip(file: BinaryIO) -> Any:
    with zipfile.ZipFile(file) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("a compressed archive, which torch.save does not write")  # and may be a bomb
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
    if _Unpickler(file).load() != _MAGIC or _Unpickler(file).load() != _PROTOCOL:
        raise ValueError("a pickle that torch.save did not write")
    system = _Unpickler(file).load()
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
    """Knows the names of tensors alone; `storages` are those it has met, by their keys."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            # Functions of their own for each file: a pickle may set attributes of them.
            ("collections", "defaultdict"): lambda *_: {},
            ("torch._utils", "_rebuild_tensor"): lambda *arguments: _rebuild_tensor(*arguments),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *arguments: _rebuild_tensor(*arguments),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("torch._utils", "_rebuild_parameter_with_state"): lambda tensor, *_: tensor,
            ("torch._tensor", "_rebuild_from_type_v2"): lambda function, kind, arguments, state: function(*arguments),
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name.endswith("Storage") and name[:-7] in _DTYPES:
            return _StorageType(np.dtype(_DTYPES[name[:-7]]))
        full_name = f"{module}.{name}"
        if _VALUES.fullmatch(full_name):
            return lambda *_: object.__new__(NotATensor)
        stand_in = _Uncallable("NotATensor", (NotATensor,), {"name": full_name})
        if _OTHER_TENSORS.fullmatch(full_name):
            return lambda *_: object.__new__(stand_in)
        return stand_in

    def persistent_load(self, identity: Any) -> Any:
        kind, storage_type, key, *rest = identity
        if kind == "module":  # the old format's way to name the class of a module, with its source
            return storage_type
        _, count, *view = rest
        if kind != "storage" or not isinstance(storage_type, _StorageType) or (view and view[0] is not None):
            raise ValueError("a reference to something that is no storage of a tensor")
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
    if min((offset, *shape, *strides)) < 0 or (size and last >= storage.count):
        raise ValueError(f"a tensor of shape {shape} that is larger than its storage")
    if size > max(storage.count, _LARGEST_REPEATED):
        raise ValueError(f"a tensor of shape {shape} that repeats {storage.count} values")
    return _Tensor(storage, offset, shape, strides)


def _with_values(content: Any, read: Callable[[_Storage], np.ndarray]) -> Any:
    """The same structure with arrays in the place of tensors; each storage is read once."""
    arrays: dict[str, np.ndarray] = {}
    done: dict[int, Any] = {}  # a pickle may name a container any number of times, and inside itself

    def replaced(node: Any) -> Any:
        if isinstance(node, _Tensor):
            key = node.storage.key
            if key not in arrays:
                arrays[key] = read(node.storage)
            values = arrays[key][node.offset :]
            strides = tuple(stride * values.itemsize for stride in node.strides)
            return np.lib.stride_tricks.as_strided(values, node.shape, strides, writeable=False)
        if isinstance(node, _Storage | _StorageType) or not isinstance(node, dict | list | tuple):
            return node
        if id(node) not in done:
            if isinstance(node, dict):
                done[id(node)] = copy = {}
                copy.update((key, replaced(value)) for key, value in dict.items(node))  # .items may be the pickle's
            else:
                done[id(node)] = copy = []
                copy.extend(map(replaced, node))
        return done[id(node)]

    return replaced(content)
