"""Files of weights: finding one, reading it by what is in it, and choosing the tensors that a network needs.

A file is an .npz or a .safetensors file or one of `torch.save`, whatever it is called, and its tensors may lie anywhere
in it, under any prefix: what counts is that their names end in those that the network needs.
"""

import logging
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from cprl_jax.fidelity.torch_file import NotATensor, read_torch_file

KINDS = "an .npz or .safetensors file, or one of torch.save"
# How files of weights are mostly called, the best kind first: a repository on Hugging Face has other files as well.
ENDINGS = (".npz", ".safetensors", ".pth", ".pt", ".pkl", ".ckpt", ".bin", ".th", ".pth.tar")

_WANTED = f"give the path of {KINDS}, or a Hugging Face name (owner/name or owner/name:file)"
_OTHER_KINDS = (
    # (beginning of the file, what it is and what to do)
    (b"version https://git-lfs", "a Git LFS pointer and not the file itself: fetch it with `git lfs pull`"),
    (b"<", "a web page or XML, not the file that it offers: download that one"),
    (b"{", "a text in JSON, not the weights that it may describe"),
    (b"\x89HDF", "an HDF5 file, of Keras perhaps: save its arrays as .npz or .safetensors"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
)
_LOGGER = logging.getLogger(__name__)
_AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)", re.IGNORECASE)
_LARGEST_HEADER = 10**8  # bytes, of a safetensors file


class StateDict(NamedTuple):
    """The tensors of a file that belong together.

    Attributes:
      tensors: by name, without the prefix.
      prefix: what their names begin with in the file, '' or ending in '.'.
      left_over: whole names of the tensors that lie beside them in the file and have another prefix.
    """

    tensors: dict[str, np.ndarray]
    prefix: str
    left_over: list[str]


def find(source: str | os.PathLike) -> Path:
    """The local path of a source: a path, or 'owner/name' or 'owner/name:file' on Hugging Face, which is downloaded.

    Raises:
      ValueError: neither, or it could not be fetched.
    """
    text = os.fspath(source)
    shown = repr(text if len(text) <= 100 else f"{text[:60]}...")
    if re.match(r"[a-z][a-z0-9+.-]+://|data:", text, re.IGNORECASE):
        raise ValueError(f"{shown} is an address; download the file and {_WANTED}")
    path = Path(os.path.expanduser(text))
    if str(path).startswith("~"):
        raise ValueError(f"{shown}: the home folder {path.parts[0]!r} is not known; write the path out")
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    except (OSError, ValueError) as error:
        raise ValueError(f"{shown} cannot be opened ({_reason(error)}); {_WANTED}") from error
    if mode is not None and stat.S_ISREG(mode):
        return path
    if mode is not None:
        kind = "a folder: name the file in it" if stat.S_ISDIR(mode) else f"not a file that can be read; {_WANTED}"
        raise ValueError(f"{shown} is {kind}")
    repository, _, file = text.partition(":")
    owner = repository.partition("/")[0]
    is_path = not file and (os.path.isdir(owner) or text.lower().endswith(ENDINGS))
    if is_path or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f"no file {shown}; {_WANTED}")
    return _fetch(repository, file, shown)


def _fetch(repository: str, file: str, shown: str) -> Path:
    import huggingface_hub  # here: slow to import, and rarely needed

    try:
        if file:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        files = huggingface_hub.list_repo_files(repository)
        candidates = next(filter(None, ([f for f in files if f.lower().endswith(end)] for end in ENDINGS)), [])
        if len(candidates) == 1:
            return Path(huggingface_hub.hf_hub_download(repository, candidates[0]))
    except Exception as error:  # of the connection, the service, the name, the cache: the library has no common class
        raise ValueError(
            f"{shown} is no file here, and could not be had from Hugging Face ({_reason(error)}); check the name and "
            "the connection, or give the path of a local file"
        ) from error
    if candidates:
        raise ValueError(f"name a file, {repository}:FILE; it has {', '.join(candidates)}")
    raise ValueError(f"{repository} on Hugging Face has no weights ({', '.join(ENDINGS)}); {_WANTED}")


