"""Adversarial attacks on image-quality scores, for any score function written in JAX.

A score function is any traceable `score_fn(images: Float[B, H, W, 3]) -> Float[B]` on RGB images in [0, 1]; higher
means better quality. Normalisation, resizing and channel order belong inside it, so that a radius is in pixel units:
4/255 is four grey levels of an 8-bit image.

    from cprl_jax import attacks

    result = attacks.pgd(score_fn, images, radius=4 / 255, steps=10, direction=attacks.reflect(mos))
    result.images, result.before, result.after

Every attack keeps its radius and [0, 1] exactly, returns the images bit for bit at radius 0, treats the images of a
batch separately, works eagerly and under `jit`, `vmap`, `grad`, `pmap` and `shard_map`, and lets no gradient through.
(`ranking` alone attacks the order of a whole set, whose images it needs on one device.) A radius is one number, an
array with one per image, or a list of several radii, which become the first axis of everything in the result;
`progress=True` shows a bar. Where a score has no gradient, `zero_gradient_fraction` is 1 and, outside of a trace, a
warning says so. Under `shard_map`, with images that are the same on all devices and a score
function that is not, give the function's parameters as arguments too, as follows.

Attacked images are floats: saved with 8 bits, they lose strength, or leave a small radius. `as_8_bit` gives the result
that a file holds. Images outside [0, 1], such as 0..255 or [-1, 1], or with NaN are refused; inside a trace, where
values are unknown, the result of an image with NaN or an infinite value is NaN.

Called from Python, an attack compiles once for each image shape and score function. Functions count as the same when
they compare equal, so pass one function object again and again, and give parameters that change between calls as
arguments, not as a closure: `jax.tree_util.Partial(apply, variables)`, or any callable pytree (an Equinox module). A
new lambda in every call is compiled every time, and JAX's caches keep it with all that it closes
over. Inside a function that is itself compiled, closures are as good as anything else.

This package imports nothing else of `cprl_jax`.
"""

from cprl_jax.attacks import adaptive
from cprl_jax.attacks.ascent import ascent
from cprl_jax.attacks.carlini_wagner import CarliniWagnerResult, carlini_wagner
from cprl_jax.attacks.directions import away, down, reflect, target_free, towards, up
from cprl_jax.attacks.eigen_distortion import EigenDistortions, eigen_distortion
from cprl_jax.attacks.eight_bit import as_8_bit
from cprl_jax.attacks.enhance import EnhanceResult, enhance
from cprl_jax.attacks.ensemble import Budget, EnsembleResult, ensemble
from cprl_jax.attacks.fgsm import fgsm
from cprl_jax.attacks.maximum_differentiation import MaximumDifferentiationResult, maximum_differentiation
from cprl_jax.attacks.perceptual import Counterexamples, PerceptualResult, perceptual, select_counterexample
from cprl_jax.attacks.pgd import pgd
from cprl_jax.attacks.projection import round_to_8_bit
from cprl_jax.attacks.ranking import ranking
from cprl_jax.attacks.result import AttackResult
from cprl_jax.attacks.score_reflection import score_reflection
from cprl_jax.attacks.square import square
from cprl_jax.attacks.universal import UniversalPerturbation, universal

__all__ = [
    "AttackResult",
    "Budget",
    "CarliniWagnerResult",
    "Counterexamples",
    "EigenDistortions",
    "EnhanceResult",
    "EnsembleResult",
    "MaximumDifferentiationResult",
    "PerceptualResult",
    "UniversalPerturbation",
    "adaptive",
    "as_8_bit",
    "ascent",
    "away",
    "carlini_wagner",
    "down",
    "eigen_distortion",
    "enhance",
    "ensemble",
    "fgsm",
    "maximum_differentiation",
    "perceptual",
    "pgd",
    "ranking",
    "reflect",
    "round_to_8_bit",
    "score_reflection",
    "select_counterexample",
    "square",
    "target_free",
    "towards",
    "universal",
    "up",
]
