"""The variables of a network as the bytes of a safetensors file, in float32, bfloat16 or 8-bit integers, and back.

Kernels, arrays of two and more axes, are kept in the type that is asked for; biases and the statistics of batch
normalisation, which are few, in float32. int8 is symmetrical with one scale for each output channel, the last axis:
w = scale * q with q in -127..127, so that an error is at most half a scale. The scales of `NAME` are `NAME:scale`.
"""

from collections.abc import Mapping
from typing import Any

import flax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16", "int8")
_TYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "I8": np.dtype(np.int8)}
_SCALE = ":scale"  # no name of ours has a colon


def encode(variables: Mapping[str, Any], dtype: str) -> bytes:
    """The bytes of a safetensors file. What comes back from it encodes to the same bytes again.

    Args:
      variables: nested, of floating-point arrays.
      dtype: of `DTYPES`.

    Raises:
      ValueError: another dtype, or an array that is not of finite floating-point numbers (named).
    """
    import safetensors.numpy

    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    tensors = {}
    for name, value in sorted(flax.traverse_util.flatten_dict(dict(variables), sep="/").items()):
        value = np.asarray(value)
        if value.dtype.kind != "f" or not np.isfinite(value).all():
            raise ValueError(f"{name} is not of finite floating-point numbers ({value.dtype})")
        value = np.asarray(value, np.float32, order="C")
        if value.ndim < 2 or dtype == "float32":
            tensors[name] = value
        elif dtype == "bfloat16":
            tensors[name] = value.astype(jnp.bfloat16)
        else:
            tensors[name], tensors[name + _SCALE] = _quantized(value)
    return safetensors.numpy.save(tensors)


def decode(content: bytes, expected: Mapping[str, Any]) -> dict:
    """The variables, in float32, that `encode` wrote.

    Args:
      content: of the file.
      expected: nested, with the shape of every variable of the network (arrays, or what `jax.eval_shape` returns).

    Raises:
      ValueError: not a whole safetensors file; other names, shapes or types than a model's; values that are not finite.
    """
    import safetensors

    try:
        entries = {
            name: np.frombuffer(bytes(entry["data"]), _TYPES[entry["dtype"]]).reshape(entry["shape"])
            for name, entry in safetensors.deserialize(content)
        }
    except KeyError as error:
        raise ValueError(f"it has a tensor of type {error.args[0]}; a model's are {', '.join(_TYPES)}") from None
    except Exception as error:  # safetensors has its own, without a common class in all versions
        raise ValueError(f"it is no whole safetensors file ({' '.join(str(error).split())})") from None
    leaves = flax.traverse_util.flatten_dict(dict(expected), sep="/")
    shapes = {name: tuple(leaf.shape) for name, leaf in leaves.items()}
    scales = {name + _SCALE: entry.shape[-1:] for name, entry in entries.items() if entry.dtype == np.int8}
    shapes |= scales
    if missing := sorted(set(shapes) - set(entries)):
        raise ValueError(f"it lacks {missing[0]}" + (f" and {len(missing) - 1} more" if missing[1:] else ""))
    if unknown := sorted(set(entries) - set(shapes)):
        raise ValueError(f"it has {unknown[0]}, which the network does not know")
    for name, entry in entries.items():
        if entry.shape != shapes[name]:
            raise ValueError(f"{name} has the shape {entry.shape}; the network needs {shapes[name]}")
    decoded = {}
    for name in sorted(set(entries) - set(scales)):
        decoded[name] = entries[name].astype(np.float32)
        if name + _SCALE in scales:
            decoded[name] *= entries[name + _SCALE].astype(np.float32)
        if not np.isfinite(decoded[name]).all():
            raise ValueError(f"{name} has values that are not finite")
    return flax.traverse_util.unflatten_dict(decoded, sep="/")


def _quantized(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """8-bit integers, and the scale of each output channel.

    A scale has at most 16 significant bits, so that 127 * scale is exact: quantising again changes nothing.
    """
    largest = np.abs(value).max(axis=tuple(range(value.ndim - 1)))
    mantissa, exponent = np.frexp(largest.astype(np.float64) / 127)
    scale = np.ldexp(np.ceil(mantissa * 2**16) / 2**16, exponent).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    return np.rint(value / scale).astype(np.int8), scale
