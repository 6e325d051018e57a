"""Landscape, trust checks and areas under the curves of the methods of a run."""

import math

import jax
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.evaluation.scoring import table_rows
from cprl_jax.experiments.cprl import robustness as evaluate_robustness
from cprl_jax.robustness import trust
from cprl_jax.training.loop import create_model

NAMES = [f"image_{i}" for i in range(5)]
MOS = np.array([10.0, 80.0, 55.0, 30.0, 95.0], np.float32)
CROPS = np.random.default_rng(0).integers(0, 256, (5, 1, 24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def config():
    config = config_lib.default()
    config.model.name = "compact"
    config.model.sort_mask.min_channels = 24
    evaluation = config.evaluation
    evaluation.trust_images, evaluation.trust_queries, evaluation.landscape_points = 3, 10, 5
    evaluation.pgd_steps = 2
    return config


@pytest.fixture(scope="module")
def networks(config):
    made = {}
    for seed, method in enumerate(("plain", "cprl")):
        module = create_model(config, method)
        made[method] = module, models.initialize(module, jax.random.key(seed), 24)
    return made


def evaluate(config, networks, method, **options):
    return evaluate_robustness.robustness(config, method, networks, CROPS, NAMES, MOS, **options)


@pytest.fixture(scope="module")
def found(config, networks):
    return {method: evaluate(config, networks, method) for method in networks}


@pytest.mark.slow
def test_every_method_has_a_landscape_and_checks(found, networks):
    for method, result in found.items():
        shown = result["landscape"]
        assert shown["image"] == "image_2", "the middle one by MOS"
        assert shown["scores"].shape == (5, 5)
        np.testing.assert_allclose(shown["along_gradient"], [-4, -2, 0, 2, 4], rtol=1e-5)
        clean = models.score_fn(*networks[method])(CROPS[2] / np.float32(255))[0]
        np.testing.assert_allclose(shown["scores"][2, 2], clean, rtol=1e-5)
        verdicts = {check["name"]: check["verdict"] for check in result["checks"]}
        assert len(verdicts) == 8
        assert verdicts[trust.TRANSFER] != "not run"
        assert (verdicts[trust.ADAPTIVE] == "not run") == (method == "plain"), "only CPRL masks here"


@pytest.mark.slow
def test_the_result_is_kept_for_the_same_settings(config, networks, found, tmp_path, monkeypatch):
    cache = tmp_path / "robustness.npz"
    first = evaluate(config, networks, "cprl", cache=cache, identity={"step": 7})
    assert [path.name for path in tmp_path.iterdir()] == ["robustness.npz"]

    def fail(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(trust, "check", fail)
    again = evaluate(config, networks, "cprl", cache=cache, identity={"step": 7})
    assert again["checks"] == first["checks"] == found["cprl"]["checks"]
    for name, values in first["landscape"].items():
        np.testing.assert_array_equal(again["landscape"][name], values)
    assert isinstance(again["landscape"]["image"], str)
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(config, networks, "cprl", cache=cache, identity={"step": 8})


def test_both_can_be_turned_off(config, networks, tmp_path):
    off = config.copy_and_resolve_references()
    off.evaluation.trust_images = off.evaluation.landscape_points = 0
    for _ in range(2):
        assert evaluate(off, networks, "plain", cache=tmp_path / "robustness.npz") == {"method": "plain"}


def test_one_method_has_nothing_to_transfer_from(config, networks):
    alone = config.copy_and_resolve_references()
    alone.evaluation.landscape_points = alone.evaluation.trust_queries = 0
    result = evaluate(alone, {"plain": networks["plain"]}, "plain")
    verdicts = {check["name"]: check["verdict"] for check in result["checks"]}
    assert verdicts[trust.TRANSFER] == verdicts[trust.BLACK_BOX] == "not run"
    assert "landscape" not in result


def attacked(scores):
    zero = np.zeros(len(scores))
    return {"after": np.asarray(scores), "ssim": zero + 1, "max_change": zero, "zero_gradient_fraction": zero}


def test_integrals_and_r_of_hand_cases():
    mos = np.array([10.0, 20.0, 30.0, 40.0])
    results = {
        ("none", 0.0): attacked(mos),
        ("pgd", 4.0): attacked(mos[::-1]),
        ("pgd", 1.0): attacked(mos + 1),
        ("fgsm", 1.0): attacked(mos),
    }
    rows = table_rows("plain", results, mos, seed=0, resamples=10)
    # SRCC is 1 up to 1/255, then falls to -1 at 4/255: trapezoids 1 * 1 + 3 * 0, over 4.
    assert evaluate_robustness.integrals(rows, "plain") == pytest.approx({"pgd": 0.25, "fgsm": 1.0})
    r = {(row["attack"], row["radius"]): row["r"] for row in rows}
    expected = np.mean(np.log([90 / 30, 80 / 10, 70 / 10, 60 / 30]))
    assert r["pgd", 4.0] == pytest.approx(expected)
    assert r["pgd", 1.0] == pytest.approx(np.mean(np.log([90, 80, 70, 60])))
    assert r["none", 0.0] == r["fgsm", 1.0] == math.inf
    assert (
        evaluate_robustness.integrals(table_rows("a", {("none", 0.0): attacked(mos)}, mos, seed=0, resamples=5), "a")
        == {}
    )


def test_r_of_scores_that_left_their_scale():
    mos = np.array([10.0, 20.0, 30.0, 40.0])
    results = {("none", 0.0): attacked(mos - 500), ("pgd", 1.0): attacked(mos)}
    assert all(math.isnan(row["r"]) for row in table_rows("plain", results, mos, seed=0, resamples=5))
