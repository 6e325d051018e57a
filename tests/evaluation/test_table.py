"""What the tables say: rows of hand cases, and which conditions are computed again when an input changes."""

import math

import numpy as np
import pytest
import scipy.stats

from cprl_jax.config import defaults as config_lib
from cprl_jax.evaluation import statistics, table
from cprl_jax.evaluation.scoring import Scorer

ATTACKS = ("fgsm", "pgd", "target_free", "universal", "perceptual")


@pytest.fixture
def config():
    config = config_lib.default()
    evaluation = config.evaluation
    evaluation.attacks, evaluation.radii, evaluation.batch_size = ATTACKS, (1.0, 3.0), 9
    evaluation.pgd_steps, evaluation.resamples = 2, 20
    evaluation.universal.images, evaluation.universal.epochs = 4, 1
    evaluation.universal.sources = ("self", "other")
    evaluation.perceptual.steps, evaluation.perceptual.fidelities = 2, ("ssim",)
    return config


class Setting:
    """The arguments of `evaluate`, to be changed one by one; `computed` lists what a call computed anew."""

    def __init__(self, config, network, crops, mos, folder, monkeypatch):
        self.config, self.crops, self.mos, self.folder = config, crops.copy(), mos.copy(), folder
        self.networks = {"plain": network(0), "cprl": network(1)}
        self.training = np.random.default_rng(1).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
        self.computed = []
        for name in ("scores", "attack"):
            monkeypatch.setattr(Scorer, name, self._recorded(getattr(Scorer, name)))

    def _recorded(self, call):
        def recorded(scorer, variables, crops, *mos_and_condition, **options):
            self.computed.append(table.CLEAN)
            for condition in mos_and_condition[1:]:
                self.computed[-1] = condition.label, condition.radius
            return call(scorer, variables, crops, *mos_and_condition, **options)

        return recorded

    def evaluate(self, method="cprl"):
        self.computed.clear()
        options = {"folder": self.folder / method, "training_crops": lambda count: self.training[:count]}
        return table.evaluate(self.config, method, self.networks, self.crops, self.mos, **options)


@pytest.fixture
def setting(config, network, crops, mos, tmp_path, monkeypatch):
    return Setting(config, network, crops[:, :1], mos, tmp_path, monkeypatch)


BY_LABEL = {(attack, radius) for attack in ("fgsm", "pgd") for radius in (1.0, 3.0)}
OTHER = {("universal:other", 1.0), ("universal:other", 3.0)}
SELF = {("universal", 1.0), ("universal", 3.0)}
FREE = {("target_free", 1.0), ("target_free", 3.0), ("perceptual:ssim", 0.0)}
EVERY_ATTACK = BY_LABEL | OTHER | SELF | FREE
EVERYTHING = EVERY_ATTACK | {("none", 0.0)}


@pytest.mark.slow
def test_what_depends_on_a_changed_input_is_computed_again_and_the_rest_is_not(setting, network):
    evaluation = setting.config.evaluation

    def pixel():
        setting.crops[3, 0, 5, 5, 1] ^= 1

    def label():
        setting.mos[2] = 44

    def weights():
        setting.networks["cprl"] = network(2)

    def weights_of_the_other():
        setting.networks["plain"] = network(3)

    def training_pixel():
        setting.training[0, 0, 0, 0] ^= 1

    changes = {
        "nothing": (lambda: None, set()),
        "pixel": (pixel, EVERYTHING),
        "label": (label, BY_LABEL),
        "weights": (weights, EVERYTHING),
        "weights of the other": (weights_of_the_other, OTHER),
        "training pixel": (training_pixel, OTHER | SELF),
        "steps of PGD": (lambda: evaluation.update({"pgd_steps": 3}), {("pgd", 1.0), ("pgd", 3.0)}),
        "a setting": (lambda: evaluation.target_free.update({"steps": 2}), FREE - {("perceptual:ssim", 0.0)}),
        "mid": (lambda: evaluation.update({"mid": 40.0}), EVERY_ATTACK),
        "seed": (lambda: setting.config.update({"seed": 5}), EVERY_ATTACK),
        "a radius more": (
            lambda: evaluation.update({"radii": (1.0, 2.0, 3.0)}),
            {(attack, 2.0) for attack in ("fgsm", "pgd", "target_free", "universal", "universal:other")},
        ),
        "an attack less": (lambda: evaluation.update({"attacks": ("fgsm", "pgd")}), set()),
        "batch size": (lambda: evaluation.update({"batch_size": 5}), set()),
    }
    results = setting.evaluate()
    assert set(setting.computed) == set(results) == EVERYTHING
    for name, (change, expected) in changes.items():
        change()
        found = setting.evaluate()
        assert set(setting.computed) == expected, name
        if not expected and name == "nothing":
            for key, arrays in results.items():
                for field, values in arrays.items():
                    np.testing.assert_array_equal(found[key][field], values)
    assert list(found)[0] == table.CLEAN and set(found) == {("none", 0.0)} | {
        (attack, radius) for attack in ("fgsm", "pgd") for radius in (1.0, 2.0, 3.0)
    }


