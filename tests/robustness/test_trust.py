import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cprl_jax import attacks
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


def check(score_fn, direction=None, **options):
    options = {"radius": RADIUS, "steps": 4, "queries": 60, "key": jax.random.key(0)} | options
    found = trust.check(score_fn, IMAGES, direction=attacks.reflect(MOS) if direction is None else direction, **options)
    return {each.name: each for each in found}


NAMES = [
    trust.ZERO_GRADIENTS,
    trust.RADIUS,
    trust.UNBOUNDED,
    trust.STEPS,
    trust.ITERATED,
    trust.BLACK_BOX,
    trust.TRANSFER,
    trust.ADAPTIVE,
]
ALWAYS_RUN = NAMES[:6]


@pytest.mark.parametrize("score_fn", [linear, pytest.param(smooth, marks=pytest.mark.slow)])
@pytest.mark.parametrize("direction", [attacks.reflect(MOS), attacks.target_free(), attacks.away()])
def test_honest_models_pass(score_fn, direction):
    found = check(score_fn, direction)
    assert list(found) == NAMES
    for name in ALWAYS_RUN:
        assert found[name].verdict == "passed", found[name]
    assert found[trust.TRANSFER].verdict == found[trust.ADAPTIVE].verdict == "not run"


@pytest.mark.slow
def test_numbers_of_a_linear_model():
    images = 0.4 + 0.2 * IMAGES  # far enough from 0 and 1 for the radius
    found = trust.check(
        linear, images, direction=attacks.up(), radius=RADIUS, steps=4, queries=60, key=jax.random.key(0)
    )
    found = {each.name: each.numbers for each in found}
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


def test_a_model_whose_gradient_is_stopped_is_flagged():
    """The defect that the checks exist for: the scores are those of an honest model, the gradient is gone."""
    found = check(stopped)
    for name in (trust.ZERO_GRADIENTS, trust.RADIUS, trust.UNBOUNDED, trust.STEPS, trust.ITERATED, trust.BLACK_BOX):
        assert found[name].verdict == "suspicious", found[name]
    assert found[trust.ZERO_GRADIENTS].numbers == {"mean share": 1, "largest share": 1, "blind images": 8}
    assert "None of these attacks moves any score" in found[trust.RADIUS].explanation


@pytest.mark.parametrize("score_fn", [staircase, quantised])
def test_staircases_are_flagged(score_fn):
    found = check(score_fn)
    for name in (trust.ZERO_GRADIENTS, trust.UNBOUNDED, trust.BLACK_BOX):
        assert found[name].verdict == "suspicious", found[name]


def test_a_useless_gradient_is_flagged_although_it_is_not_zero():
    found = check(shattered, queries=200)
    assert found[trust.ZERO_GRADIENTS].verdict == "passed"
    assert found[trust.UNBOUNDED].verdict == found[trust.BLACK_BOX].verdict == "suspicious"


def test_transfer_from_an_honest_model_gives_a_masked_one_away():
    on_another = attacks.pgd(smooth, IMAGES, radius=RADIUS, direction=attacks.reflect(MOS)).images
    assert check(stopped, transfer_images=on_another, queries=0)[trust.TRANSFER].verdict == "suspicious"
    found = check(smooth, transfer_images=np.asarray(on_another), queries=0)
    assert found[trust.TRANSFER].verdict == "passed"
    assert found[trust.BLACK_BOX].verdict == "not run"
    unrelated = attacks.pgd(linear, IMAGES, radius=RADIUS, direction=attacks.reflect(MOS)).images
    assert check(smooth, transfer_images=unrelated, queries=0)[trust.TRANSFER].verdict == "passed"


def test_adaptive_attack_gives_a_masked_model_away():
    found = check(staircase, adaptive_score_fn=smooth, queries=0)
    assert found[trust.ADAPTIVE].verdict == "suspicious"
    assert found[trust.ADAPTIVE].numbers["adaptive"] > 0.1 and found[trust.ADAPTIVE].numbers["white box"] == 0
    assert check(smooth, adaptive_score_fn=smooth, queries=0)[trust.ADAPTIVE].verdict == "passed"


def test_a_constant_score_gets_no_clean_bill_of_health():
    found = check(lambda images: 0 * images[:, 0, 0, 0] + 7)
    for name in (trust.ZERO_GRADIENTS, trust.RADIUS, trust.UNBOUNDED, trust.STEPS, trust.ITERATED):
        assert found[name].verdict == "suspicious"


def test_scores_that_are_not_numbers_are_suspicious():
    found = check(
        lambda images: jnp.where(jnp.mean(images, axis=(1, 2, 3)) > 0.52, jnp.nan, linear(images)),
        attacks.up(),
        queries=0,
    )
    assert found[trust.UNBOUNDED].verdict == "suspicious" and "not finite" in found[trust.UNBOUNDED].explanation


def test_order_is_judged_by_margin_and_standard_error():
    judge = trust._Judge(np.array([40.0, 60.0]))  # a thousandth of their standard deviation: 0.01
    strong = np.array([10.0, 12.0, 8.0, 10.0])
    assert not judge.stronger(strong * 1.04, strong), "less than 5 %"
    assert judge.stronger(strong * 1.2, strong)
    assert not judge.stronger(strong + np.array([8.0, -3.0, -2.0, 1.0]), strong), "one image does not decide"
    assert judge.stronger(np.full(4, 0.02), np.zeros(4)) and not judge.stronger(np.full(4, 0.005), np.zeros(4))
    assert judge.stronger(np.array([2.0]), np.array([1.0])), "a single image has no standard error"


@pytest.mark.slow
def test_one_image_and_large_radius():
    found = trust.check(
        linear, IMAGES[:1], direction=attacks.up(), radius=0.6, steps=2, queries=20, key=jax.random.key(0)
    )
    assert {each.verdict for each in found[:6]} == {"passed"}
    assert list(found[1].numbers) == ["PGD at 76.5/255", "PGD at 153/255", "PGD at 255/255"]


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
