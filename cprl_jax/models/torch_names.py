"""Names and layouts of weights that are published for torch."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

_LEAVES = ((r"\.(kernel|scale)$", ".weight"), (r"\.mean$", ".running_mean"), (r"\.var$", ".running_var"))


@dataclasses.dataclass(frozen=True)
class TorchNames:
    """The keys of a network in its authors' torch state dict.

    Attributes:
      rules: (pattern, replacement), applied in order to our dotted name without its collection; kernels, scales and
        running statistics are renamed after them.
      prefix: what the authors' keys begin with and other files leave out, such as a trunk as torchvision publishes it.
      ours_alone: beginnings of our dotted names that no torch file has.
      classifier: beginnings of the keys, without the prefix, of an image classifier, which a score head replaces.
    """

    rules: tuple[tuple[str, str], ...]
    prefix: str = ""
    ours_alone: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()

    def key(self, path: Sequence[str]) -> str | None:
        """The key of the leaf at `path` (without the collection); None if torch has no such thing."""
        name = ".".join(path)
        if self.ours_alone and name.startswith(self.ours_alone):
            return None
        for pattern, replacement in (*self.rules, *_LEAVES):
            name = re.sub(pattern, replacement, name)
        return name

    def is_classifier(self, key: str) -> bool:
        """Whether a key belongs to an image classifier on top of the trunk."""
        return bool(self.classifier) and key.removeprefix(self.prefix).startswith(self.classifier)


def torch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in torch of a leaf of ours: HWIO is OIHW there, and (in, out) is (out, in)."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return tuple(reversed(shape))


def from_torch_layout(array: np.ndarray, key: str = "") -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out); vectors, and what is named 'gamma' ((in, out) there too), as they are."""
    if key.endswith("gamma"):
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.transpose()
