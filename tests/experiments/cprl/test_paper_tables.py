"""Which runs the paper's tables need: rows on their networks, controls, mask rates, and what cannot be run."""

import pytest

from cprl_jax.config import checks
from cprl_jax.experiments.cprl import paper_tables, presets, published
from cprl_jax.experiments.cprl.paper_tables import Row
from cprl_jax.methods import METHODS
from cprl_jax.models import NETWORKS
from cprl_jax.runtime.errors import UserError


def planned(argument, **changes):
    config = presets.paper_table(argument)
    config.update_from_flattened_dict(changes)
    checks.validate(config)
    return paper_tables.plan(config)


@pytest.fixture
def three_rows(monkeypatch):
    """A Table 3 of methods and networks that there are, and two that there are not."""
    rows = (
        Row("resnet", "plain", "ResNet", "resnet"),
        Row("plain", "plain"),
        Row("at", "at", "SAT", "resnet"),
        Row("cprl", "cprl", "CPRL"),
        Row("odd", "atlas", "LWTA"),
        Row("odder", "plain", "NIMA", "xyz"),
    )
    monkeypatch.setitem(paper_tables.TABLES, 3, rows)


def test_every_printed_row_has_a_row_of_ours():
    printed = published.read()
    for table, rows in paper_tables.TABLES.items():
        theirs = {(row["method"], row["p"]) for row in printed if row["table"] == table}
        assert {(row.printed, row.rate) for row in rows if row.printed} == theirs
        assert len({row.name for row in rows}) == len(rows)


@pytest.mark.parametrize("table", [3, 4, 6])
def test_a_table_with_trained_defences_has_the_control_for_their_length(table):
    methods = [(row.network, row.method) for row in paper_tables.TABLES[table]]
    defended = {network for network, method in methods if method not in ("plain", "plain_longer")}
    assert all((network, name) in methods for network in defended for name in ("plain", "plain_longer"))
    if table == 6:
        assert ("", "sort_mask") in methods, "a control for each part"


def test_rows_of_one_network_are_one_run(three_rows):
    runs, problems = planned("table=3", **{"paper_table.weights.resnet": "r50.pth", "model.weights": "hyper.pth"})
    assert [(run.folder, [row.name for row in run.rows]) for run in runs] == [
        ("resnet", ["resnet", "at"]),
        ("hyperiqa", ["plain", "cprl"]),
    ]
    resnet, hyperiqa = (run.config for run in runs)
    assert (resnet.methods, resnet.model.name, resnet.model.weights) == (("plain", "at"), "resnet", "r50.pth")
    assert (resnet.model.score_mean, resnet.model.score_std) == (50.0, 20.0)
    assert (hyperiqa.model.name, hyperiqa.model.weights, hyperiqa.model.score_mean) == ("hyperiqa", "hyper.pth", 0.0)
    assert resnet.train == hyperiqa.train, "one schedule for all rows"
    assert {row.name: reason for row, reason in problems.items()} == {
        "odd": f"there is no method 'atlas'; there are {', '.join(METHODS)}",
        "odder": f"there is no network 'xyz'; there are {', '.join(NETWORKS)}",
    }


def test_on_another_network_the_defences_are_on_that_one(three_rows):
    (run,), problems = planned("table=3,network=squeezenet")
    assert (run.folder, [row.name for row in run.rows]) == ("squeezenet", ["plain", "at", "cprl"])
    assert [row.name for row in problems] == ["odd"]
    runs, _ = planned("table=3,network=squeezenet,rows=resnet+cprl")
    assert [run.folder for run in runs] == ["resnet", "squeezenet"], "a plain network that is asked for by name"


def test_a_method_brings_the_one_that_it_starts_from():
    (run,), _ = planned("table=6,network=squeezenet,rows=cprl_loss")
    assert run.config.methods == ("plain", "cprl_loss") and [row.name for row in run.rows] == ["cprl_loss"]
    (run,), _ = planned("table=6,rows=cprl_loss")
    assert run.config.methods == ("cprl_loss",), "the printed schedule starts from the weights"


def test_each_mask_rate_is_a_run():
    runs, problems = planned("table=5")
    assert [run.config.model.sort_mask.rate for run in runs] == [0.02, 0.1, 0.2, 0.4, 0.6, 0.8] and not problems
    assert len({run.folder for run in runs}) == 6
    assert paper_tables.shared_starts(runs[0].config) == []
    (run, *_), _ = planned("table=5,network=squeezenet")
    assert paper_tables.shared_starts(run.config) == ["plain"]


def test_a_wrong_configuration_of_some_rows_costs_no_others(three_rows):
    runs, problems = planned("table=3,rows=resnet+cprl", **{"model.backbone": "resnet34", "train.crop_size": 224})
    assert [run.folder for run in runs] == ["resnet", "hyperiqa"] and not problems
    runs, problems = planned("table=3,rows=resnet+cprl", **{"model.sort_mask.stages": (2,), "at.start_from": "plian"})
    assert len(runs) == 2 and not problems, "at is not among them"
    runs, problems = planned("table=3,rows=at+cprl", **{"at.start_from": "plian"})
    assert [run.folder for run in runs] == ["hyperiqa"]
    assert ["config.at.start_from is 'plian'" in reason for reason in problems.values()] == [True]


def test_a_row_that_the_table_does_not_have_is_named():
    with pytest.raises(UserError, match="rows names 'crpl' .did you mean 'cprl'.*Table 4 has plain, plain_longer, nt"):
        presets.paper_table("table=4,rows=crpl")
    with pytest.raises(UserError, match="table is one of 3, 4, 5, 6"):
        presets.paper_table("table=7")
