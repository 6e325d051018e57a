"""The 25 distortions of KADID-10k (Lin, Hosu and Saupe, "KADID-10k: a large-scale artificially distorted IQA database",
QoMEX 2019), in its order: types 01 to 25.

Functions and parameters follow the generator that the authors published with KADIS-700k (`imdist_generator.m`). What
differs is listed in docs/distortions.md; above all, the generator stretches the image before and after every distortion
so that it fills 0..1, and this is left out: it would undo shifts of the mean.
"""

from cprl_jax.data.distortions import kadid_blur, kadid_color, kadid_noise, kadid_spatial
from cprl_jax.data.distortions._distortion import Distortion
from cprl_jax.data.distortions.compression import jpeg, jpeg2000


def _kadid(apply, parameters, unit, *, arrays=True, two_sided=False) -> Distortion:
    source = "KADID-10k, imdist_generator.m"
    options = {"source": source, "family": "kadid", "two_sided": two_sided, "differentiable": arrays}
    return Distortion(apply, parameters, unit, **options)


# fmt: off
_TABLE = {
    "gaussian-blur": ("GB", _kadid(kadid_blur.gaussian_blur, (0.1, 0.5, 1, 2, 5), "standard deviation in pixels")),
    "lens-blur": ("LB", _kadid(kadid_blur.lens_blur, (1, 2, 4, 6, 8), "radius in pixels")),
    "motion-blur": ("MB", _kadid(kadid_blur.motion_blur, (1, 2, 4, 6, 10), "length in pixels")),
    "color-diffusion": ("CD", _kadid(
        kadid_color.color_diffusion, (1, 3, 6, 8, 12), "factor of a* and b*; their blur is 1.5 times it + 2")),
    "color-shift": ("CS", _kadid(kadid_color.color_shift, (1, 3, 6, 8, 12), "displacement in pixels")),
    "color-quantization": ("CQ", _kadid(
        kadid_color.color_quantization, (64, 48, 32, 16, 8), "number of colours", arrays=False)),
    "color-saturation-1": ("CSA1", _kadid(
        kadid_color.color_saturation_1, (0.4, 0.2, 0.1, 0, -0.4), "factor of the saturation of HSV")),
    "color-saturation-2": ("CSA2", _kadid(
        kadid_color.color_saturation_2, (1, 2, 3, 6, 9), "factor of a* and b* of CIE L*a*b*")),
    "jpeg2000": ("JP2K", _kadid(jpeg2000, (16, 32, 45, 120, 400), "compression ratio", arrays=False)),
    "jpeg": ("JPEG", _kadid(jpeg, (43, 36, 24, 7, 4), "libjpeg quality", arrays=False)),
    "white-noise": ("WN", _kadid(
        kadid_noise.white_noise, (0.001, 0.002, 0.003, 0.005, 0.01), "variance, of values in 0..1")),
    "white-noise-color-component": ("WNCC", _kadid(
        kadid_noise.white_noise_color_component, (0.0001, 0.0005, 0.001, 0.002, 0.003),
        "variance in Y, Cb and Cr, of values in 0..1")),
    "impulse-noise": ("IN", _kadid(
        kadid_noise.impulse_noise, (0.001, 0.005, 0.01, 0.02, 0.03), "share of the values")),
    "multiplicative-noise": ("MN", _kadid(
        kadid_noise.multiplicative_noise, (0.001, 0.005, 0.01, 0.02, 0.05), "variance of the factor")),
    "denoise": ("DENOISE", _kadid(
        kadid_noise.denoise, (0.01, 0.03, 0.05, 0.1, 0.15), "variance of the noise, of values in 0..1", arrays=False)),
    "brighten": ("BRIGHTEN", _kadid(
        kadid_color.brighten, (0.1, 0.2, 0.4, 0.7, 1.1), "twice the rise of mid-grey, of the range")),
    "darken": ("DARKEN", _kadid(
        kadid_color.darken, (0.05, 0.1, 0.2, 0.4, 0.8), "twice the fall of mid-grey, of the range")),
    "mean-shift": ("MS", _kadid(
        kadid_color.mean_shift, (0.15, 0.08, 0, -0.08, -0.15), "shift, of the range", two_sided=True)),
    "jitter": ("JITTER", _kadid(
        kadid_spatial.jitter, (0.05, 0.1, 0.2, 0.5, 1), "standard deviation in pixels, five times over")),
    "non-eccentricity-patch": ("NEP", _kadid(
        kadid_spatial.non_eccentricity_patch, (20, 40, 60, 80, 100), "number of patches", arrays=False)),
    "pixelate": ("PIXELATE", _kadid(
        kadid_spatial.pixelate, (0.01, 0.05, 0.1, 0.2, 0.5), "strength s: the scale is 0.95 - s^0.6")),
    "quantization": ("QUANTIZATION", _kadid(
        kadid_color.quantization, (20, 16, 13, 10, 7), "number of thresholds", arrays=False)),
    "color-block": ("CB", _kadid(kadid_spatial.color_block, (2, 4, 6, 8, 10), "number of blocks", arrays=False)),
    "high-sharpen": ("HS", _kadid(kadid_blur.high_sharpen, (1, 2, 3, 6, 12), "amount of unsharp masking")),
    "contrast-change": ("CC", _kadid(
        kadid_color.contrast_change, (0.3, 0.15, 0, -0.4, -0.6), "amount; -0.2 changes nothing", two_sided=True)),
}
# fmt: on

DISTORTIONS: dict[str, Distortion] = {f"kadid/{name}": distortion for name, (_, distortion) in _TABLE.items()}
"""By name; the n-th entry is type n of the file names of KADID-10k."""

ABBREVIATIONS: dict[str, str] = {f"kadid/{name}": abbreviation for name, (abbreviation, _) in _TABLE.items()}
"""The abbreviations of KADID-10k, by name."""
