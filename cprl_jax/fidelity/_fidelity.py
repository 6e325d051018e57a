"""What a measure declares of itself."""

import dataclasses
from collections.abc import Callable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """A full-reference measure as `distance` finds it: an entry, by its name, of FIDELITIES in the file of the measure.

    Attributes:
      measure: `(images, references, **options) -> [batch]`; the names of its keyword arguments are its options.
      kind: 'distance': 0 for equal images. 'similarity': 1 for equal images; 1 - it is the distance.
        'learned': `(parameters) -> distance` instead.
      distance: takes the place of `measure` where neither it nor 1 - it is a distance.
    """

    measure: Callable
    kind: Literal["distance", "similarity", "learned"] = "distance"
    distance: Callable | None = None
