"""Stamps: what changes them, and what does not."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax.core import FrozenDict

from cprl_jax.models.compact import CompactScore
from cprl_jax.runtime import stamps
from cprl_jax.runtime.stamps import stamp

ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


@dataclasses.dataclass
class Options:
    steps: int
    name: str = "a"


def test_order_of_keys_and_kind_of_sequence_do_not_matter():
    assert stamp(a=1, b={"c": (1, 2), "d": [3]}) == stamp(b={"d": (3,), "c": [1, 2]}, a=1)
    assert stamp(a=FrozenDict({"x": 1})) == stamp(a={"x": 1}) == stamp(a=ml_collections.ConfigDict({"x": 1}))
    assert stamp(a=Path("x/y")) == stamp(a="x/y")


def test_numpy_and_jax_hold_the_same_array():
    assert stamp(a=ARRAY) == stamp(a=jnp.asarray(ARRAY)) == stamp(a=np.asfortranarray(ARRAY))


def test_one_bit_of_one_array_counts():
    changed = ARRAY.copy()
    changed.view(np.uint32)[1, 1] ^= 1
    assert stamp(tree={"x": [ARRAY, 1]}) != stamp(tree={"x": [changed, 1]})


@pytest.mark.parametrize(
    "pair",
    [
        (ARRAY, ARRAY.astype(np.float64)),
        (ARRAY, ARRAY.reshape(3, 2)),
        (ARRAY, ARRAY.tolist()),
        (ARRAY.astype(jnp.bfloat16), ARRAY.astype(np.float16)),
        (np.zeros(2, np.float32), np.zeros(2, np.int32)),
        (1, 1.0),
        (1, True),
        ("1", 1),
        ("", None),
        ({"a": {"b": 1}}, {"a": {"c": 1}}),
        ([1, [2]], [[1], 2]),
        (jax.random.key(0), jax.random.key(1)),
        (Options(1), Options(2)),
        (CompactScore(dropout=0.0), CompactScore(dropout=0.5)),
        (CompactScore(dtype=jnp.dtype("float32")), CompactScore(dtype=jnp.dtype("bfloat16"))),
        (np.sin, np.cos),
        (jax.tree_util.Partial(jnp.add, 1.0), jax.tree_util.Partial(jnp.add, 2.0)),
    ],
)
def test_different_values_have_different_stamps(pair):
    first, second = (stamp(value=value) for value in pair)
    assert first != second
    assert first == stamp(value=pair[0]), "the same value, the same stamp"


def test_names_of_parts_and_their_nesting_count():
    assert len({stamp(a=1), stamp(b=1), stamp(a={"a": 1}), stamp(a=1, b=None), stamp()}) == 5


def test_the_version_counts(monkeypatch):
    before = stamp(a=1)
    monkeypatch.setattr(stamps, "VERSION", "0.0.0")
    assert stamp(a=1) != before


@pytest.mark.parametrize("value", [lambda x: x, object(), functools.partial(np.add, 1), np.array([object()])])
def test_what_cannot_be_told_apart_is_refused(value):
    with pytest.raises(TypeError, match="a stamp cannot tell"):
        stamp(value=[value])


def test_a_stamp_is_short():
    assert len(stamp(a=ARRAY)) == 64