def read(path: Path) -> Any:
    """What a file holds: arrays by name, in nested dictionaries and lists as they are in it.

    Raises:
      ValueError: it cannot be read, is of another kind, damaged, or wants code to be run.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(512)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({_reason(error)})") from error
    if not head:
        raise ValueError(f"{path}: the file is empty; get it again")
    if head.startswith(b"\x80"):
        return read_torch_file(path)
    if head.startswith(b"PK"):
        return _read_zip(path)
    header = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and header <= _LARGEST_HEADER:
        return _read_safetensors(path, cut_short=8 + header > size)
    known = next((known for beginning, known in _OTHER_KINDS if head.lstrip().startswith(beginning)), None)
    if head[257:262] == b"ustar":
        known = "a tar archive: unpack it first"
    raise ValueError(f"{path}: {known}" if known else f"{path}: of an unknown kind; {_WANTED}")


def state_dict(content: Any, wanted: Collection[str]) -> StateDict:
    """The tensors in `content` that have the wanted names behind one prefix, and what lies beside them.

    The prefix is the one behind which most of them are: 'module.', or 'state_dict.model.' for a dictionary in a
    dictionary. Where several are as good, as 'state_dict' and 'state_dict_ema' are, the averaged weights are taken
    (ema, swa), else those that come first, and the log says so. Counters, as batch normalisation has, are left out.

    Args:
      content: nested mappings and lists of arrays.
      wanted: names that the network knows.

    Returns:
      the chosen ones; where no name is a wanted one, all of the largest dictionary.

    Raises:
      ValueError: no tensors, an object that may have them, or something else than a plain tensor under a wanted name.
    """
    leaves = {keys: value for keys, value in _leaves(content, (), set()) if not _is_counter(value)}
    places: dict[str, list[tuple[str, ...]]] = {}
    for keys in leaves:
        name = ".".join(keys)
        for start in (0, *(dot.end() for dot in re.finditer(r"\.", name))):
            if name[start:] in wanted:
                places.setdefault(name[:start], []).append(keys)
    if not places:
        places = _largest_dictionary(leaves)
    prefix = max(places, key=lambda prefix: (len(places[prefix]), bool(_AVERAGED.search(prefix))))
    chosen = places[prefix]
    copies = [p for p in places if len(places[p]) == len(chosen) and not set(places[p]) & set(chosen)]
    if copies:
        _LOGGER.warning(
            "the file has the weights several times; taken are those under %r and not those under %s (averages come "
            "first, then the first in the file); to take others, save them alone",
            prefix.rstrip("."),
            ", ".join(repr(p.rstrip(".")) for p in copies),
        )
    tensors, left_over = {}, []
    dictionaries = {keys[:-1] for keys in chosen}
    for keys, value in leaves.items():
        if keys[:-1] not in dictionaries or (isinstance(value, NotATensor) and keys not in chosen):
            continue
        name = ".".join(keys)
        if isinstance(value, NotATensor):
            raise ValueError(
                f"{name} is no plain tensor but made by {value.name} (quantised and sparse tensors are not read, nor "
                "NumPy arrays in a pickle); save the weights as float32 tensors"
            )
        under = max((p for p in (prefix, *copies) if name.startswith(p)), key=len, default=None)
        if under == prefix:
            tensors[name[len(prefix) :]] = value
        elif under is None:
            left_over.append(name)
    if aside := {".".join(keys[:-1]): None for keys in leaves if keys[:-1] not in dictionaries}:
        _LOGGER.info("of the file, left aside: %s", ", ".join(map(repr, list(aside)[:5])))
    return StateDict(tensors, prefix, left_over)


def as_float32(value: np.ndarray, name: str) -> np.ndarray:
    """A tensor of a file as float32.

    Raises:
      ValueError: integers (quantised weights), complex numbers, text, or values that are not finite.
    """
    if value.dtype == np.dtype("V2"):  # what NumPy makes of bfloat16 in an .npz file
        value = value.view(jnp.bfloat16)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(f"{name} has type {value.dtype}; weights are real floating-point numbers, not quantised")
    with np.errstate(over="ignore"):
        value = value.astype(np.float32)
    if not np.isfinite(value).all():
        raise ValueError(f"{name} holds values that are not finite")
    return value


def _leaves(node: Any, keys: tuple[str, ...], seen: set[int]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Arrays, and what stands for other things, with the keys that lead to them."""
    if isinstance(node, NotATensor) or (hasattr(node, "dtype") and hasattr(node, "shape")):
        yield keys, node
    elif isinstance(node, Mapping | list | tuple) and id(node) not in seen:
        seen.add(id(node))
        for key, child in node.items() if isinstance(node, Mapping) else enumerate(node):
            yield from _leaves(child, (*keys, str(key)), seen)


def _is_counter(value: Any) -> bool:
    return not isinstance(value, NotATensor) and value.size == 1 and value.dtype.kind in "iub"


def _largest_dictionary(leaves: Mapping[tuple[str, ...], Any]) -> dict[str, list[tuple[str, ...]]]:
    """The prefix and the keys of the tensors in the dictionary that has most of them."""
    dictionaries: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for keys, value in leaves.items():
        if not isinstance(value, NotATensor):
            dictionaries.setdefault(keys[:-1], []).append(keys)
    objects = {value.name: None for value in leaves.values() if isinstance(value, NotATensor) and value.name}
    if objects and not any(leaves[keys].ndim for names in dictionaries.values() for keys in names):
        raise ValueError(
            f"no state dict in it, but an object of {', '.join(list(objects)[:3])}, whose code is not run; save the "
            "state_dict() of the network, and nothing else, with torch"
        )
    if not dictionaries:
        raise ValueError("no tensors in it")
    largest = max(dictionaries, key=lambda place: len(dictionaries[place]))
    return {"".join(f"{key}." for key in largest): dictionaries[largest]}


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # BadZipFile, and others for some damages
        raise ValueError(f"{path}: damaged or cut short ({_reason(error)}); get the file again") from error
    if any(name.endswith("data.pkl") for name in names):
        return read_torch_file(path)
    if names and not any(name.endswith(".npy") for name in names):
        raise ValueError(f"{path}: an archive of other files ({names[0]}); unpack it, and {_WANTED}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # zipfile, zlib and NumPy each have their own
        raise ValueError(f"{path}: not an .npz file of plain arrays, or damaged ({_reason(error)})") from error


def _read_safetensors(path: Path, *, cut_short: bool) -> Mapping[str, np.ndarray]:
    import safetensors.numpy

    if cut_short:
        raise ValueError(f"{path}: a safetensors file that is cut short; get it again")
    try:
        return safetensors.numpy.load_file(path)
    except Exception as error:  # its own, and KeyError for a type that it does not know
        raise ValueError(f"{path}: not a safetensors file of plain arrays, or cut short ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """The kind of an error and the first line of its message."""
    message = getattr(error, "strerror", None) or str(error).strip()
    return ": ".join([type(error).__name__, *message.splitlines()[:1]])
