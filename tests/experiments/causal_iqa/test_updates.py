"""CIS, CIP, MetaIQA and ERM against the printed algorithms in NumPy, and their properties."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cprl_jax.config.fields import UPDATES as NAMES
from cprl_jax.experiments.causal_iqa import sampling
from cprl_jax.experiments.causal_iqa.learner import Learner, subset_weights
from cprl_jax.experiments.causal_iqa.updates import METRICS, UPDATES, cip, cis, compile_step, first_state
from cprl_jax.models.common import Dropout, Standardization, batch_norm, linear
from cprl_jax.runtime import parallel
from cprl_jax.training.optimizers import two_rates

RATES = {"adam": (1e-2, 3e-2), "sgd": (1e-6, 3e-6)}  # of backbone and head; SGD's steps grow with the gradient
B1, B2 = 0.9, 0.9999
HIDDEN, GROUPS, BATCH = 5, 4, 6
DECAY = 0.5


class TwoLayers(nn.Module):
    """score = 50 + 10 (tanh(x U + u) V + v), in the precision of its inputs."""

    @nn.compact
    def __call__(self, images, train=False):
        x = images.reshape(images.shape[0], -1)
        hidden = jnp.tanh(nn.Dense(HIDDEN, name="backbone", param_dtype=images.dtype)(x))
        return 50 + 10 * nn.Dense(1, name="head", param_dtype=images.dtype)(hidden)[:, 0]


class Small(nn.Module):
    """Batch normalisation and dropout, as in the networks of the package."""

    axis_name: str | None = None
    dropout: float = 0.3

    @nn.compact
    def __call__(self, images, train=False):
        x = nn.Dense(4, use_bias=False, name="backbone")(images.reshape(images.shape[0], -1))
        x = batch_norm(x, name="norm", train=train, dtype=jnp.float32, axis_name=self.axis_name)
        x = Dropout(self.dropout, self.axis_name)(nn.silu(x), train)
        return 50 + 20 * linear(x, 1, name="head")[:, 0]


def make_batch(seed=0, groups=GROUPS, batch=BATCH, size=3, dtype=np.float64):
    generator = np.random.default_rng(seed)
    weight = generator.uniform(0.1, 1, (groups, batch))
    weight[0, -2:] = 0  # padding
    return {
        "image": generator.uniform(0, 1, (groups, batch, size, size, 3)).astype(dtype),
        "mos": generator.uniform(0, 100, (groups, batch)).astype(dtype),
        "weight": weight.astype(dtype),
    }


# ------------------------------------------------------------------------------------- the algorithms in NumPy


def gradient(params, images, mos, weights, loss):
    """Of sum_r weights_r loss(f(x_r), m_r)."""
    x = images.reshape(len(images), -1)
    hidden = np.tanh(x @ params["U"] + params["u"])
    error = 50 + 10 * (hidden @ params["V"] + params["v"])[:, 0] - mos
    slope = (weights * (np.sign(error) if loss == "l1" else 2 * error) * 10)[:, None]
    before = slope * params["V"].T * (1 - hidden**2)
    return {"V": hidden.T @ slope, "v": slope.sum(0), "U": x.T @ before, "u": before.sum(0)}


def make_inner(kind):
    backbone, head = RATES[kind]
    return two_rates(kind, backbone=backbone, head=head, b2=B2)


def flat(params):
    names = {"U": ("backbone", "kernel"), "u": ("backbone", "bias"), "V": ("head", "kernel"), "v": ("head", "bias")}
    return {name: np.asarray(params[layer][leaf]) for name, (layer, leaf) in names.items()}


class Adam:
    def __init__(self, rates):
        self.rates, self.t, self.m, self.v = rates, 0, 0.0, 0.0

    def step(self, params, gradients):
        self.t += 1
        self.m = {n: B1 * (self.m[n] if self.t > 1 else 0) + (1 - B1) * g for n, g in gradients.items()}
        self.v = {n: B2 * (self.v[n] if self.t > 1 else 0) + (1 - B2) * g**2 for n, g in gradients.items()}
        return {
            n: params[n] - self.rates[n] * self.m[n] / (1 - B1**self.t) / (np.sqrt(self.v[n] / (1 - B2**self.t)) + 1e-8)
            for n in params
        }


class Sgd:
    def __init__(self, rates):
        self.rates = rates

    def step(self, params, gradients):
        return {n: params[n] - self.rates[n] * gradients[n] for n in params}


def literal(update, theta, batches, *, inner, inner_state, meta, rate, loss):
    """All meta steps, as the papers print them (with the sign of the meta step that goes towards phi).

    The learning rates of the inner steps decay by DECAY a meta step.
    """
    rates = dict(zip("UuVv", np.repeat(RATES[inner], 2), strict=True))
    make = functools.partial({"adam": Adam, "sgd": Sgd}[inner], rates)
    task_optimizer, meta_optimizer = make(), Adam(dict.fromkeys(theta, rate))

    def eq6(params, batch, j):
        w = batch["weight"][j]
        return gradient(params, batch["image"][j], batch["mos"][j], w / w.sum(), loss)

    for step, batch in enumerate(batches):
        rates |= {n: DECAY**step * value for n, value in zip("UuVv", np.repeat(RATES[inner], 2), strict=True)}
        groups = range(len(batch["mos"]))
        if update == "erm":
            for j in groups:
                theta = task_optimizer.step(theta, eq6(theta, batch, j))
            continue
        if inner_state == "reset":
            task_optimizer = make()
        phi = theta
        if update == "cis":
            for j in groups:
                phi = task_optimizer.step(phi, eq6(phi, batch, j))
        elif update == "cip":
            each = [eq6(phi, batch, j) for j in groups]
            phi = task_optimizer.step(phi, {n: sum(g[n] for g in each) / len(each) for n in phi})
        else:
            ends = []
            for j in groups[::2]:
                if inner_state == "reset":
                    task_optimizer = make()
                phi = task_optimizer.step(theta, eq6(theta, batch, j))
                ends.append(task_optimizer.step(phi, eq6(phi, batch, j + 1)))
            phi = {n: theta[n] + sum(end[n] - theta[n] for end in ends) / len(ends) for n in theta}
        if meta == "adam":
            theta = meta_optimizer.step(theta, {n: theta[n] - phi[n] for n in theta})
        else:
            theta = {n: theta[n] + rate * (phi[n] - theta[n]) for n in theta}
    return theta


CASES = [
    (update, *rest)
    for update in NAMES
    for rest in (
        ("adam", "kept", "interpolation", "l1"),
        ("adam", "reset", "adam", "l1"),
        ("sgd", "kept", "adam", "l2"),
    )
    if update in ("erm", "cis") or rest[0] == "adam"
]


@pytest.mark.parametrize(("update", "inner", "inner_state", "meta", "loss"), CASES)
def test_three_meta_steps_are_those_of_the_algorithm_in_float64(update, inner, inner_state, meta, loss):
    """ERM has no meta step and no state to reset, whatever the others are told."""
    batches = [make_batch(seed) for seed in range(3)]
    # float64: Adam's 1 - 0.9999^t has three digits in float32.
    with jax.enable_x64(True):
        learner = Learner(
            TwoLayers(),
            make_inner(inner),
            optax.adam(0.3, b2=B2) if meta == "adam" else optax.sgd(0.3),
            loss=loss,
            inner_state=inner_state,
            schedule=optax.exponential_decay(1.0, 1, DECAY),
        )
        state = start_of(learner)
        start = flat(state.params)
        step = compile_step(UPDATES[update](learner), mapped=False, loop="device")
        for batch in batches:
            state, metrics = step(state, batch)
        result = flat(state.params)
    expected = literal(update, start, batches, inner=inner, inner_state=inner_state, meta=meta, rate=0.3, loss=loss)
    assert state.step == 3 and {*metrics} == {*METRICS} and np.isfinite(metrics["loss"])
    for name, values in result.items():
        assert values.dtype == np.float64
        assert np.abs(expected[name] - start[name]).max() > 1e-4
        np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-8, err_msg=name)


# ------------------------------------------------------------------------------------- properties


def small_learner(axis_name=None, **options):
    return Learner(Small(axis_name), make_inner("adam"), optax.sgd(0.5), axis_name=axis_name, **options)


def small_batch(seed=0, groups=GROUPS):
    batch = make_batch(seed, groups=groups, dtype=np.float32)
    return {**batch, "image": np.round(255 * batch["image"]).astype(np.uint8)}


@pytest.fixture(scope="module")
def small_variables():
    generator = np.random.default_rng(2)
    shapes = jax.eval_shape(Small().init, jax.random.key(0), jnp.zeros((1, 3, 3, 3)))
    return jax.tree.map(lambda leaf: jnp.asarray(generator.normal(0.5, 0.3, leaf.shape), jnp.float32), shapes)


def start_of(learner):
    """The state of a learner of `TwoLayers` before its first step."""
    generator = np.random.default_rng(1)
    params = {
        "backbone": {"kernel": generator.normal(0, 0.2, (27, HIDDEN)), "bias": generator.normal(0, 0.2, HIDDEN)},
        "head": {"kernel": generator.normal(0, 0.5, (HIDDEN, 1)), "bias": np.zeros(1)},
    }
    return first_state({"params": jax.tree.map(jnp.asarray, params)}, learner)


def assert_close(a, b, *, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=atol), a, b)


@functools.cache
def on_one_device(update, **options):
    return compile_step(UPDATES[update](small_learner(**options)), mapped=False, loop="device")


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("update", "loop", "batch_norm"),
    [
        ("cis", "host", "running"),
        ("cis", "device", "running"),
        ("cis", "host", "batch"),
        ("cip", "auto", "running"),
        ("erm", "auto", "batch"),
    ],
)
def test_two_devices_with_either_loop_give_the_numbers_of_one(update, loop, batch_norm, small_variables):
    """With dropout and batch normalisation; each of the two has half of each group."""
    assert parallel.local_device_count() == 2
    results = []
    shared = small_learner(axis_name=parallel.AXIS, batch_norm=batch_norm)
    two = compile_step(UPDATES[update](shared), loop=loop)
    for step, place in ((on_one_device(update, batch_norm=batch_norm), dict), (two, sampling.shard)):
        state = first_state(small_variables, shared)
        for seed in range(2):
            state, metrics = step(state, place(small_batch(seed)))
        results.append(jax.tree.map(np.asarray, (state.params, state.batch_stats, metrics)))
    assert_close(results[1][:2], results[0][:2], atol=2e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3), results[1][2], results[0][2])


def test_a_loop_in_python_gives_the_numbers_of_a_device_loop():
    learner, results = Learner(TwoLayers(), make_inner("adam"), optax.sgd(0.5)), []
    for loop in ("host", "device"):
        state, step = start_of(learner), compile_step(cis(learner), mapped=False, loop=loop)
        for seed in range(2):
            state, metrics = step(state, make_batch(seed, dtype=np.float32))
        results.append((state.params, metrics))
    assert_close(*results, atol=1e-5)


def test_the_loop_suits_the_platform_that_runs_it(monkeypatch):
    update, asked = cis(Learner(TwoLayers(), make_inner("adam"), optax.sgd(0.5))), []

    def in_one_program(platform, mapped):
        monkeypatch.setattr(parallel, "platform", lambda *, mapped: asked.append(mapped) or platform)
        return hasattr(compile_step(update, mapped=mapped), "lower")

    assert [in_one_program(platform, mapped=False) for platform in ("cpu", "gpu", "tpu")] == [False, True, True]
    in_one_program("cpu", mapped=True)
    assert asked == [False, False, False, True]


def test_with_one_subset_cis_and_cip_coincide():
    learner = Learner(TwoLayers(), make_inner("adam"), optax.adam(0.01, b2=B2))
    results = []
    for update in (cis, cip):
        state, step = start_of(learner), compile_step(update(learner), mapped=False)
        for seed in range(2):
            state, _ = step(state, make_batch(seed, groups=1, dtype=np.float32))
        results.append(state.params)
    assert_close(*results, atol=1e-6)


@functools.cache
def one_step_of_cip():
    """The state before it, `batch -> inner` and `inner -> state, metrics`, without a meta optimiser."""
    learner = Learner(TwoLayers(), make_inner("adam"), None)
    state, update = start_of(learner), cip(learner)
    step = jax.jit(update.step)
    return state, lambda batch: step(state, update.begin(state, batch), batch), functools.partial(update.finish, state)


def test_without_a_meta_optimiser_theta_becomes_phi_exactly():
    state, step, finish = one_step_of_cip()
    inner = step(make_batch(dtype=np.float32))
    new, metrics = finish(inner)
    jax.tree.map(np.testing.assert_array_equal, new.params, inner.params)
    assert metrics["displacement"] > 0 and new.step == state.step + 1


def test_an_image_of_weight_0_changes_nothing():
    """Without batch normalisation, which sees it."""
    batch = make_batch(dtype=np.float32)
    other = {**batch, "image": batch["image"].copy(), "mos": batch["mos"].copy()}
    other["image"][0, -2:], other["mos"][0, -2:] = 0.5, 3.0
    _, step, _ = one_step_of_cip()
    assert_close(step(batch).params, step(other).params, atol=0)


def test_a_subset_without_weight_shows_in_the_loss():
    batch = make_batch(dtype=np.float32)
    batch["weight"][2] = 0
    assert np.isnan(one_step_of_cip()[1](batch).loss)


def test_running_averages_of_batches_make_one_step_towards_the_mean_of_all_subsets(small_variables):
    """Without dropout; each inner step sees its batch with the parameters that the steps before it left."""
    learner = dataclasses.replace(small_learner(batch_norm="batch"), module=Small(dropout=0.0))
    state, batch = first_state(small_variables, learner), small_batch()
    update = cis(learner)
    step, inner, means = jax.jit(update.step), update.begin(state, batch), []
    for group in range(GROUPS):
        one = {name: values[group] for name, values in batch.items()}
        pixels = one["image"].reshape(BATCH, -1) / np.float32(255)
        means.append(np.mean(pixels @ np.asarray(inner.params["backbone"]["kernel"]), axis=0))
        inner = step(state, inner, one)
    new, _ = jax.jit(update.finish)(state, inner)
    expected = 0.9 * state.batch_stats["norm"]["mean"] + 0.1 * np.mean(means, axis=0)
    np.testing.assert_allclose(new.batch_stats["norm"]["mean"], expected, atol=1e-6)


def test_inner_steps_normalise_by_the_averages_of_all_subsets(small_variables):
    """Without dropout, against NumPy: the averages of two meta steps, and the loss that an inner step has with them."""
    learner = dataclasses.replace(small_learner(), module=Small(dropout=0.0))
    state, update = first_state(small_variables, learner), cis(learner)
    begin, step, finish = jax.jit(update.begin), jax.jit(update.step), jax.jit(update.finish)
    means, variances = [], []
    for seed in range(2):
        batch, params = small_batch(seed), state.params
        before = batch["image"].reshape(GROUPS * BATCH, -1) / np.float32(255) @ np.asarray(params["backbone"]["kernel"])
        means.append(before.mean(axis=0))
        variances.append(before.var(axis=0))
        inner = begin(state, batch)
        norm = params["norm"]
        x = (before[:BATCH] - np.mean(means, axis=0)) / np.sqrt(np.mean(variances, axis=0) + 1e-5)
        x = x * np.asarray(norm["scale"]) + np.asarray(norm["bias"])
        hidden = x / (1 + np.exp(-x))
        scores = 50 + 20 * (hidden @ np.asarray(params["head"]["kernel"]) + np.asarray(params["head"]["bias"]))[:, 0]
        weight = batch["weight"][0] / batch["weight"][0].sum()
        for group in range(GROUPS):
            inner = step(state, inner, {name: values[group] for name, values in batch.items()})
            if group == 0:
                np.testing.assert_allclose(inner.loss, weight @ np.abs(scores - batch["mos"][0]), rtol=1e-5)
        state, _ = finish(state, inner)
        np.testing.assert_allclose(state.batch_stats["norm"]["mean"], np.mean(means, axis=0), rtol=1e-5)
        np.testing.assert_allclose(state.batch_stats["norm"]["var"], np.mean(variances, axis=0), rtol=1e-5)
    late = dataclasses.replace(state, step=jnp.asarray(50))
    after = begin(late, small_batch(2)).batch_stats["norm"]["mean"]
    before = small_batch(2)["image"].reshape(GROUPS * BATCH, -1) / np.float32(255)
    now = np.mean(before @ np.asarray(state.params["backbone"]["kernel"]), axis=0)
    np.testing.assert_allclose(after, 0.9 * state.batch_stats["norm"]["mean"] + 0.1 * now, rtol=1e-5)


@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_layers_with_statistics_of_their_own_see_one_batch_a_meta_step(statistics):
    class Both(nn.Module):
        @nn.compact
        def __call__(self, images, train=False):
            x = nn.Dense(4, name="backbone")(images.reshape(images.shape[0], -1))
            x = batch_norm(x, name="norm", train=train, dtype=jnp.float32, axis_name=None)
            return linear(Standardization(name="standardization")(x, train), 1, name="head")[:, 0]

    learner = Learner(Both(), make_inner("adam"), optax.sgd(0.5), batch_norm=statistics)
    state = first_state(Both().init(jax.random.key(0), jnp.zeros((1, 3, 3, 3))), learner)
    step = compile_step(cis(learner), mapped=False, loop="device")
    for seed in range(2):
        state, _ = step(state, small_batch(seed))
    assert state.batch_stats["standardization"]["count"] == 2


def test_a_network_without_batch_normalisation_is_not_evaluated_for_its_averages():
    learner = Learner(TwoLayers(), make_inner("adam"), optax.sgd(0.5))
    program = jax.make_jaxpr(cis(learner).begin)(start_of(learner), make_batch(dtype=np.float32))
    assert "dot_general" not in str(program)


def test_the_schedule_goes_on_when_the_inner_state_is_reset():
    halved = optax.exponential_decay(1.0, 1, 0.5, staircase=True)
    learner = Learner(TwoLayers(), make_inner("adam"), None, inner_state="reset", schedule=halved)
    state = start_of(learner)
    step, moved = compile_step(cip(learner), mapped=False), []
    for _ in range(3):
        new, _ = step(state, make_batch(dtype=np.float32))
        moved.append(np.abs(np.asarray(new.params["head"]["bias"] - state.params["head"]["bias"]))[0])
        state = new
    # The first step of an Adam that begins anew is the learning rate.
    np.testing.assert_allclose(moved, 3e-2 * np.array([1, 0.5, 0.25]), rtol=2e-3)


def test_weights_of_eq_6():
    weight = jnp.array([[0.9, 0.6, 0.0], [1.0, 1.0, 2.0]])
    np.testing.assert_allclose(subset_weights(weight), [[0.6, 0.4, 0.0], [0.25, 0.25, 0.5]], rtol=1e-6)


def test_other_batches_of_the_same_size_compile_nothing():
    compilations = []

    class Counting(TwoLayers):
        @nn.compact
        def __call__(self, images, train=False):
            compilations.append(images.shape)
            return TwoLayers.__call__(self, images, train)

    learner = Learner(Counting(), make_inner("adam"), optax.sgd(0.5), batch_norm="batch")
    state = start_of(learner)
    step = compile_step(cis(learner), mapped=False, loop="host")
    for seed, groups in enumerate((2, 4, 3)):  # not even another number of subsets
        state, _ = step(state, make_batch(seed, groups=groups, dtype=np.float32))
    assert set(compilations) == {(BATCH, 3, 3, 3)} and len(compilations) <= 2  # the network and its gradient


def test_options_that_are_not_allowed():
    module, inner = TwoLayers(), make_inner("adam")
    for wrong, message in (
        (lambda: Learner(module, inner, None, loss="emd"), "loss is 'emd'; allowed: l1, l2"),
        (lambda: Learner(module, inner, None, inner_state="lost"), "allowed: kept, reset"),
        (lambda: Learner(module, inner, None, batch_norm="group"), "allowed: running, batch"),
        (lambda: compile_step(cis(Learner(module, inner, None)), loop="gpu"), "auto, host, device"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


def test_the_updates_are_those_of_the_configuration():
    assert tuple(UPDATES) == NAMES
