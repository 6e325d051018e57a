"""The rows of CPRL's Tables 3 to 6, and the runs that they need.

A row is a method on a network. The rows of one network are one run, in a folder of the table's: the methods are trained
and attacked side by side as in any run of CPRL, and tables that share a --workdir share what is trained there. Table 5
has a run for each mask rate.

Besides the printed rows most tables have controls: the plain network, that network trained for as many image gradients
as CPRL (`plain_longer`), and in Table 6 the plain network with SortMask.
"""

import dataclasses
from collections.abc import Sequence

import ml_collections

from cprl_jax.config import checks
from cprl_jax.config.field import listed, near
from cprl_jax.config.fields import ALL
from cprl_jax.methods import METHODS
from cprl_jax.models import NETWORKS
from cprl_jax.runtime.errors import UserError

NETWORK = "hyperiqa"  # CPRL's (Sec. 5.1); Table 4 names it beside NT
_PLAIN = ("plain", "plain_longer")


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
      name: in config.paper_table.rows.
      method: of methods.METHODS.
      printed: what the paper calls it, as in published.csv; '' for a control.
      network: of models.NETWORKS; '' is config.model.name.
      rate: of SortMask, as printed; '' is config.model.sort_mask.rate.
    """

    name: str
    method: str
    printed: str = ""
    network: str = ""
    rate: str = ""


# The paper does not say which network LWTA, Denoise and SAT are on: in its first author's earlier files, the first two
# are changes of a ResNet.
TABLES: dict[int, Sequence[Row]] = {
    3: (
        Row("dbcnn", "plain", "DBCNN", "dbcnn"),
        Row("nima", "plain", "NIMA", "nima"),
        Row("resnet", "plain", "ResNet", "resnet"),
        Row("resnet_longer", "plain_longer", "", "resnet"),
        Row("lwta", "lwta", "LWTA", "resnet"),
        Row("denoise", "denoise", "Denoise", "resnet"),
        Row("sat", "sat", "SAT", "resnet"),
        Row("plain", "plain"),
        Row("plain_longer", "plain_longer"),
        Row("nt", "nt", "NT"),
        Row("cprl", "cprl", "CPRL"),
    ),
    4: (
        Row("plain", "plain", "HyperNet"),
        Row("plain_longer", "plain_longer"),
        Row("nt", "nt", "NT"),
        Row("cprl", "cprl", "CPRL"),
    ),
    5: tuple(Row(f"p{rate}", "cprl", "CPRL", rate=rate) for rate in ("0.02", "0.1", "0.2", "0.4", "0.6", "0.8")),
    6: (
        Row("plain", "plain"),
        Row("plain_longer", "plain_longer"),
        Row("at", "at", "Adv"),
        Row("cprl_loss", "cprl_loss", "intervention"),
        Row("sort_mask", "sort_mask"),
        Row("cprl", "cprl", "intervention+SortMask"),
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """Rows that are trained and attacked in one folder below the table's, and the configuration of that run."""

    folder: str
    rows: Sequence[Row]
    config: ml_collections.ConfigDict


def rows(config: ml_collections.ConfigDict) -> list[Row]:
    """The rows that config.paper_table asks for.

    On another network than the paper's, all defences are on that one, and the paper's other plain networks are left out
    unless config.paper_table.rows names them.

    Raises:
      UserError: a row that the table does not have.
    """
    table, asked = {row.name: row for row in TABLES[config.paper_table.number]}, config.paper_table.rows
    for name in asked:
        if name not in table:
            raise UserError(
                f"config.paper_table.rows names {name!r}{near(name, table)}; Table {config.paper_table.number} has "
                f"{listed(table)}"
            )
    chosen = [row for name, row in table.items() if name in asked or not asked]
    if config.model.name != NETWORK:
        chosen = [row if row.method in _PLAIN else dataclasses.replace(row, network="") for row in chosen]
        chosen = [row for row in chosen if not row.network or row.name in asked]
    return chosen


def network_of(config: ml_collections.ConfigDict, row: Row) -> str:
    """The name of a row's network."""
    return row.network or config.model.name


def plan(config: ml_collections.ConfigDict) -> tuple[list[Run], dict[Row, str]]:
    """The runs of a table, and why there is none for the other rows.

    Raises:
      UserError: a row that the table does not have.
    """
    together: dict[tuple[str, str], list[Row]] = {}
    problems: dict[Row, str] = {}
    for row in rows(config):
        network = network_of(config, row)
        for name, kind, declared in ((row.method, "method", METHODS), (network, "network", NETWORKS)):
            if name not in declared:
                problems[row] = f"there is no {kind} {name!r}{near(name, declared)}; there are {listed(declared)}"
        if row not in problems:
            together.setdefault((network, row.rate), []).append(row)
    runs = []
    for (network, rate), group in together.items():
        run = Run(f"{network}-p{rate}" if rate else network, group, _config(config, network, rate, group))
        try:
            checks.validate(run.config)
            runs.append(run)
        except UserError as error:
            problems |= dict.fromkeys(group, str(error))
    return runs, problems


def shared_starts(config: ml_collections.ConfigDict) -> list[str]:
    """The methods that others of a run start from and that have no masks, so that they are the same at every rate."""
    starts = {config[method].start_from for method in config.methods}
    return [method for method in config.methods if method in starts and not config[method].sort_mask]


def _config(
    config: ml_collections.ConfigDict, network: str, rate: str, group: Sequence[Row]
) -> ml_collections.ConfigDict:
    """The configuration of the run of some rows."""
    changed = restricted(config, group)
    if rate:
        changed.model.sort_mask.rate = float(rate)
    if network != config.model.name:
        changed.model.update(name=network, backbone="", weights=config.paper_table.weights[network])
        for field in ("score_mean", "score_std", "sort_mask.stages", "sort_mask.min_channels"):
            changed.update_from_flattened_dict({f"model.{field}": ALL[f"model.{field}"].default})
    return changed


def restricted(
    config: ml_collections.ConfigDict, group: Sequence[Row], *, job: str = "train_and_evaluate"
) -> ml_collections.ConfigDict:
    """The configuration of a run with the methods of some rows alone."""
    changed = config.copy_and_resolve_references()
    changed.job = job
    changed.methods = _with_starts(config, [row.method for row in group])
    return changed


def _with_starts(config: ml_collections.ConfigDict, methods: Sequence[str]) -> tuple[str, ...]:
    """The methods, each behind the one that it starts from."""
    ordered: list[str] = []

    def add(method: str) -> None:
        start = config[method].start_from
        if start in METHODS and start != method and start not in ordered:
            add(start)
        if method not in ordered:
            ordered.append(method)

    for method in methods:
        add(method)
    return tuple(ordered)
