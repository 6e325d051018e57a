"""Runs a step several times, on every platform the fast way, with the same numbers.

XLA runs the gradient of a convolution inside a device loop on a CPU between 1.5 times (JAX 0.10) and more than 10 times
(0.11 and later) slower than outside of one; on a GPU or TPU the device loop spares a launch per step. So on a CPU the
loop stays in Python, around one compiled step; a program that is compiled for a CPU holds its steps one after another.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from tqdm import tqdm

# A longer loop than this is not unrolled into a caller's program: compile time grows with every copy of the network.
_LONGEST_UNROLLED = 16


def iterate(step: Partial, carry: Any, *, steps: int, progress: str = "") -> Any:
    """`carry = step(index, carry)` for index 0 .. steps - 1.

    Args:
      step: a pure function of an int32 index and the carry, as a pytree (see `as_pytree`); what it needs besides the
        carry are leaves of that pytree, so that a later call with other values compiles nothing. A `LookAndMove` is
        compiled in its two parts where the loop stays in Python.
      carry: a pytree of arrays; a step keeps its structure, shapes and dtypes.
      steps: the number of steps.
      progress: name of a progress bar over the steps; none where empty or while tracing.

    Called with concrete arrays that are on a CPU, or with a progress bar: a Python loop over the compiled step. While
    tracing, the platform that the program is lowered for decides: up to 16 steps one after another on a CPU, and one
    device loop otherwise.

    Under `shard_map`, every part of the result varies over the devices when anything in the step or the carry does.
    """
    traced = is_traced((step, carry))
    if not traced and progress:
        for index in tqdm(range(steps), desc=progress, unit="step", dynamic_ncols=True):
            # Waits, so that the bar shows what is done rather than what is asked for.
            carry = jax.block_until_ready(_advance(step, index, carry))
        return carry
    if traced:
        run = device_loop if steps > _LONGEST_UNROLLED else loop_of_the_platform
        return run(step, _varying_together(step, carry), steps=steps)
    return (in_line if platform_of((step, carry)) == "cpu" else device_loop)(step, carry, steps=steps)


def is_traced(tree: Any) -> bool:
    """Whether what is computed from the tree has no value yet: inside `jit`, `vmap`, `grad` or `shard_map`."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        return True
    return isinstance(jnp.zeros(()), jax.core.Tracer)  # inside `jit`, not even constants are computed at once


@jax.jit
def evaluate(function, *arguments):
    """The function's value; JAX's cache finds the program again by the functions in `function` and all shapes."""
    return function(*arguments)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LookAndMove:
    """A step in two parts: what a network says of the images, and what an attack makes of it.

    The network takes nearly all of the time that a step takes to compile. Where the parts are compiled one by one, all
    attacks that look in the same way share that program, whatever the rules and settings by which they move.
    """

    look: Partial  # carry.images -> seen
    move: Partial  # (index, carry, seen) -> carry

    def __call__(self, index, carry):
        return self.move(index, carry, self.look(carry.images))


def _advance(step, index, carry):
    """One compiled step."""
    if isinstance(step, LookAndMove):
        return evaluate(step.move, np.int32(index), carry, evaluate(step.look, carry.images))
    return evaluate(step, np.int32(index), carry)


def in_line(step, carry, *, steps):
    """A Python loop, which unrolls while tracing."""
    for index in range(steps):
        carry = _advance(step, index, carry)
    return carry


@partial(jax.jit, static_argnames="steps")
def device_loop(step, carry, *, steps):
    """All steps in one program, as a loop of the device."""
    # A fixed number of steps: a loop that can be differentiated through, although no gradient flows.
    return jax.lax.fori_loop(0, steps, lambda index, carry: step(jnp.int32(index), carry), carry)


@partial(jax.jit, static_argnames="steps")
def loop_of_the_platform(step, carry, *, steps):
    """The steps in line in a program for a CPU, a device loop in one for anything else."""
    return jax.lax.platform_dependent(
        step, carry, cpu=partial(in_line, steps=steps), default=partial(device_loop, steps=steps)
    )


def _varying_together(step, carry):
    """The carry, made device-varying under `shard_map` where anything in the step or the carry is.

    With checked replication, the gradient in images that are the same on all devices is summed over the devices, when
    something else in the objective differs between them. Images that vary have a gradient on each device.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return carry
    leaves = [leaf for leaf in jax.tree.leaves((step, carry)) if isinstance(leaf, jax.Array) and leaf.size]
    never = jnp.bool_(False)
    for leaf in leaves:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        first = leaf[(0,) * leaf.ndim]
        never = never | ((first != first) & False)  # varies over the devices as the leaf does; XLA folds it to False
    return jax.tree.map(lambda leaf: jnp.where(never, leaf, leaf), carry)


def platform_of(tree: Any) -> str:
    """The platform that computes with concrete arrays: the one that they are committed to, or JAX's default."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and leaf.committed:
            return next(iter(leaf.devices())).platform
    device = jax.config.jax_default_device  # set by `with jax.default_device(...)`: a device or a platform's name
    return jax.default_backend() if device is None else getattr(device, "platform", device)


def as_pytree(function: Callable) -> Partial:
    """The function as a pytree: the arrays that it carries as leaves, all the rest as structure.

    A `Partial` or a callable pytree can then be an argument of a compiled function, which is compiled again only when
    something other than an array changes. A plain function becomes a pytree without leaves. Options that a function
    branches on (`train=False`, a rate) remain Python values; a bare `Partial` would lose them on its way through `jit`.

    Raises:
      ValueError: it carries something that is neither an array nor hashable.
    """
    leaves, structure = jax.tree.flatten(function)
    is_array = tuple(isinstance(leaf, (jax.Array, np.ndarray, np.generic)) for leaf in leaves)
    options = tuple((type(leaf), leaf) for leaf, dynamic in zip(leaves, is_array, strict=True) if not dynamic)
    for kind, option in options:
        if not _is_hashable(option):
            raise ValueError(
                f"a function given to an attack is or holds a {kind.__name__}, which is neither an array nor hashable: "
                "pass a plain function, or jax.tree_util.Partial(function, arrays)."
            )
    arrays = [leaf for leaf, dynamic in zip(leaves, is_array, strict=True) if dynamic]
    return Partial(_Rebuilt(structure, is_array, options), *arrays)


@dataclasses.dataclass(frozen=True)
class _Rebuilt:
    """Puts the arrays back among the options of a callable, and calls it."""

    structure: Any
    is_array: tuple[bool, ...]
    options: tuple[tuple[type, Any], ...]  # with its type, because True == 1

    def __call__(self, *arguments):
        count = sum(self.is_array)
        arrays, options = iter(arguments[:count]), iter(self.options)
        leaves = [next(arrays) if dynamic else next(options)[1] for dynamic in self.is_array]
        return jax.tree.unflatten(self.structure, leaves)(*arguments[count:])


def _is_hashable(value) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
