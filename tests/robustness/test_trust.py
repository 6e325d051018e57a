import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import attacks
from cprl_jax.attacks.gradients import as_constant
from cprl_jax.robustness import trust

RADIUS = 4 / 255
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(size=(8, 8, 3)).astype(np.float32)
KERNELS = [
    RANDOM.normal(0, 1 / 4, (3, 3, 3, 6)).astype(np.float32),
    RANDOM.normal(0, 1 / 6, (3, 3, 6, 6)).astype(np.float32),
    RANDOM.normal(0, 3, (6,)).astype(np.float32),
]
IMAGES = RANDOM.uniform(0.1, 0.9, (8, 8, 8, 3)).astype(np.float32)
MOS = np.linspace(5, 95, 8).astype(np.float32)


def linear(images):
    return 50 + 3 * jnp.einsum("bhwc,hwc->b", images, WEIGHTS)


def smooth(images):
    """A small convolutional network."""
    features = images
    for kernel in KERNELS[:2]:
        features = jax.lax.conv_general_dilated(
            features, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        features = jax.nn.softplus(4 * features)
    return 50 + 10 * jnp.einsum("bc,c->b", jnp.mean(features, axis=(1, 2)), KERNELS[2])


def stopped(images):
    return smooth(jax.lax.stop_gradient(images))


def staircase(images):
    return jnp.round(smooth(images) * 20) / 20


def quantised(images):
    """Rounds its input, as if images were read from files of few grey levels."""
    return smooth(jnp.round(images * 64) / 64)


def shattered(images):
    """A useful score beneath a ripple that is far too small to matter, and whose gradient is all that one sees."""
    return linear(images) + jnp.sum(jnp.sin(1e5 * images), axis=(1, 2, 3)) / 50


PLANES = RANDOM.normal(size=(192, 24)).astype(np.float32)
LAYERS = [(1.5 * RANDOM.normal(size=(size, 128)) / np.sqrt(size)).astype(np.float32) for size in (192, 128, 128)]


def lowest_plane(images):
    """Its gradient is that of one plane at a time, so that attacks go from kink to kink for long."""
    return 50 + jnp.min(jnp.reshape(images, (len(images), -1)) @ PLANES, axis=1)


def winners_take_all(images):
    """Each layer keeps its largest 12 of 128 values: the score jumps wherever others win."""
    hidden = jnp.reshape(4 * images - 2, (len(images), -1))
    for weights in LAYERS:
        hidden = hidden @ weights
        hidden = jnp.where(hidden >= jax.lax.top_k(hidden, 12)[0][:, -1:], hidden, 0)
    return 50 + 10 * hidden @ LAYERS[1][0]


def saturated(images):
    return 100 * jax.nn.sigmoid(4 * (linear(images) - CENTRE))


CENTRE = np.median(50 + 3 * np.einsum("bhwc,hwc->b", IMAGES, WEIGHTS))


def noisy(images):
    """Adds noise that is drawn for each place in the batch, always the same."""
    return linear(images) + jax.random.normal(jax.random.key(7), images.shape[:1])


def drawn_anew(images):
    """Adds other noise at every call."""
    noise = jax.experimental.io_callback(
        lambda: RANDOM.normal(size=len(images)).astype(np.float32), jax.ShapeDtypeStruct((len(images),), np.float32)
    )
    return linear(images) + noise


def check(score_fn, direction=None, **options):
    options = {"radius": RADIUS, "steps": 4, "queries": 60, "key": jax.random.key(0)} | options
    found = trust.check(score_fn, IMAGES, direction=attacks.reflect(MOS) if direction is None else direction, **options)
    return {each.name: each for each in found}


NEED_MORE = (trust.TRANSFER, trust.ADAPTIVE, trust.GATELESS)


def suspicious(found):
    return {name for name, each in found.items() if each.verdict == "suspicious"}


def honest(score_fn, direction):
    found = check(score_fn, direction)
    assert tuple(found) == trust.NAMES
    assert {name for name in trust.NAMES if found[name].verdict == "not run"} == {*NEED_MORE}
    assert not suspicious(found)


def test_honest_models_pass():
    honest(smooth, attacks.reflect(MOS))
    honest(linear, attacks.away())


@pytest.mark.slow
@pytest.mark.parametrize("score_fn", [linear, smooth])
@pytest.mark.parametrize("direction", [attacks.target_free(), attacks.up()], ids=["target_free", "up"])
def test_honest_models_pass_in_every_direction(score_fn, direction):
    honest(score_fn, direction)


@pytest.mark.slow
def test_numbers_of_a_linear_model():
    images = 0.4 + 0.2 * IMAGES  # far enough from 0 and 1 for the radius
    found = trust.check(
        linear, images, direction=attacks.up(), radius=RADIUS, steps=4, queries=60, key=jax.random.key(0)
    )
    found = {each.name: dict(each.numbers) for each in found}
    assert 0 < found[trust.RADIUS].pop(trust.SMALLEST) == pytest.approx(found[trust.RADIUS]["PGD at 16/255"] / 20)
    for numbers in found.values():
        numbers.pop(trust.SMALLEST, None)
    full = 3 * RADIUS * np.abs(WEIGHTS).sum()
    assert found[trust.ZERO_GRADIENTS] == {"mean share": 0, "largest share": 0, "blind images": 0}
    assert found[trust.RADIUS] == pytest.approx(
        {"PGD at 2/255": full / 2, "PGD at 4/255": full, "PGD at 8/255": 2 * full, "PGD at 16/255": 4 * full}, rel=1e-4
    )
    assert found[trust.STEPS] == pytest.approx({"PGD-4": full, "PGD-20": full}, rel=1e-4)
    assert found[trust.ITERATED] == pytest.approx({"FGSM": full, "PGD-4": full}, rel=1e-4)
    clean = np.asarray(linear(images))
    unbounded = 3 * np.sum(np.where(WEIGHTS > 0, 1 - images, -images) * WEIGHTS, axis=(1, 2, 3)).mean()
    assert found[trust.UNBOUNDED]["PGD at 255/255"] == pytest.approx(unbounded, rel=1e-4)
    assert found[trust.UNBOUNDED]["best of the other images"] == pytest.approx((clean.max() - clean).mean(), rel=1e-4)
    assert found[trust.BLACK_BOX]["white box"] == pytest.approx(full, rel=1e-4)
    assert 0 < found[trust.BLACK_BOX]["Square, 60 queries"] < full
    assert found[trust.CONVERGED] == pytest.approx({"white box": full, "iterations doubled": full}, rel=1e-4)
    assert found[trust.LAST] == pytest.approx({"PGD-4, best iterate": full, "PGD-4": full}, rel=1e-4)
    assert found[trust.RESTARTS] == pytest.approx({"PGD-4, 3 more starts": full, "PGD-4": full}, rel=1e-4)
    assert found[trust.NOISE]["gradient's promise"] == pytest.approx(full, rel=1e-4)
    # Uniform noise has a variance of a third of the radius squared, and a normal change this mean absolute value.
    expected = 3 * RADIUS * np.sqrt(np.sum(WEIGHTS**2) / 3) * np.sqrt(2 / np.pi)
    assert found[trust.NOISE]["noise"] == pytest.approx(expected, rel=0.4)
    assert found[trust.NEIGHBOURS] == pytest.approx({"mean agreement": 1, "lowest agreement": 1})
    assert found[trust.SATURATED]["range of scores"] == pytest.approx(np.ptp(clean), rel=1e-4)


def test_a_model_whose_gradient_is_stopped_is_flagged():
    """The defect that the checks exist for: the scores are those of an honest model, the gradient is gone."""
    found = check(stopped)
    for name in (trust.ZERO_GRADIENTS, trust.RADIUS, trust.UNBOUNDED, trust.STEPS, trust.ITERATED, trust.BLACK_BOX):
        assert found[name].verdict == "suspicious", found[name]
    assert {trust.CONVERGED, trust.FLOOR, trust.NOISE, trust.NEIGHBOURS, trust.SATURATED} <= suspicious(found)
    assert found[trust.ZERO_GRADIENTS].numbers == {"mean share": 1, "largest share": 1, "blind images": 8}
    assert "None of these attacks moves any score" in found[trust.RADIUS].explanation


@pytest.mark.parametrize("score_fn", [staircase, pytest.param(quantised, marks=pytest.mark.slow)])
def test_staircases_are_flagged(score_fn):
    """Random starts find what the gradient, which there is none of, does not."""
    expected = {trust.ZERO_GRADIENTS, trust.UNBOUNDED, trust.BLACK_BOX, trust.RESTARTS}
    assert expected <= suspicious(check(score_fn))


def test_a_useless_gradient_is_flagged_although_it_is_not_zero():
    found = check(shattered, queries=200)
    assert found[trust.ZERO_GRADIENTS].verdict == "passed"
    assert {trust.UNBOUNDED, trust.NEIGHBOURS, trust.LAST} <= suspicious(found)


def test_a_model_on_which_attacks_converge_slowly_is_flagged():
    """All else is in order: the strengths are only not the worst case."""
    found = check(lowest_plane, attacks.up(), queries=0)
    assert suspicious(found) == {trust.CONVERGED}
    strengths = found[trust.CONVERGED].numbers
    assert strengths["iterations doubled"] > 1.01 * strengths["white box"] > 0
    assert found[trust.CONVERGED].explanation.startswith("Twice the iterations move scores farther by 1 % or more")


def test_a_gate_of_winners_is_flagged():
    """Its gradient is right, on a piece so small that noise jumps off it."""
    found = check(winners_take_all, queries=0)
    assert found[trust.NOISE].verdict == "suspicious"
    numbers = found[trust.NOISE].numbers
    assert numbers["noise"] > numbers[trust.SMALLEST] and numbers["noise"] > numbers["gradient's promise"] > 0


def test_a_saturated_head_is_flagged():
    found = check(saturated, queries=0)[trust.SATURATED]
    assert found.verdict == "suspicious"
    assert found.numbers["range of scores"] == pytest.approx(100, abs=1)
    assert found.numbers["share with a tiny gradient"] >= 0.5 and found.numbers["other scores at the ends"] >= 3


def test_noise_at_inference_is_flagged():
    found = check(noisy, queries=0)
    assert suspicious(found) == {trust.SAME_SCORE}
    assert found[trust.SAME_SCORE].numbers["same batch"] == 0 < found[trust.SAME_SCORE].numbers["another batch"]


def test_scores_are_compared_with_those_of_another_call_and_another_batch():
    images = jnp.asarray(IMAGES)
    np.testing.assert_allclose(trust._differences(as_constant(linear), images), 0, atol=1e-4)
    again, elsewhere = trust._differences(as_constant(drawn_anew), images)
    assert np.all(again > 1e-3) and np.all(elsewhere > 1e-3)
    # Scores that depend on the other images, as in a batch normalisation that is still training.
    company = as_constant(lambda images: linear(images) + jnp.mean(images))
    again, elsewhere = trust._differences(company, images)
    assert not again.any() and np.all(elsewhere > 1e-3)
    assert not np.any(trust._differences(company, images[:1])), "nothing else is in a batch of one"


def test_transfer_from_an_honest_model_gives_a_masked_one_away():
    on_another = attacks.pgd(smooth, IMAGES, radius=RADIUS, direction=attacks.reflect(MOS)).images
    assert check(stopped, transfer_images=on_another, queries=0)[trust.TRANSFER].verdict == "suspicious"
    found = check(smooth, transfer_images=np.asarray(on_another), queries=0)
    assert found[trust.TRANSFER].verdict == "passed"
    assert found[trust.BLACK_BOX].verdict == "not run"
    unrelated = attacks.pgd(linear, IMAGES, radius=RADIUS, direction=attacks.reflect(MOS)).images
    assert check(smooth, transfer_images=unrelated, queries=0)[trust.TRANSFER].verdict == "passed"


def test_adaptive_attack_gives_a_masked_model_away():
    found = check(staircase, adaptive_score_fn=smooth, gateless_score_fn=smooth, queries=0)
    assert found[trust.ADAPTIVE].verdict == found[trust.GATELESS].verdict == "suspicious"
    assert found[trust.GATELESS].numbers["without the gate"] == found[trust.ADAPTIVE].numbers["adaptive"]
    assert found[trust.ADAPTIVE].numbers["adaptive"] > 0.1 and found[trust.ADAPTIVE].numbers["white box"] == 0
    found = check(smooth, adaptive_score_fn=smooth, gateless_score_fn=linear, queries=0)
    assert found[trust.ADAPTIVE].verdict == found[trust.GATELESS].verdict == "passed"


def test_a_constant_score_gets_no_clean_bill_of_health():
    found = check(lambda images: 0 * images[:, 0, 0, 0] + 7)
    for name in (trust.ZERO_GRADIENTS, trust.RADIUS, trust.UNBOUNDED, trust.STEPS, trust.ITERATED):
        assert found[name].verdict == "suspicious"
    assert {trust.CONVERGED, trust.SATURATED} <= suspicious(found)


def test_scores_that_are_not_numbers_are_suspicious():
    found = check(
        lambda images: jnp.where(jnp.mean(images, axis=(1, 2, 3)) > 0.52, jnp.nan, linear(images)),
        attacks.up(),
        queries=0,
    )
    assert found[trust.UNBOUNDED].verdict == "suspicious" and "not finite" in found[trust.UNBOUNDED].explanation


@pytest.mark.slow
def test_one_image_and_large_radius():
    found = trust.check(
        linear, IMAGES[:1], direction=attacks.up(), radius=0.6, steps=2, queries=20, key=jax.random.key(0)
    )
    assert {each.verdict for each in found if each.name not in (*NEED_MORE, trust.SATURATED)} == {"passed"}
    assert found[-1].verdict == "not run"
    assert list(found[1].numbers) == ["PGD at 76.5/255", "PGD at 153/255", "PGD at 255/255", trust.SMALLEST]


def test_is_reproducible_also_with_strict_types_and_fits_into_json():
    first = check(smooth)
    with jax.numpy_dtype_promotion("strict"), jax.debug_nans(True):
        second = check(smooth)
    assert first == second
    assert json.loads(json.dumps([each._asdict() for each in first.values()])) == [
        each._asdict() for each in first.values()
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.0}, r"radius must be in \(0, 1\]"),
        ({"radius": 4.0}, r"radius must be in \(0, 1\]"),
        ({"transfer_images": IMAGES[:3]}, r"transfer_images must have the shape of images"),
        (
            {"transfer_images": np.clip(IMAGES + 0.05, 0, 1)},
            r"transfer_images lie up to 0.05 .*farther than the radius",
        ),
        ({"transfer_images": np.full_like(IMAGES, np.nan)}, "transfer_images lie up to nan"),
    ],
)
def test_arguments_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        check(linear, **options)
