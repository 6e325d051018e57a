"""Weights in a file: every type comes back as near as it says; a file that is not whole, or another's, is named."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from cprl_jax.deploy import tensors


def variables(seed=0):
    draw = np.random.default_rng(seed).standard_normal
    return {
        "params": {
            "conv": {"kernel": (draw((3, 3, 4, 5)) * 10.0 ** np.arange(-20, 5, 5)).astype(np.float32)},
            "head": {"kernel": draw((7, 2)).astype(np.float32), "bias": draw(2).astype(np.float32)},
            "dead": {"kernel": np.zeros((2, 3), np.float32)},
        },
        "batch_stats": {"norm": {"var": np.float32(3.5) * np.ones(3, np.float32), "count": np.array(7, np.float32)}},
    }


def flat(tree, prefix=""):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def pairs(tree, dtype):
    """Each array, and what comes back in its place."""
    found = dict(flat(tensors.decode(tensors.encode(tree, dtype), tree)))
    assert found.keys() == dict(flat(tree)).keys()
    return [(name, value, found[name]) for name, value in flat(tree)]


def header_of(content):
    """Of a safetensors file, by the published layout: its length, and JSON."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length])


def test_float32_comes_back_bit_for_bit():
    tree = variables()
    for name, value, found in pairs(tree, "float32"):
        np.testing.assert_array_equal(found, value, err_msg=name)


def test_bfloat16_is_the_nearest():
    tree = variables()
    for name, value, found in pairs(tree, "bfloat16"):
        expected = np.asarray(jnp.asarray(value, jnp.bfloat16), np.float32) if value.ndim > 1 else value
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_int8_is_wrong_by_half_a_scale_at_most():
    tree = variables()
    for name, value, found in pairs(tree, "int8"):
        assert found.dtype == np.float32
        if value.ndim < 2:
            np.testing.assert_array_equal(found, value, err_msg=name)
            continue
        scale = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0) / 127  # of each output channel
        assert (np.abs(found - value) <= 0.5 * scale * (1 + 1e-4)).all(), name
    header = header_of(tensors.encode(tree, "int8"))
    assert header["params/conv/kernel"]["dtype"] == "I8" and header["params/conv/kernel:scale"]["shape"] == [5]
    assert header["params/head/bias"]["dtype"] == header["batch_stats/norm/var"]["dtype"] == "F32"


@pytest.mark.parametrize("dtype", tensors.DTYPES)
def test_what_was_read_is_written_as_the_same_bytes(dtype):
    content = tensors.encode(variables(), dtype)
    assert tensors.encode(tensors.decode(content, variables()), dtype) == content


@pytest.mark.parametrize("bad", [np.array([[1.0, np.nan]]), np.array([[1, 2]]), np.array([[np.inf]])])
def test_what_is_no_weight_is_not_written(bad):
    with pytest.raises(ValueError, match="params/bad is not of finite"):
        tensors.encode({"params": {"bad": bad}}, "int8")
    with pytest.raises(ValueError, match="'int4'; it must be one of float32, bfloat16, int8"):
        tensors.encode({}, "int4")


def changed(remove=(), add=()):
    tree = {name: value for name, value in flat(variables()) if name not in remove}
    return safetensors.numpy.save({**tree, **dict(add)})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no whole safetensors file"),
        (b"\x80\x04K\x01.", "no whole safetensors file"),
        (tensors.encode(variables(), "int8")[:-1], "no whole safetensors file"),
        (tensors.encode(variables(), "int8")[:50], "no whole safetensors file"),
        (changed(remove=["params/head/bias"]), "lacks params/head/bias$"),
        (changed(remove=["params/head/bias", "params/head/kernel"]), "lacks params/head/bias and 1 more"),
        (changed(add=[("params/x", np.ones(2, np.float32))]), "has params/x, which the network does not know"),
        (changed(add=[("params/head/bias", np.ones(3, np.float32))]), r"bias has the shape \(3,\); the network needs"),
        (changed(add=[("params/head/bias", np.ones(2))]), "type F64; a model's are F32, BF16, I8"),
        (changed(add=[("params/head/kernel", np.ones((7, 2), np.int8))]), "lacks params/head/kernel:scale"),
        (changed(add=[("params/head/kernel", np.array(3, np.int8))]), "lacks params/head/kernel:scale"),
        (
            changed(
                add=[("params/head/bias", np.array(3, np.int8)), ("params/head/bias:scale", np.array(1, np.float32))]
            ),
            r"bias has the shape \(\); the network needs",
        ),
        (changed(add=[("params/head/bias", np.float32([1, np.nan]))]), "bias has values that are not finite"),
    ],
    ids=lambda value: None if isinstance(value, str) else "file",
)
def test_a_file_that_does_not_fit_is_told_from_others(content, message):
    with pytest.raises(ValueError, match=message):
        tensors.decode(content, variables())
