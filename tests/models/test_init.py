"""Networks made from a configuration, and their score functions."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging

from cprl_jax import models
from cprl_jax.config.field import Field
from cprl_jax.models.fitted import FittedNetwork
from cprl_jax.models.network import ScoreNetwork
from cprl_jax.runtime.errors import UserError

LARGE = (
    "dbcnn",
    "efficientnet_lite",
    "hyperiqa",
    "metaiqa",
    "mobilenet_v2",
    "nima",
    "paq2piq",
    "resnet",
    "unique",
    "wadiqam",
)  # seconds to trace


def test_networks_take_the_configuration(config_model):
    for name in ("hyperiqa", "resnet", "squeezenet", "compact", "ma19"):
        config = config_model(name, backbone="resnet34", dtype="bfloat16", dropout=0.25, score_mean=50.0)
        config.sort_mask.rate = 0.1
        module = models.create(config, axis_name="batch")
        assert module.dtype == jnp.bfloat16 and module.dropout == 0.25 and module.axis_name == "batch"
        assert (module.score_mean, module.score_std, module.sort_mask.rate) == (50.0, 1.0, 0.1)
        assert getattr(module, "backbone", "resnet34") == "resnet34"
        again = models.create(config, axis_name="batch")
        assert module == again and hash(module) == hash(again) and module != models.create(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "squeezenat"}, r"model.name is 'squeezenat' \(did you mean 'squeezenet'\?\); allowed: brisque,"),
        ({"backbone": "resnet101"}, r"backbone is 'resnet101' \(did you mean 'resnet1?.*allowed for resnet: resnet50,"),
        ({"dtype": "float16"}, r"config.model.dtype is 'float16' \(did you mean 'bfloat16'\?\); allowed: float32"),
        ({"dropout": 1.0}, "config.model.dropout is 1.0"),
        ({"score_std": 0.0}, "config.model.score_std is 0.0"),
        ({"sort_mask": {"rate": 1.0}}, r"config.model.sort_mask: rate must be in \[0, 1\)"),
        ({"sort_mask": {"selection": "slow"}}, "config.model.sort_mask: selection 'slow' is not one of fast, top_k"),
        ({"sort_mask": {"stages": (2, 5)}}, "sort_mask.stages names 5; the stages of resnet are 0, 1, 2, 3, 4"),
    ],
)
def test_refusals_name_the_field(config_model, changes, message):
    with pytest.raises(UserError, match=message):
        models.create(config_model(**changes))


@pytest.mark.slow
def test_score_functions_of_equal_modules_share_their_compiled_code(config_model, getkey, random_variables):
    config = config_model("squeezenet")
    variables = random_variables(models.create(config))
    images = jax.random.uniform(getkey(), (2, 32, 32, 3))
    traces = []

    @jax.jit
    def through_jit(score_fn, images):
        traces.append(1)
        return score_fn(images)

    first = models.score_fn(models.create(config), variables)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, variables)
    second = models.score_fn(models.create(config), doubled)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    one, two = through_jit(first, images), through_jit(second, images)
    assert len(traces) == 1 and not np.allclose(one, two)
    expected = jax.jit(lambda images: models.create(config).apply(variables, images))(images)
    np.testing.assert_allclose(one, expected, rtol=1e-4)
    through_jit(models.score_fn(models.create(config_model("squeezenet", score_mean=1.0)), variables), images)
    assert len(traces) == 2


@pytest.mark.slow
def test_trunks_are_named_backbone_and_masks_do_not_change_the_variables(config_model):
    for name, size in (("resnet", 32), ("squeezenet", 32), ("hyperiqa", 224), ("compact", 32), ("ma19", 32)):
        plain, masked = config_model(name), config_model(name)
        masked.sort_mask.update(rate=0.1, min_channels=16, stages=(1, 2, 3))
        shapes, masked_shapes = (
            jax.eval_shape(lambda c=c, s=size: models.initialize(models.create(c), jax.random.key(0), s))
            for c in (plain, masked)
        )
        assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, masked_shapes)
        assert "backbone" in shapes["params"] and len(shapes["params"]) > 1


def test_masked_convolutions_are_those_of_the_placement(config_model):
    config = config_model("resnet")
    config.sort_mask.rate = 0.1
    # Stages 2 and 3, 128 channels or more: all but the first convolution of stage 2, which reads 64 channels.
    expected = [
        "layer2_0/conv2",
        "layer2_1/conv1",
        "layer2_1/conv2",
        "layer3_0/conv1",
        "layer3_0/conv2",
        "layer3_1/conv1",
        "layer3_1/conv2",
    ]
    expected = [f"backbone/{name}" for name in expected]
    assert models.masked_convolutions(models.create(config), 32) == expected
    config = config_model("squeezenet", sort_mask={"rate": 0.1, "min_channels": 64, "stages": (3,)})
    expected = ["backbone/fire8/expand3x3", "backbone/fire9/expand3x3"]
    assert models.masked_convolutions(models.create(config), 32) == expected
    assert models.masked_convolutions(models.create(config_model()), 32) == []


def test_a_placement_that_covers_nothing_is_warned_of(config_model, monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *values: warnings.append(message % values))
    config = config_model("squeezenet", score_mean=12.0)  # no other test has this module: it warns only once
    jax.eval_shape(lambda: models.initialize(models.create(config), jax.random.key(0), 32))
    assert warnings == []
    config.sort_mask.rate = 0.1
    for _ in range(2):
        jax.eval_shape(lambda: models.initialize(models.create(config), jax.random.key(0), 32))
    assert len(warnings) == 1 and "min_channels" in warnings[0]


@pytest.mark.slow
def test_masks_are_random_in_training_and_sorted_in_evaluation(config_model, getkey, random_variables):
    config = config_model("squeezenet")
    config.sort_mask.update(rate=0.3, min_channels=64)
    module = models.create(config)
    variables = random_variables(module)
    images = jax.random.uniform(getkey(), (2, 32, 32, 3))

    @jax.jit
    def train(key):
        return module.apply(variables, images, train=True, rngs={"mask": key}, mutable=["batch_stats"])[0]

    first, second = getkey(), getkey()
    assert not np.array_equal(train(first), train(second))
    np.testing.assert_array_equal(train(first), train(first))
    evaluate = jax.jit(models.score_fn(module, variables))
    np.testing.assert_array_equal(evaluate(images), evaluate(images))
    plain = jax.jit(models.score_fn(models.create(config_model("squeezenet")), variables))
    assert not np.allclose(evaluate(images), plain(images), rtol=1e-5)


@pytest.mark.slow
def test_score_functions_through_the_mask(config_model, getkey, random_variables):
    config = config_model("compact")
    config.sort_mask.update(rate=0.5, min_channels=16)
    module = models.create(config)
    variables = random_variables(module)
    images = jax.random.uniform(getkey(), (2, 16, 16, 3))

    @jax.jit
    def scores(score_fn, *arguments):
        return score_fn(*arguments, images)

    gradients = jax.jit(jax.grad(lambda images, score_fn: jnp.sum(score_fn(images))))

    plain = models.score_fn(module, variables)
    np.testing.assert_array_equal(scores(models.score_fn(module, variables, masks="sorted")), scores(plain))
    through = models.score_fn(module, variables, masks="straight_through")
    np.testing.assert_array_equal(scores(through), scores(plain))
    gradient, expected = gradients(images, through), gradients(images, plain)
    assert np.all(np.isfinite(gradient)) and not np.allclose(gradient, expected, rtol=0.1)

    stochastic, key = models.score_fn(module, variables, masks="random"), getkey()
    bound = models.score_fn(module, variables, masks="random", key=key)
    np.testing.assert_array_equal(scores(stochastic, key), scores(bound))
    assert not np.array_equal(scores(stochastic, getkey()), scores(bound))
    for masks in ("straight_through", "random"):
        first, second = (models.score_fn(models.create(config), variables, masks=masks) for _ in range(2))
        assert first.func is second.func  # so that they share their compiled code


def test_every_file_of_a_network_declares_it(config_model):
    folder = Path(models.__file__).parent
    declaring = {path.stem for path in folder.glob("*.py") if "\nNETWORK = Network(" in path.read_text()}
    assert declaring >= {"compact", "hyperiqa", "ma19", "metaiqa", "resnet", "squeezenet"}
    assert len(models.NETWORKS) == len(declaring)
    for name, network in models.NETWORKS.items():
        assert network.name == name and network.title and network.source and issubclass(network.module, ScoreNetwork)
        assert all(published.source and published.licence for published in network.weights)
        assert network.weights or not (network.torch_names or network.imagenet), "of whom are they?"
        module = models.create(config_model(name, backbone="", sort_mask={"stages": ()}))
        assert type(module) is network.module
        if network.variants:
            assert module.backbone == network.variants[0] == network.variant("")
        assert set(network.settings) <= {field.name for field in dataclasses.fields(network.module)}
        for setting, field in network.settings.items():
            field.check(setting, field.default)
        assert set(network.imagenet) <= {*network.variants, *([] if network.variants else [""])}
        assert set(network.sort_mask.stages) <= set(network.stages)
        if network.fit is not None:
            assert not network.stages and network.module.__base__ is FittedNetwork
            continue
        masked = config_model(name, backbone="", sort_mask={"rate": 0.1, "stages": (), "min_channels": 0})
        assert models.masked_convolutions(models.create(masked), 224)  # the declared place is one


def test_settings_of_a_network(config_model, monkeypatch):
    settings = {"pooled_stages": Field((2, 3), choices=(0, 1, 2, 3))}
    network = dataclasses.replace(models.NETWORKS["squeezenet"], settings=settings)
    monkeypatch.setitem(models.NETWORKS, "squeezenet", network)
    assert models.create(config_model("squeezenet")).pooled_stages == (2, 3)
    config = config_model("squeezenet", squeezenet={"pooled_stages": [3]})  # a list, as in config.json
    assert models.create(config).pooled_stages == (3,)
    config.squeezenet.pooled_stages = (4,)
    with pytest.raises(UserError, match="config.model.squeezenet.pooled_stages names 4; allowed: 0, 1, 2, 3"):
        models.create(config)


@pytest.mark.parametrize("masks", ["sorted", "straight_through"])
def test_scores_are_computed_in_float32(config_model, getkey, random_variables, masks):
    """Small changes of an image would be rounded away in bfloat16."""
    exact, coarse = (models.create(config_model("compact", dtype=dtype)) for dtype in ("float32", "bfloat16"))
    variables, images = random_variables(exact, 16), jax.random.uniform(getkey(), (2, 16, 16, 3))
    expected, scores, rounded = (
        jax.jit(models.score_fn(module, variables, masks=masks, **options))(images)
        for module, options in ((exact, {}), (coarse, {}), (coarse, {"dtype": "bfloat16"}))
    )
    np.testing.assert_array_equal(scores, expected)
    assert not np.array_equal(rounded, expected)
    assert models.score_fn(coarse, variables).func is models.score_fn(exact, variables).func


def test_score_functions_refuse(config_model, random_variables):
    module = models.create(config_model("compact"))
    with pytest.raises(ValueError, match="'none' is not one of sorted, straight_through, random"):
        models.score_fn(module, {}, masks="none")
    with pytest.raises(ValueError, match="key is for masks='random'"):
        models.score_fn(module, {}, key=jax.random.key(0))
    with pytest.raises(ValueError, match="Dense has no SortMask: masks must be 'sorted', got 'random'"):
        models.score_fn(nn.Dense(1), {}, masks="random")


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in models.NETWORKS]
)
def test_networks_and_their_gradients_take_strict_types(config_model, name):
    """Traced only: where types would be promoted is known before anything is computed."""
    network = models.NETWORKS[name]
    config = config_model(name, backbone=next(iter(network.variants or ("",))))
    config.sort_mask.update(rate=0.1, min_channels=0, stages=())
    module = models.create(config)
    size = {"hyperiqa": 224, "metaiqa": 224, "niqe": 96}.get(name, 64)

    def gradients(variables, images):
        def total(variables, images, train):
            streams = dict.fromkeys(("mask", "dropout"), jax.random.key(0))
            return jnp.sum(module.apply(variables, images, train=train, mutable=["batch_stats"], rngs=streams)[0])

        of_image = jax.grad(lambda x: jnp.sum(models.score_fn(module, variables)(x)))(images)
        return of_image, jax.grad(total)(variables, images, True)

    images = jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32)
    with jax.numpy_dtype_promotion("strict"):
        variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, 3))))
        assert jax.eval_shape(gradients, variables, images)[0].dtype == jnp.float32
