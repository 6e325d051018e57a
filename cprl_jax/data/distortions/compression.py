"""JPEG and JPEG 2000, through Pillow."""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from cprl_jax.data.distortions._arrays import Key


def jpeg(image: Float[np.ndarray, "height width 3"], quality: float, key: Key) -> UInt8[np.ndarray, "height width 3"]:
    """Baseline JPEG of this libjpeg `quality` (1..95) with chroma at half resolution (4:2:0)."""
    return _decoded_again(image, "JPEG", quality=int(quality), subsampling="4:2:0")


def jpeg2000(image: Float[np.ndarray, "height width 3"], ratio: float, key: Key) -> UInt8[np.ndarray, "height width 3"]:
    """JPEG 2000 (9/7 wavelet, one quality layer) at 1/`ratio` of the bytes of the pixels."""
    # Five wavelet decompositions, fewer in an image that cannot be halved so often.
    resolutions = min(6, min(image.shape[:2]).bit_length())
    options = {"quality_mode": "rates", "quality_layers": [ratio], "num_resolutions": resolutions}
    return _decoded_again(image, "JPEG2000", irreversible=True, no_jp2=True, **options)


def _decoded_again(image: np.ndarray, codec: str, **options) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.clip(np.round(image), 0, 255).astype(np.uint8)).save(file, codec, **options)
    with Image.open(file) as decoded:
        return np.asarray(decoded)
