"""The scorer against the attacks themselves, in any batches, on any devices, block by block."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import attacks, fidelity, models
from cprl_jax.evaluation import scoring
from cprl_jax.evaluation.scoring import Scorer
from cprl_jax.evaluation.table_attacks import ATTACKS
from cprl_jax.runtime import cells, parallel

RADIUS = 3 / 255
# What each attack must equal: the attack itself on all crops at once, with a key for every image and crop.
ORACLES = {
    "fgsm": ({}, lambda f, x, mos, keys: attacks.fgsm(f, x, radius=RADIUS, direction=attacks.reflect(mos, 40.0))),
    "pgd": (
        {"steps": 4},
        lambda f, x, mos, keys: attacks.pgd(f, x, radius=RADIUS, direction=attacks.reflect(mos, 40.0), steps=4),
    ),
    "target_free": (
        {"steps": 2},
        lambda f, x, mos, keys: attacks.pgd(f, x, radius=RADIUS, direction=attacks.target_free(40.0), steps=2),
    ),
    "score_reflection": (
        {"steps": 3},
        lambda f, x, mos, keys: attacks.score_reflection(f, x, radius=RADIUS, mid=40.0, steps=3),
    ),
    "square": (
        {"queries": 20},
        lambda f, x, mos, keys: attacks.square(
            f, x, radius=RADIUS, direction=attacks.reflect(mos, 40.0), queries=20, key=keys
        ),
    ),
}


def assert_same_images(found, expected):
    """But for a few values whose gradient is rounding noise, and has another sign in another program."""
    difference = np.abs(np.reshape(found, -1) - np.reshape(expected, -1))
    assert np.mean(difference > 1e-6) < 1e-3


def flat(crops):
    return crops.reshape(-1, *crops.shape[2:]) / np.float32(255)


@pytest.mark.sampled
@pytest.mark.parametrize("name", ORACLES)
def test_an_attack_of_the_table_is_the_attack_itself_on_the_same_crops(network, crops, mos, crop_keys, name):
    module, variables = network()
    score_fn = models.score_fn(module, variables)
    settings, oracle = ORACLES[name]
    scorer = Scorer(module, batch_size=4, mid=40.0, seed=3)
    found = scorer.attack(variables, crops, mos, ATTACKS[name].at(3, **settings), keep_images=True)
    expected = oracle(score_fn, flat(crops), np.repeat(mos, 3), crop_keys(3))

    assert_same_images(found["images"], expected.images)
    shape = crops.shape[:2]
    for field in ("before", "after", "zero_gradient_fraction"):
        values = getattr(expected, field)
        values = np.full(len(mos), np.nan) if values is None else np.asarray(values).reshape(shape).mean(axis=1)
        np.testing.assert_allclose(found[field], values, rtol=1e-4, atol=1e-6, err_msg=field)
    largest = np.asarray(expected.max_change).reshape(shape).max(axis=1)
    np.testing.assert_allclose(found["max_change"], largest, rtol=1e-5)
    ssim = np.asarray(fidelity.ssim(expected.images, flat(crops))).reshape(shape).mean(axis=1)
    np.testing.assert_allclose(found["ssim"], ssim, rtol=1e-4)
    assert (found["max_change"] <= RADIUS).all()
    assert np.abs(found["after"] - found["before"]).min() > 0.1, "an attack that does nothing proves nothing"


def test_clean_scores_are_means_over_crops(network, crops):
    module, variables = network()
    expected = module.apply(variables, flat(crops)).reshape(6, 3).mean(axis=1)
    np.testing.assert_allclose(Scorer(module, batch_size=5).scores(variables, crops), expected, rtol=1e-5)


RANDOM = {"pgd": {"steps": 2, "restarts": 2}, "square": {"queries": 5}, "perceptual": {"steps": 3}}


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_random_attacks_depend_neither_on_batches_nor_on_devices(network, crops, mos, monkeypatch, name):
    module, variables = network()
    variant = "ssim" if name == "perceptual" else ""

    def attack(batch_size, seed=0, count=6):
        scorer = Scorer(module, batch_size=batch_size, seed=seed)
        condition = ATTACKS[name].at(3, variant=variant, **RANDOM[name])
        return scorer.attack(variables, crops[:count], mos[:count], condition, keep_images=True)["images"]

    assert parallel.local_device_count() == 2
    reference = attack(9)
    assert_same_images(attack(2), reference)
    assert_same_images(attack(2, count=4), reference[:4])
    assert np.abs(attack(9, seed=1) - reference).max() > 1e-3
    monkeypatch.setattr(parallel, "local_device_count", lambda: 1)
    monkeypatch.setattr(parallel, "device_count", lambda: 1)
    assert_same_images(attack(4), reference)


class Recorder:
    """Crops that note how many images were cut out at once."""

    def __init__(self, crops):
        self._crops, self.shape, self.asked = crops, crops.shape, []

    def __getitem__(self, rows):
        self.asked.append(len(rows))
        return self._crops[rows]


def test_crops_are_cut_out_block_by_block(network, crops, mos, monkeypatch):
    module, variables = network()
    scorer = Scorer(module, batch_size=3)
    attack = functools.partial(scorer.attack, variables, condition=ATTACKS["pgd"].at(3, steps=2))
    whole = attack(crops, mos)
    monkeypatch.setattr(scoring, "_BLOCK_BYTES", 2 * crops[0].nbytes + 5)
    recorder = Recorder(crops)
    by_blocks = attack(recorder, mos)
    assert recorder.asked == [2, 2, 2]
    for field, values in whole.items():
        np.testing.assert_allclose(by_blocks[field], values, rtol=1e-4, atol=1e-6, err_msg=field)
    np.testing.assert_allclose(scorer.scores(variables, recorder), whole["before"], rtol=1e-5)


def test_batches_that_took_long_are_kept_and_give_the_same_numbers(network, crops, mos, monkeypatch, tmp_path):
    module, variables = network()
    attack = functools.partial(
        Scorer(module, batch_size=3).attack, variables, crops, mos, ATTACKS["pgd"].at(3, steps=2)
    )
    parts = cells.Parts(tmp_path / "pgd.npz", "stamp")
    monkeypatch.setattr(cells, "_LONG", -1.0)
    expected, first = attack(), attack(parts=parts)
    assert len(list(parts.folder.iterdir())) == -(-crops.shape[0] * crops.shape[1] // (3 * parallel.device_count()))
    monkeypatch.setattr(Scorer, "_attacked", None)  # nothing is left to do
    for found in (first, attack(parts=parts)):
        for field, values in expected.items():
            np.testing.assert_array_equal(found[field], values, err_msg=field)


def test_a_network_of_half_precision_is_judged_in_float32(network, crops, mos):
    (module, variables), (half, _) = network(), network(dtype=jnp.bfloat16)
    pgd = ATTACKS["pgd"].at(3, steps=2)
    rounded = half.apply(variables, flat(crops))
    expected, found = (Scorer(each, batch_size=4).attack(variables, crops, mos, pgd) for each in (module, half))
    assert np.abs(rounded.reshape(6, 3).mean(axis=1) - expected["before"]).max() > 1e-3
    for field in ("before", "after"):
        np.testing.assert_allclose(found[field], expected[field], rtol=1e-6)


@pytest.mark.parametrize("radius", [0.5, 1.0, 1.5, 4.0])
def test_scores_after_rounding_are_those_of_the_saved_images(network, crops, mos, radius):
    module, variables = network()
    scorer = Scorer(module, batch_size=4)
    result = scorer.attack(variables, crops, mos, ATTACKS["fgsm"].at(radius), keep_images=True)
    saved = np.round(255 * result["images"]).astype(np.uint8)
    if radius == 0.5:
        saved = crops  # no other 8-bit image is that near
    if radius == 1.5:
        saved = np.clip(saved, crops.astype(int) - 1, crops.astype(int) + 1).astype(np.uint8)
    np.testing.assert_allclose(result["after_8bit"], scorer.scores(variables, saved), rtol=1e-5)
    assert (np.abs(result["after_8bit"] - result["before"]).max() > 0.1) == (radius >= 1)


def test_images_come_back_only_where_they_are_asked_for(network, crops, mos):
    module, variables = network()
    found = Scorer(module, batch_size=4).attack(variables, crops, mos, ATTACKS["fgsm"].at(3))
    assert set(found) == {"before", "after", "after_8bit", "ssim", "max_change", "zero_gradient_fraction"}
    assert all(values.shape == (6,) for values in found.values())
