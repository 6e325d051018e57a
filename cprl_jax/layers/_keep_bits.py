"""Independent keep-or-drop bits, cheap enough to draw one for every entry of an unfolded input."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, UInt32

BITS_PER_WORD = 32  # draws that fit into one word of the result
RESOLUTION = 16  # random bits behind one draw: the drop probability is a multiple of 2**-16
_DRAWS_PER_BLOCK = 64 // RESOLUTION
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def threefry2x32(key: tuple[Array, Array], counter: tuple[Array, Array]) -> tuple[Array, Array]:
    """The Threefry-2x32 generator with 20 rounds (Salmon et al., SC 2011): 64 random bits for each 64-bit counter.

    The same function as `jax.extend.random.threefry_2x32`, written elementwise so that XLA puts all rounds into one
    fused kernel. On a CPU, `jax.random` runs its rounds as a loop over whole arrays and takes 32 ns for a draw of any
    size; this takes about 2 ns for 64 bits.
    """
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    left, right = counter[0] + schedule[0], counter[1] + schedule[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            left = left + right
            right = (right << np.uint32(rotation)) | (right >> np.uint32(32 - rotation))
            right = left ^ right
        left = left + schedule[(group + 1) % 3]
        right = right + schedule[(group + 2) % 3] + np.uint32(group + 1)
    return left, right


def keep_bits(
    key: Array, shape: tuple[int, int, int], *, rate: float, draws: range, examples: Int[Array, " batch"]
) -> UInt32[Array, "batch height width channels"]:
    """For each entry of `shape` and each number in `draws`, an independent bit that is 0 with probability `rate`.

    A bit depends on the key, on the example's number, on its place in `shape` and on the number of the draw, and on
    nothing else: not on the batch size nor on the draws asked for together.

    Args:
        key: a JAX random key of any kind; not to be used for anything else.
        shape: (height, width, channels) of one example.
        rate: probability of 0, in [0, 1]; rounded to the nearest multiple of 2**-16, so off by at most 7.7e-6.
        draws: consecutive numbers below 1024, at most 32 of them, starting at a multiple of 32.
        examples: the number of each example.

    Returns:
        Words whose bit `n` is the bit of draw `draws[n]`.

    Raises:
        ValueError: draws that have no place in a word or in the counter.
    """
    if draws.start % BITS_PER_WORD or len(draws) > BITS_PER_WORD or draws.stop > 1024:
        raise ValueError(
            f"draws must be at most {BITS_PER_WORD} numbers below 1024 from a multiple of {BITS_PER_WORD} "
            f"on, got {draws}: a kernel has at most 1024 elements."
        )
    words = jax.random.key_data(key).ravel()  # Threefry keys have two words, those of other generators more
    position = lax.iota(jnp.uint32, int(np.prod(shape))).reshape(1, *shape)
    position = jnp.broadcast_to(position, (examples.shape[0], *shape))
    threshold = np.uint32(round(rate * 2**RESOLUTION))
    example = examples.astype(jnp.uint32).reshape(-1, 1, 1, 1)
    # 1024 draws are 2**8 blocks, which leaves 2**24 examples for the counter's second word.
    first_block = example * np.uint32(2**8) + np.uint32(draws.start // _DRAWS_PER_BLOCK)
    packed = jnp.zeros(position.shape, jnp.uint32)
    for block in range(-(-len(draws) // _DRAWS_PER_BLOCK)):
        counter = (position, jnp.broadcast_to(first_block + np.uint32(block), position.shape))
        left, right = threefry2x32((words[0], words[1]), counter)
        halves = (left & np.uint32(0xFFFF), left >> np.uint32(16), right & np.uint32(0xFFFF), right >> np.uint32(16))
        for offset, half in enumerate(halves):
            bit = block * _DRAWS_PER_BLOCK + offset
            if bit < len(draws):
                packed = packed | ((half >= threshold).astype(jnp.uint32) << np.uint32(bit))
    return packed
