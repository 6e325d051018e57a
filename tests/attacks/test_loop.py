import dataclasses
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.tree_util import Partial

from cprl_jax.attacks import loop
from cprl_jax.attacks.loop import LookAndMove, as_pytree, device_loop, iterate, platform_of


def step(kernel, index, carry):
    """An ascent with the gradient of a convolution, as an attack's, whose length depends on the index."""

    def score(images):
        hidden = jax.lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.tanh(hidden))

    images, total = carry
    value, gradient = jax.value_and_grad(score)(images)
    return images + gradient / (100 + index), total + value


def problem():
    rng = np.random.default_rng(0)
    kernel, images = rng.normal(size=(3, 3, 3, 4)), rng.random((2, 6, 6, 3))
    return Partial(step, jnp.asarray(kernel, jnp.float32)), (jnp.asarray(images, jnp.float32), jnp.float32(0))


@pytest.mark.parametrize("steps", [1, 5, 16, 17])
def test_all_drivers_give_the_same_numbers(steps):
    ascent, carry = problem()
    host = iterate(ascent, carry, steps=steps)
    traced = jax.jit(lambda ascent, carry: iterate(ascent, carry, steps=steps))(ascent, carry)
    looped = device_loop(ascent, carry, steps=steps)
    expected = carry
    for index in range(steps):
        expected = ascent(index, expected)
    for other, tolerance in ((traced, 1e-6), (looped, 1e-6), (expected, 1e-5)):
        for a, b in zip(host, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_the_driver_is_chosen_by_platform_and_tracing(monkeypatch):
    ascent, carry = problem()
    calls = []
    monkeypatch.setattr(loop, "device_loop", lambda step, carry, steps: calls.append("loop") or carry)
    monkeypatch.setattr(loop, "loop_of_the_platform", lambda step, carry, steps: calls.append("either") or carry)
    monkeypatch.setattr(loop, "_advance", lambda step, index, carry: calls.append("step") or carry)

    def used(run):
        calls.clear()
        run()
        return list(calls)

    trace = jax.make_jaxpr(lambda carry, steps: iterate(ascent, carry, steps=steps), static_argnums=1)
    constants = jax.make_jaxpr(lambda: iterate(ascent, carry, steps=17))
    assert used(lambda: iterate(ascent, carry, steps=20)) == ["step"] * 20
    assert used(lambda: trace(carry, 16)) == ["either"]
    assert used(lambda: trace(carry, 17)) == used(constants) == ["loop"]
    monkeypatch.setattr(loop, "platform_of", lambda tree: "gpu")
    assert used(lambda: iterate(ascent, carry, steps=3)) == ["loop"]
    assert used(lambda: trace(carry, 3)) == ["either"]


def test_the_platform_is_that_of_the_arrays_or_of_the_default_device(monkeypatch):
    here = jax.device_put(jnp.ones(3), jax.devices("cpu")[1])
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert platform_of((jnp.ones(3), np.ones(3))) == "tpu"
    assert platform_of((jnp.ones(3), here)) == "cpu"
    for default in ("cpu", jax.devices("cpu")[0]):
        with jax.default_device(default):
            assert platform_of(jnp.ones(3)) == "cpu"


def test_a_program_is_made_for_the_platform_that_it_is_lowered_for():
    """Whatever the platform of the process that traces it: unrolled for a CPU, a device loop for the others."""
    ascent, carry = problem()
    run = jax.jit(lambda carry: iterate(ascent, carry, steps=3))

    def program(*platforms):
        return export.export(run, platforms=platforms)(carry)

    loops = {name: "stablehlo.while" in program(name).mlir_module() for name in ("cpu", "cuda", "tpu")}
    assert loops == {"cpu": False, "cuda": True, "tpu": True}
    for actual, expected in zip(program("cpu", "tpu").call(carry), iterate(ascent, carry, steps=3), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_a_progress_bar_is_driven_from_the_host_on_every_platform(monkeypatch, capfd):
    ascent, carry = problem()
    expected = iterate(ascent, carry, steps=4)
    monkeypatch.setattr(loop, "platform_of", lambda tree: "gpu")
    shown = iterate(ascent, carry, steps=4, progress="ascent")
    assert "ascent" in (bar := capfd.readouterr().err) and "4/4" in bar
    for a, b in zip(expected, shown, strict=True):
        np.testing.assert_array_equal(a, b)
    jax.jit(lambda carry: iterate(ascent, carry, steps=4, progress="ascent"))(carry)
    assert capfd.readouterr() == ("", "")


def test_the_step_is_traced_once_for_all_calls():
    traces = []

    def counted(kernel, index, carry):
        traces.append(1)
        return step(kernel, index, carry)

    ascent, carry = problem()
    for scale in (1.0, 2.0):
        iterate(Partial(counted, scale * ascent.args[0]), carry, steps=4)
    assert len(traces) == 1


class State(NamedTuple):
    images: jax.Array
    total: jax.Array


@pytest.mark.parametrize("in_parts", [True, False], ids=["in parts", "traced"])
def test_a_step_in_two_parts_is_the_step_and_others_that_look_alike_share_its_program(in_parts):
    kernel, images = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32)
    traces = []

    def look(kernel, images):
        traces.append(1)
        return jax.value_and_grad(lambda images: jnp.sum(jnp.tanh(images @ kernel)))(images)

    def away(scale, index, state, seen):
        return State(state.images - scale * seen[1], state.total + index * seen[0])

    def towards(scale, index, state, seen):
        return State(state.images + scale * seen[1], state.total)

    for move, scale in ((away, 0.1), (away, 0.2), (towards, 0.1)):
        step = LookAndMove(look=Partial(look, jnp.asarray(kernel)), move=Partial(move, scale))
        ascent = partial(iterate, step, steps=3)
        found = (ascent if in_parts else jax.jit(ascent))(State(jnp.asarray(images), jnp.float32(0)))
        position, total = images.astype(np.float64), 0.0
        for index in range(3):  # d tanh = 1 - tanh^2
            hidden = np.tanh(position @ kernel)
            total += index * hidden.sum() * (move is away)
            position = position + (scale if move is towards else -scale) * (1 - hidden**2) @ kernel.T
        np.testing.assert_allclose(found.images, position, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.total, total, rtol=1e-5, atol=1e-6)
    assert not in_parts or len(traces) == 1


def affine(weights, x, *, slope=1.0, flip=False, power=1):
    if flip:
        x = -x
    return slope * jnp.dot(weights, x) ** power


def test_a_function_and_its_options_survive_compilation():
    compiled = jax.jit(lambda function, x: function(x))
    weights, x = jnp.arange(3.0), jnp.ones(3)
    assert compiled(as_pytree(lambda x: jnp.sum(x)), x) == 3
    assert compiled(as_pytree(jnp.max), x) == 1
    for options, expected in [({}, 3), ({"flip": True}, -3), ({"slope": 2.0, "power": 2}, 18)]:
        assert compiled(as_pytree(Partial(affine, weights, **options)), x) == expected


def test_arrays_are_leaves_and_the_rest_is_structure():
    def structure(**options):
        return jax.tree.structure(as_pytree(Partial(affine, jnp.ones(3), **options)))

    function = as_pytree(Partial(affine, np.ones(3), slope=np.float32(2), flip=True, power=2))
    assert len(jax.tree.leaves(function)) == 2
    assert structure(slope=2.0) == structure(slope=2.0)
    assert structure(slope=2.0) != structure(slope=3.0)
    assert structure(slope=np.float32(2)) == structure(slope=jnp.float32(3))
    assert structure(power=2) != structure(power=3)
    assert structure(flip=True) != structure(flip=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A callable pytree in the manner of Equinox, with an activation function among its leaves."""

    weights: jax.Array
    activation: object

    def __call__(self, x):
        return self.activation(jnp.dot(self.weights, x))


def test_callable_pytrees_are_arguments_not_constants():
    traces = []

    def activation(x):
        traces.append(1)
        return 2 * x

    compiled = jax.jit(lambda function, x: function(x))
    for scale in (1.0, 2.0):
        assert compiled(as_pytree(Module(scale * jnp.ones(3), activation)), jnp.ones(3)) == 6 * scale
    assert len(traces) == 1


def test_what_cannot_be_recognised_again_is_refused():
    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return x

    with pytest.raises(ValueError, match="Unhashable, which is neither an array nor hashable.*Partial"):
        as_pytree(Unhashable())
