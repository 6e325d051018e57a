"""Adversarial attacks on image-quality scores, for any score function written in JAX.

A score function is any traceable `score_fn(images: Float[B, H, W, 3]) -> Float[B]` on RGB images in [0, 1]; higher
means better quality. Normalisation, resizing and channel order belong inside it, so that a radius is in pixel units:
4/255 is four grey levels of an 8-bit image.

    from cprl_jax import attacks

    result = attacks.pgd(score_fn, images, radius=4 / 255, steps=10, direction=attacks.reflect(mos))
    result.images, result.before, result.after

Every attack keeps its radius and [0, 1] exactly, gives the images back bit for bit at radius 0, treats the images of a
batch separately, works eagerly and under `jit`, `vmap`, `grad`, `pmap` and `shard_map`, and lets no gradient through.

Called from Python, an attack compiles once for each image shape and score function. Functions count as the same when
they compare equal, so pass one function object again and again, and give parameters that change between calls as
arguments, not as a closure: `jax.tree_util.Partial(apply, variables)`, or any callable pytree (an Equinox module). A
lambda that is written anew for every call is compiled anew every time, and JAX's caches keep it with all that it closes
over. Inside a function that is itself compiled, closures are as good as anything else.

This package imports nothing else of `cprl_jax`.
"""

from cprl_jax.attacks.directions import down, reflect, target_free, up
from cprl_jax.attacks.fgsm import fgsm
from cprl_jax.attacks.pgd import pgd
from cprl_jax.attacks.result import AttackResult

__all__ = ["AttackResult", "down", "fgsm", "pgd", "reflect", "target_free", "up"]