def test_rows_tell_how_every_attack_was_run(setting):
    results = setting.evaluate()
    rows = table.table_rows(setting.config, "cprl", results, setting.mos)
    assert list(rows[0])[:7] == ["method", "attack", "radius", "against", "srcc", "srcc_low", "srcc_high"]
    found = {(row["attack"], row["direction"], row["steps"], row["restarts"]) for row in rows}
    assert found == {
        ("none", "", 0, 0),
        ("fgsm", "reflect", 1, 1),
        ("pgd", "reflect", 2, 1),
        ("target_free", "target_free", 1, 1),
        ("universal", "up", 1, 1),
        ("universal:other", "up", 1, 1),
        ("perceptual:ssim", "away", 2, 1),
    }
    assert len(rows) == 2 * len(EVERYTHING)
    scores = table.score_rows("cprl", results, list("abcdef"), setting.mos)
    for row in rows:
        chosen = [s for s in scores if (s["attack"], s["radius"]) == (row["attack"], row["radius"])]
        target = [s["mos" if row["against"] == "mos" else "clean"] for s in chosen]
        for column, score in (("", "score"), ("_8bit", "score_8bit")):
            values = [s[score] for s in chosen]
            spearman = scipy.stats.spearmanr(values, target).statistic
            np.testing.assert_allclose(row[f"srcc{column}"], spearman, atol=1e-9)
            np.testing.assert_allclose(row[f"plcc{column}"], scipy.stats.pearsonr(values, target)[0], rtol=1e-6)
            difference = np.subtract(values, target)
            np.testing.assert_allclose(row[f"rmse{column}"], np.sqrt(np.mean(difference**2)), rtol=1e-6)
        assert row["images"] == len(chosen) == 6
        assert row["srcc_low"] <= row["srcc"] <= row["srcc_high"]
        assert row["max_change"] <= row["radius"] + 1e-4 or row["attack"] == "perceptual:ssim"


def test_examples_are_attacked_test_images(config, network, crops, mos):
    config.evaluation.examples = 2
    module, variables = network()
    names = list("abcdef")
    shown = table.examples(config, "plain", module, variables, crops, names, mos)
    assert [example["name"] for example in shown] == [names[row] for row in table.images_over_mos_range(mos, 2)]
    for example in shown:
        image = crops[names.index(example["name"]), 0]
        np.testing.assert_array_equal(example["image"], image)
        change = np.abs(example["attacked"] - image / np.float32(255)).max() * 255
        assert 0 < change <= config.evaluation.example_radius + 1e-4
        assert (example["after"] < example["before"]) == (example["mos"] > 50)
    config.evaluation.examples = 0
    assert table.examples(config, "plain", module, variables, crops, names, mos) == []


def test_images_lie_evenly_over_the_ranks_of_the_mos():
    mos = np.array([50.0, 10, 90, 30, 70, 20, 80, 40, 60])
    assert mos[table.images_over_mos_range(mos, 1)].tolist() == [50]
    assert mos[table.images_over_mos_range(mos, 3)].tolist() == [30, 50, 70]
    assert sorted(table.images_over_mos_range(mos, 0)) == []


def attacked(scores):
    scores, zero = np.asarray(scores), np.zeros(len(scores))
    return {"after": scores, "after_8bit": scores, "ssim": zero + 1, "max_change": zero, "zero_gradient_fraction": zero}


def test_r_of_hand_cases(config):
    config.evaluation.attacks, config.evaluation.radii = ("fgsm", "pgd"), (1.0, 4.0)
    mos = np.array([10.0, 20.0, 30.0, 40.0])
    results = {
        table.CLEAN: attacked(mos),
        ("pgd", 4.0): attacked(mos[::-1]),
        ("pgd", 1.0): attacked(mos + 1),
        ("fgsm", 1.0): attacked(mos),
    }
    r = {(row["attack"], row["radius"]): row["r"] for row in table.table_rows(config, "plain", results, mos)}
    expected = np.mean(np.log([90 / 30, 80 / 10, 70 / 10, 60 / 30]))
    assert r["pgd", 4.0] == pytest.approx(expected)
    assert r["pgd", 1.0] == pytest.approx(np.mean(np.log([90, 80, 70, 60])))
    assert r["none", 0.0] == r["fgsm", 1.0] == math.inf


def test_r_of_scores_that_left_their_scale(config):
    config.evaluation.attacks, config.evaluation.radii = ("pgd",), (1.0,)
    mos = np.array([10.0, 20.0, 30.0, 40.0])
    results = {table.CLEAN: attacked(mos - 500), ("pgd", 1.0): attacked(mos)}
    assert all(math.isnan(row["r"]) for row in table.table_rows(config, "plain", results, mos))


def test_every_measure_has_its_interval():
    predictions, targets = np.random.default_rng(0).normal(size=(2, 30))
    row = statistics.measures_with_intervals(predictions, targets, seed=0, resamples=50)
    assert list(row) == [f"{name}{end}" for name in ("srcc", "plcc", "rmse") for end in ("", "_low", "_high")]
    interval = statistics.bootstrap_interval(predictions, targets, statistics.plcc, seed=0, resamples=50)
    assert (row["plcc_low"], row["plcc_high"]) == interval


@pytest.mark.parametrize("images", [1, 2, 3, 5, 12])
def test_images_over_the_mos_range_differ(images):
    mos = np.random.default_rng(0).permutation(images).astype(float)
    for count in range(images + 1):
        ranks = mos[table.images_over_mos_range(mos, count)]
        assert len(ranks) == count and (np.diff(ranks) > 0).all()
    if images > 2:
        assert set(mos[table.images_over_mos_range(mos, images - 2)]) == set(range(1, images - 1))
