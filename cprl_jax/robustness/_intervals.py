"""Interval arithmetic on what JAX traces: a rule for each operation that the networks consist of.

A value is an array, the same for every image in the box, or an `Interval`, between whose ends it lies. Truth values are
intervals too: False < True, and [False, True] is undecided.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal
from jaxtyping import Array

from cprl_jax.layers.sort_mask import MONOTONE_SEARCH

# Of functions that are traced as one operation around others.
_CALLS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint")


class Interval(NamedTuple):
    """lower <= value <= upper, everywhere."""

    lower: Array
    upper: Array


Value = Array | Interval


def evaluate(jaxpr: Any, constants: Sequence[Array], arguments: Sequence[Value]) -> list[Value]:
    """What the jaxpr returns for arguments of which some are intervals.

    Raises:
      NotImplementedError: an operation on an interval that has no rule here.
    """
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    for equation in jaxpr.eqns:
        inputs = [each.val if isinstance(each, Literal) else known[each] for each in equation.invars]
        same = len({id(each) for each in equation.invars}) < len(inputs)
        known |= zip(equation.outvars, _apply(equation, inputs, same), strict=True)
    return [each.val if isinstance(each, Literal) else known[each] for each in jaxpr.outvars]


def _apply(equation, inputs: list[Value], same: bool) -> list[Value]:
    """The outputs of one operation; `same`: its two inputs are one variable, as in x * x."""
    name, parameters = equation.primitive.name, equation.params
    operation = functools.partial(_outputs, equation)
    rises = name in _RISING or (name == "convert_element_type" and _rises(inputs[0], parameters["new_dtype"]))
    if name in _CALLS:
        inner = parameters.get("jaxpr", parameters.get("call_jaxpr"))
        operation = functools.partial(evaluate, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()))
        rises = parameters.get("name") == MONOTONE_SEARCH
        if not rises:
            return operation(inputs)
    if not any(isinstance(each, Interval) for each in inputs):
        return operation(inputs)
    if rises or name in _FALLING:
        ends = [operation([_ends(each)[end] for each in inputs]) for end in (0, 1)]
        found = [_interval(*pair) for pair in zip(*(ends if rises else ends[::-1]), strict=True)]
        return [_whole(equation, each, inputs, same) for each in found] if name in _WRAPPING else found
    if name == "cond" and parameters.get("branches_platforms"):  # one function, as each platform computes it best
        branch = parameters["branches"][-1]  # XLA's own operations, which are fewer
        return evaluate(branch.jaxpr, branch.consts, inputs[1:])
    if name in _BILINEAR:
        return [_bilinear(lambda *pair: _outputs(equation, pair)[0], *inputs)]
    if name == "mul" and same:
        return [_square(equation, inputs[0])]
    if name in _RULES and (result := _RULES[name](equation, *inputs)) is not None:
        return [_whole(equation, result, inputs, same) if name in _WRAPPING else result]
    raise NotImplementedError(
        f"interval_bounds has no rule for the operation {name!r} on values that depend on the image: bound a score "
        "function without it."
    )


def _outputs(equation, inputs: Sequence[Array]) -> list[Array]:
    """The operation as JAX computes it."""
    result = equation.primitive.bind(*inputs, **equation.params)
    return result if equation.primitive.multiple_results else [result]


def _ends(value: Value) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, value)


def _interval(lower: Array, upper: Array) -> Interval:
    """An end that is not a number, such as infinity less infinity, says nothing."""
    if jnp.issubdtype(lower.dtype, jnp.floating):
        lower, upper = jnp.where(jnp.isnan(lower), -jnp.inf, lower), jnp.where(jnp.isnan(upper), jnp.inf, upper)
    return Interval(lower, upper)


def _rises(value: Value, kind: Any) -> bool:
    """Whether numbers become others of this kind without changing their order: whole numbers may wrap around."""
    was = _ends(value).lower.dtype
    return was in (jnp.dtype(bool), kind) or jnp.issubdtype(kind, jnp.floating)


def _converted(equation, x: Interval) -> Interval:
    """As a truth value, or as a whole number: any where a value may be too large for the kind."""
    kind = equation.params["new_dtype"]
    if jnp.issubdtype(kind, jnp.bool_):
        return Interval((x.lower > 0) | (x.upper < 0), (x.lower != 0) | (x.upper != 0))
    return _inside(Interval(*(_outputs(equation, [end])[0] for end in x)), *x)


def _whole(equation, result: Interval, inputs: Sequence[Value], same: bool) -> Interval:
    """A result in whole numbers, which may have wrapped around where the same in floats is too large for their kind."""
    if jnp.issubdtype(result.lower.dtype, jnp.floating) or result.lower.dtype == bool:
        return result
    floats = [jax.tree.map(lambda end: end.astype(jnp.float32), each) for each in inputs]
    return _inside(result, *_apply(equation, floats, same)[0])


def _inside(result: Interval, lower: Array, upper: Array) -> Interval:
    """The result where both numbers are well inside of the range of its kind; elsewhere anything of that kind."""
    extremes = jnp.iinfo(result.lower.dtype)
    fits = (lower > min(0.99 * extremes.min, -1)) & (upper < 0.99 * extremes.max)  # floats round
    return Interval(jnp.where(fits, result.lower, extremes.min), jnp.where(fits, result.upper, extremes.max))


# Neither falls as any of its inputs grows: moving data, sums, maxima, and functions of one number.
_RISING = {
    *(
        "reshape",
        "squeeze",
        "expand_dims",
        "transpose",
        "broadcast_in_dim",
        "slice",
        "pad",
        "concatenate",
        "rev",
        "split",
    ),
    *("copy", "copy_p", "stop_gradient", "optimization_barrier", "reduce_precision"),
    *("add", "add_any", "max", "min", "clamp", "reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or"),
    *("reduce_window_sum", "reduce_window_max", "reduce_window_min", "cumsum", "cummax", "cummin"),
    *("exp", "exp2", "expm1", "tanh", "logistic", "erf", "cbrt", "floor", "ceil", "round", "sign"),
}
_FALLING = {"neg", "not"}
_WRAPPING = {"add", "add_any", "sub", "mul", "neg", "abs", "square", "integer_pow", "reduce_sum", "cumsum"}
_BILINEAR = {"dot_general", "conv_general_dilated"}


def _bilinear(function: Callable, first: Value, second: Value) -> Interval:
    """With a = m + d and |d| <= r for both: a b = m m' and up to |m| r' + r |m'| + r r' away from it."""
    (middle, reach), (other, others_reach) = _around(first), _around(second)
    centre, radius = function(middle, other), 0.0
    if others_reach is not None:
        radius += function(jnp.abs(middle), others_reach)
    if reach is not None:
        radius += function(reach, jnp.abs(other))
    if reach is not None and others_reach is not None:
        radius += function(reach, others_reach)
    return _interval(centre - radius, centre + radius)


def _around(value: Value) -> tuple[Array, Array | None]:
    """Middle and reach of an interval; None for one number."""
    if not isinstance(value, Interval):
        return value, None
    reach = (value.upper - value.lower) / 2
    return value.lower + reach, reach


def _products(equation, first: Value, second: Value) -> Interval:
    """Of two intervals: between the least and the greatest product of their ends."""
    ends = [_product(a, b) for a in _ends(first) for b in _ends(second)]
    return _interval(functools.reduce(jnp.minimum, ends), functools.reduce(jnp.maximum, ends))


def _product(a: Array, b: Array) -> Array:
    """0 for 0 times an infinite end, which no value reaches."""
    product = a * b
    return jnp.where(jnp.isnan(product) & ~jnp.isnan(a) & ~jnp.isnan(b), jnp.zeros_like(product), product)


def _quotients(equation, first: Value, second: Value) -> Interval:
    if isinstance(second, Interval):
        return _products(equation, first, _reciprocal(second))
    ends = [end / second for end in first]
    return _interval(jnp.minimum(*ends), jnp.maximum(*ends))


def _reciprocal(x: Interval) -> Interval:
    through_zero = (x.lower <= 0) & (x.upper >= 0)
    return Interval(jnp.where(through_zero, -jnp.inf, 1 / x.upper), jnp.where(through_zero, jnp.inf, 1 / x.lower))


def _difference(equation, first: Value, second: Value) -> Interval:
    (low, high), (others_low, others_high) = _ends(first), _ends(second)
    return _interval(low - others_high, high - others_low)


def _absolute(equation, x: Interval) -> Interval:
    return Interval(jnp.maximum(jnp.maximum(x.lower, -x.upper), 0), jnp.maximum(jnp.abs(x.lower), jnp.abs(x.upper)))


def _square(equation, x: Interval) -> Interval:
    return Interval(*(end**2 for end in _absolute(equation, x)))


def _power(equation, x: Interval) -> Interval:
    exponent = equation.params["y"]
    base = x if exponent % 2 else _absolute(equation, x)
    power = Interval(*(end ** abs(exponent) for end in base))
    return _reciprocal(power) if exponent < 0 else power


def _in_domain(function: Callable, least: float, *, falls: bool = False) -> Callable:
    """A function that is not defined below `least`, where the values themselves therefore cannot be."""

    def rule(equation, x: Interval) -> Interval:
        ends = [function(jnp.maximum(end, least)) for end in x]
        return Interval(*(ends[::-1] if falls else ends))

    return rule


def _comparison(surely: Callable, possibly: Callable) -> Callable:
    """From the ends of both sides: whether it holds for all values, and whether for some."""

    def rule(equation, first: Value, second: Value) -> Interval:
        ends = *_ends(first), *_ends(second)
        return Interval(surely(*ends), possibly(*ends))

    return rule


def _equal_surely(low, high, others_low, others_high):
    return (low == others_high) & (high == others_low)


def _equal_possibly(low, high, others_low, others_high):
    return (low <= others_high) & (high >= others_low)


def _conjunction(equation, first: Value, second: Value) -> Interval:
    (low, high), (others_low, others_high) = _ends(first), _ends(second)
    if low.dtype == bool:
        return Interval(low & others_low, high & others_high)
    # Of whole numbers, the bits of one that is not negative are not exceeded.
    extremes = jnp.iinfo(low.dtype)
    most = [jnp.where(least >= 0, end, extremes.max) for least, end in ((low, high), (others_low, others_high))]
    return Interval(jnp.where((low >= 0) | (others_low >= 0), 0, extremes.min), jnp.minimum(*most))


def _disjunction(equation, first: Value, second: Value) -> Interval | None:
    (low, high), (others_low, others_high) = _ends(first), _ends(second)
    return Interval(low | others_low, high | others_high) if low.dtype == bool else None


def _bits(equation, x: Interval) -> Interval | None:
    """Floats that are not negative are ordered as their bit patterns."""
    kind = equation.params["new_dtype"]
    if not (jnp.issubdtype(x.lower.dtype, jnp.floating) and jnp.issubdtype(kind, jnp.signedinteger)):
        return None
    if jnp.dtype(kind).itemsize != x.lower.dtype.itemsize:
        return None
    bits, extremes = [lax.bitcast_convert_type(end, kind) for end in x], jnp.iinfo(kind)
    ordered = x.lower >= 0
    return Interval(jnp.where(ordered, bits[0], extremes.min), jnp.where(ordered, bits[1], extremes.max))


def _selection(equation, which: Value, *cases: Value) -> Interval | None:
    if not isinstance(which, Interval):
        return _interval(*(lax.select_n(which, *(_ends(case)[end] for case in cases)) for end in (0, 1)))
    if which.lower.dtype != bool:
        return None
    (low, high), (others_low, others_high) = map(_ends, cases)  # where it is False, and where it is True
    lower = jnp.where(which.lower, others_low, jnp.where(which.upper, jnp.minimum(low, others_low), low))
    return Interval(
        lower, jnp.where(which.lower, others_high, jnp.where(which.upper, jnp.maximum(high, others_high), high))
    )


_RULES: dict[str, Callable[..., Interval | None]] = {
    "convert_element_type": _converted,
    "mul": _products,
    "div": _quotients,
    "sub": _difference,
    "abs": _absolute,
    "square": _square,
    "integer_pow": _power,
    "sqrt": _in_domain(jnp.sqrt, 0),
    "rsqrt": _in_domain(lax.rsqrt, 0, falls=True),
    "log": _in_domain(jnp.log, 0),
    "log1p": _in_domain(jnp.log1p, -1),
    "gt": _comparison(lambda a, b, c, d: a > d, lambda a, b, c, d: b > c),
    "ge": _comparison(lambda a, b, c, d: a >= d, lambda a, b, c, d: b >= c),
    "lt": _comparison(lambda a, b, c, d: b < c, lambda a, b, c, d: a < d),
    "le": _comparison(lambda a, b, c, d: b <= c, lambda a, b, c, d: a <= d),
    "eq": _comparison(_equal_surely, _equal_possibly),
    "ne": _comparison(lambda *ends: ~_equal_possibly(*ends), lambda *ends: ~_equal_surely(*ends)),
    "and": _conjunction,
    "or": _disjunction,
    "bitcast_convert_type": _bits,
    "select_n": _selection,
}
