"""The published numbers: as many as the tables have, in their ranges, and some of them as read from the pages."""

import collections

import pytest

from cprl_jax.config.fields import PUBLISHED_DATASETS
from cprl_jax.experiments.cprl import published


def test_every_table_is_whole():
    rows = published.read()
    tables = collections.Counter(row["table"] for row in rows)
    # Models x attacks x data sets; models x attacks x comparisons; rates x attacks; methods x attacks.
    assert tables == {3: 8 * 3 * 4, 4: 3 * 4 * 2, 5: 6 * 3, 6: 3 * 3}
    keys = ("table", "dataset", "method", "p", "attack", "against")
    assert len({tuple(row[key] for key in keys) for row in rows}) == len(rows)
    assert {row["dataset"] for row in rows} == {*PUBLISHED_DATASETS, ""}
    for row in rows:
        assert -1 <= row["srcc"] <= 1 and -1 <= row["plcc"] <= 1 and 0 < row["rmse"] < 50, row


@pytest.mark.parametrize(
    ("where", "numbers"),
    [
        ({"table": 3, "dataset": "vcl", "method": "DBCNN", "attack": "none"}, (0.897, 0.870, 16.643)),
        ({"table": 3, "dataset": "koniq", "method": "SAT", "attack": "fgsm"}, (-0.318, -0.328, 24.104)),
        ({"table": 3, "dataset": "live", "method": "LWTA", "attack": "pgd"}, (0.589, 0.117, 42.190)),
        ({"table": 3, "dataset": "livec", "method": "NT", "attack": "fgsm"}, (0.625, 0.644, 16.488)),
        ({"table": 3, "dataset": "livec", "method": "CPRL", "attack": "pgd"}, (0.685, 0.681, 16.450)),
        ({"table": 4, "method": "NT", "attack": "universal", "against": "prediction"}, (0.907, 0.914, 9.859)),
        ({"table": 4, "method": "HyperNet", "attack": "perceptual", "against": "mos"}, (-0.023, 0.023, 38.100)),
        ({"table": 5, "p": "0.8", "attack": "fgsm"}, (-0.063, -0.019, 24.802)),
        ({"table": 6, "method": "intervention", "attack": "pgd"}, (0.573, 0.597, 17.726)),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_values_as_printed(where, numbers):
    row = published.find(published.read(), **where)
    assert (row["srcc"], row["plcc"], row["rmse"]) == numbers


def test_what_the_notes_say_of_equal_numbers_is_so():
    rows = published.read()
    for attack in ("none", "fgsm", "pgd"):
        vcl, livec = (
            published.find(rows, table=3, method="CPRL", dataset=name, attack=attack) for name in ("vcl", "livec")
        )
        rate = published.find(rows, table=5, p="0.02", attack=attack)
        ablation = published.find(rows, table=6, method="intervention+SortMask", attack=attack)
        for metric in ("srcc", "plcc", "rmse"):
            assert vcl[metric] == rate[metric] and livec[metric] == ablation[metric]
        assert "Table 5" in vcl["note"] and "Table 3" in rate["note"] and "Table 6" in livec["note"]
    live = {"table": 3, "dataset": "live", "method": "CPRL"}
    clean, fgsm = (published.find(rows, **live, attack=name) for name in ("none", "fgsm"))
    assert fgsm["rmse"] - clean["rmse"] == pytest.approx(5.647) and "6.647" in fgsm["note"]
    for method in ("NT", "CPRL"):
        table4 = published.find(rows, table=4, method=method, attack="fgsm", against="mos")
        table3 = [row["srcc"] for row in rows if (row["table"], row["method"], row["attack"]) == (3, method, "fgsm")]
        assert table4["srcc"] not in table3 and "matches no column of Table 3" in table4["note"]


def test_the_data_set_beside_ours():
    assert published.dataset_of(3, "livec") == "livec" and published.dataset_of(3, "own") == ""
    assert published.dataset_of(5, "livec") == "vcl" and published.dataset_of(6, "own") == "livec"
    assert published.dataset_of(4, "livec") == ""
