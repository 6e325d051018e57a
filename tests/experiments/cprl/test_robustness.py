"""Landscape, trust checks and areas under the curves of the methods of a run."""

import jax
import numpy as np
import pytest

from cprl_jax import models
from cprl_jax.config import defaults as config_lib
from cprl_jax.experiments.cprl import robustness as evaluate_robustness
from cprl_jax.robustness import trust
from cprl_jax.training.setup import create_model

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


def evaluate(config, networks, method, cache, crops=CROPS, mos=MOS):
    return evaluate_robustness.robustness(config, method, networks, crops, NAMES, mos, cache=cache)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("robustness")


@pytest.fixture(scope="module")
def found(config, networks, folder):
    return {method: evaluate(config, networks, method, folder / method) for method in networks}


@pytest.mark.slow
def test_every_method_has_a_landscape_and_checks(found, networks):
    for method, result in found.items():
        shown = result["landscape"]
        assert shown["image"] == "image_2", "the middle one by MOS"
        assert np.shape(shown["scores"]) == (5, 5)
        np.testing.assert_allclose(shown["along_gradient"], [-4, -2, 0, 2, 4], rtol=1e-5)
        clean = models.score_fn(*networks[method])(CROPS[2] / np.float32(255))[0]
        np.testing.assert_allclose(shown["scores"][2][2], clean, rtol=1e-5)
        verdicts = {check["name"]: check["verdict"] for check in result["checks"]}
        assert tuple(verdicts) == trust.NAMES
        assert verdicts[trust.TRANSFER] != "not run"
        for name in (trust.ADAPTIVE, trust.GATELESS):
            assert (verdicts[name] == "not run") == (method == "plain"), "only CPRL masks here"


@pytest.mark.slow
def test_the_result_is_kept_until_something_that_it_depends_on_changes(config, networks, found, folder, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(trust, "check", fail)
    monkeypatch.setattr(evaluate_robustness, "landscape", fail)
    assert evaluate(config, networks, "cprl", folder / "cprl") == found["cprl"]

    others = CROPS.copy()
    others[2, 0, 0, 0, 0] ^= 1
    longer = config.copy_and_resolve_references()
    longer.evaluation.pgd_steps += 1
    changed = {
        name: (module, jax.tree.map(lambda leaf: leaf + 1, values)) for name, (module, values) in networks.items()
    }
    for arguments in (
        {"crops": others},
        {"mos": MOS - 1},
        {"config": longer},
        {"networks": networks | {"cprl": changed["cprl"]}},
        {"networks": networks | {"plain": changed["plain"]}},
    ):
        with pytest.raises(AssertionError, match="computed again"):
            options = {"config": config, "networks": networks, "method": "cprl", "cache": folder / "cprl"}
            evaluate(**options | arguments)


@pytest.mark.slow
def test_both_can_be_turned_off(config, networks, tmp_path):
    off = config.copy_and_resolve_references()
    off.evaluation.trust_images = off.evaluation.landscape_points = 0
    for _ in range(2):
        assert evaluate(off, networks, "plain", tmp_path / "robustness.npz") == {"method": "plain"}


def test_one_method_has_nothing_to_transfer_from(config, networks, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(trust, "check", lambda *_, **options: given.update(options) or [])
    alone = config.copy_and_resolve_references()
    alone.evaluation.landscape_points = alone.evaluation.trust_queries = 0
    result = evaluate(alone, {"plain": networks["plain"]}, "plain", tmp_path / "robustness.npz")
    assert given["transfer_images"] is given["adaptive_score_fn"] is given["gateless_score_fn"] is None
    assert given["queries"] == 0
    assert result == {"method": "plain", "checks": []}


def test_the_network_without_masks_is_the_plain_one_with_the_same_parameters(config, networks, tmp_path, monkeypatch):
    given = {}
    monkeypatch.setattr(trust, "check", lambda *_, **options: given.update(options) or [])
    alone = config.copy_and_resolve_references()
    alone.evaluation.landscape_points = 0
    evaluate(alone, {"cprl": networks["cprl"]}, "cprl", tmp_path / "robustness.npz")
    variables = networks["cprl"][1]
    expected = models.score_fn(networks["plain"][0], variables)
    assert given["gateless_score_fn"].func is expected.func, "the same module"
    jax.tree.map(np.testing.assert_array_equal, given["gateless_score_fn"].args[0], variables)
    assert jax.eval_shape(expected, CROPS[:2, 0] / np.float32(255)).shape == (2,)


def test_integrals_of_hand_cases():
    # SRCC is 1 up to 1/255, then falls to -1 at 4/255: trapezoids 1 * 1 + 3 * 0, over 4.
    curves = [("none", 0, 1), ("pgd", 4, -1), ("pgd", 1, 1), ("fgsm", 1, 1), ("perceptual:ssim", 0, 0.5)]
    rows = [
        {"method": "plain", "against": against, "attack": attack, "radius": float(radius), "srcc": srcc}
        for attack, radius, srcc in curves
        for against in ("mos", "prediction")
    ]
    rows += [{**row, "method": "other", "srcc": 0.0} for row in rows]
    assert evaluate_robustness.integrals(rows, "plain") == pytest.approx({"pgd": 0.25, "fgsm": 1.0})
    assert evaluate_robustness.integrals([row for row in rows if row["attack"] == "none"], "plain") == {}
