"""Names and layouts of published torch weights for the parameters of our networks."""

import re
from collections.abc import Sequence

import numpy as np

_Rules = Sequence[tuple[str, str]]  # (pattern, replacement), applied in order to our dotted name

_RESNET: _Rules = (
    (r"\blayer(\d)_(\d+)\b", r"layer\1.\2"),
    (r"\bdownsample_conv\b", "downsample.0"),
    (r"\bdownsample_bn\b", "downsample.1"),
)
_LEAVES: _Rules = ((r"\.(kernel|scale)$", ".weight"), (r"\.mean$", ".running_mean"), (r"\.var$", ".running_var"))
# torchvision numbers the layers of SqueezeNet as they follow each other, ReLUs and poolings included.
_FIRE_INDEX = {2: 3, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 11, 9: 12}
# And so Ma19's: a convolution, a GDN and a pooling for each stage.
_MA19_INDEX = {
    "backbone.conv1": 0,
    "backbone.gdn1": 1,
    "backbone.conv2": 3,
    "backbone.gdn2": 4,
    "backbone.conv3": 6,
    "backbone.gdn3": 7,
    "backbone.conv4": 9,
    "backbone.gdn4": 10,
    "head_hidden": 12,
    "head": 14,
}

_RULES: dict[str, _Rules] = {
    "resnet": ((r"^backbone\.", ""), (r"^head\.", "fc."), *_RESNET, *_LEAVES),
    "hyperiqa": (
        (r"^backbone\.(resnet\.)?", "res."),
        (r"\b(lda\d_pool)\b", r"\1.0"),
        (r"^conv1_(\d)\b", r"conv1.\1"),
        *_RESNET,
        *_LEAVES,
    ),
    "squeezenet": (
        (r"^backbone\.conv1\b", "features.0"),
        *((rf"^backbone\.fire{ours}\b", f"features.{theirs}") for ours, theirs in _FIRE_INDEX.items()),
        (r"\.squeeze1x1\b", ".squeeze"),
        *_LEAVES,
    ),
    "metaiqa": (
        (r"^backbone\.(resnet\.)?", "resnet_layer."),
        (r"^(fc|bn|relu)(\d)\.", r"net.\1\2."),
        (r"\.slope$", ".weight"),
        *_RESNET,
        *_LEAVES,
    ),
    "ma19": (*((rf"^{re.escape(ours)}\.", f"cnn.{theirs}.") for ours, theirs in _MA19_INDEX.items()), *_LEAVES),
}

# Parts of ours that no torch file has.
_OURS_ALONE = {"squeezenet": ("backbone.input.", "head.", "head_standardization.")}

# Classifiers of published files, which a score head replaces.
_CLASSIFIERS = {"resnet": ("fc.",), "hyperiqa": ("fc.",), "squeezenet": ("classifier.",), "ma19": (), "metaiqa": ()}


def has_torch_names(network: str) -> bool:
    """Whether torch weights are known for a network of that name."""
    return network in _RULES


def torch_name(network: str, path: Sequence[str]) -> str | None:
    """The key in a torch state dict of the leaf at `path` (without the collection); None if torch has no such thing.

    The keys are those of the authors' files: HyperIQA's trunk begins with 'res.', all of Ma19 with 'cnn.'.
    """
    name = ".".join(path)
    if name.startswith(_OURS_ALONE.get(network, ())):
        return None
    for pattern, replacement in _RULES[network]:
        name = re.sub(pattern, replacement, name)
    return name


def is_classifier(network: str, name: str) -> bool:
    """Whether a torch key belongs to an image classifier on top of the trunk."""
    return name.startswith(_CLASSIFIERS[network])


def torch_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape in torch of a leaf of ours: HWIO is OIHW there, and (in, out) is (out, in)."""
    if len(shape) == 4:
        return (shape[3], shape[2], shape[0], shape[1])
    return tuple(reversed(shape))


def from_torch_layout(array: np.ndarray, name: str = "") -> np.ndarray:
    """OIHW to HWIO, (out, in) to (in, out); vectors, and what is named 'gamma' ((in, out) there too), as they are."""
    if name.endswith("gamma"):
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    return array.transpose()
