"""Lists the networks that config.model.name can name: `python -m cprl_jax.models --list`.

One line for each variant: parameters (before the fit, of a network that is fitted); height and width in pixels of the
RGB images that it takes; the stages of its trunk, as config.model.sort_mask.stages counts them; who publishes weights
that config.model.weights loads, and under which licence.
"""

from cprl_jax.runtime import program

if __name__ == "__main__":
    program.own_terminal("stopped")

import math
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from cprl_jax.models import NETWORKS
from cprl_jax.models.network import Network
from cprl_jax.report.table import Column, Table
from cprl_jax.report.values import Row
from cprl_jax.runtime.parser import Parser

_SIZE = 224  # pixels a side that all networks take


def rows() -> list[Row]:
    """The columns of the table for every variant of every network."""
    return [_row(network, variant) for network in NETWORKS.values() for variant in network.variants or ("",)]


def _row(network: Network, variant: str) -> Row:
    settings = {name: field.default for name, field in network.settings.items()}
    module = network.module(**settings, **({"backbone": variant} if variant else {}))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, _SIZE, _SIZE, 3))))
    smallest, largest = module.smallest_image, module.largest_image
    return {
        "network": network.described(variant),
        "parameters": sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])),
        "images": f"{smallest} to {largest}" if largest else f"from {smallest}",
        "stages": ", ".join(map(str, network.stages)) or "-",
        "weights": "; ".join(weights.source for weights in network.weights)
        or ("none: they are fitted to images" if network.fit else "none: it starts from random ones"),
        "licences": "; ".join(weights.licence for weights in network.weights) or "-",
    }


def table() -> Table:
    """All networks; `rows` as a table."""
    columns = [
        Column("parameters", "parameters", text=lambda row: f"{row['parameters']:,}"),
        *(Column(key, key, text=lambda row, key=key: row[key]) for key in ("images", "stages", "weights", "licences")),
    ]
    return Table(rows(), columns, line=("network",), heading="network")


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and prints the table; returns the exit code."""
    return program.run(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> None:
    parser = Parser(prog="python -m cprl_jax.models", description=__doc__)
    parser.add_argument("--list", action="store_true", required=True, help="print the networks and their weights")
    parser.parse_args(argv)
    program.show(table().text())


if __name__ == "__main__":
    sys.exit(main())
