"""The table of KADID-10k's distortions."""

import numpy as np

from cprl_jax.data.distortions import kadid

TYPES = [
    *("GB", "LB", "MB", "CD", "CS", "CQ", "CSA1", "CSA2", "JP2K", "JPEG", "WN", "WNCC", "IN", "MN", "DENOISE"),
    *("BRIGHTEN", "DARKEN", "MS", "JITTER", "NEP", "PIXELATE", "QUANTIZATION", "CB", "HS", "CC"),
]


def test_order_is_that_of_the_types():
    assert list(kadid.ABBREVIATIONS.values()) == TYPES and len(TYPES) == 25
    assert list(kadid.ABBREVIATIONS) == list(kadid.DISTORTIONS)


def test_entries():
    for name, distortion in kadid.DISTORTIONS.items():
        assert distortion.family == "kadid" and "KADID-10k" in distortion.source, name
        drops = [b - a for a, b in zip(distortion.parameters, distortion.parameters[1:], strict=False)]
        assert all(drop > 0 for drop in drops) or all(drop < 0 for drop in drops), name
    two_sided = [kadid.ABBREVIATIONS[name] for name, entry in kadid.DISTORTIONS.items() if entry.two_sided]
    assert two_sided == ["MS", "CC"]


def test_levels_that_change_nothing():
    """Published like this: the first Gaussian, motion blur and a*b* factor, and the third shift."""
    image = np.random.default_rng(0).integers(0, 256, (20, 20, 3)).astype(float)
    for name, level in (("gaussian-blur", 1), ("motion-blur", 1), ("color-saturation-2", 1), ("mean-shift", 3)):
        distortion = kadid.DISTORTIONS[f"kadid/{name}"]
        unchanged = distortion.apply(image, distortion.parameters[level - 1], 0)
        np.testing.assert_allclose(unchanged, image, atol=0.01)
