"""From the bytes of an image file to 8-bit RGB: as stored, for official releases; as seen, for users' own files."""

import io

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms, UnidentifiedImageError

from cprl_jax.data import file_kinds, tiff, unended_jpeg

VERSION = 2  # of what `decode_photograph` makes of a file: images kept by another version are decoded again
PHOTOGRAPH_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF")
PHOTOGRAPH_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # upper case counts as well

# What Pillow turns into 8-bit RGB without losing bits. 16-bit and float modes would be clipped, so they are refused.
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
_PART_PIXELS = 2**24  # are converted at once
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags and a value of TIFF


def decode_rgb(file_bytes: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file to RGB with Pillow.

    Grey and palette images become RGB, an alpha channel is dropped, EXIF orientation is ignored: the pixels are taken
    as they are stored.

    Raises:
      ValueError: the bytes are not a complete image, or it has more than 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(file_bytes)) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise ValueError(f"pixel format {image.mode!r}, but only 8 bits per channel can be read")
            return np.array(image.convert("RGB"), dtype=np.uint8)
    except UnidentifiedImageError as error:
        raise ValueError("not an image" if file_bytes else "an empty file") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow's other words for a broken file
        raise ValueError(str(error)) from error


def decode_photograph(file_bytes: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a user's own JPEG, PNG, BMP, WebP or TIFF file to what a viewer of images shows.

    The content counts, not the ending of the file's name.

    * EXIF orientation is honoured: the image stands upright. Nothing else of an EXIF block matters, damaged or not.
    * Grey, black-and-white and palette images become RGB.
    * Transparent pixels are composited over white.
    * 16-bit grey is scaled to 8 bits with rounding (round(value / 257)), 12-bit grey of TIFF likewise. Of 16-bit
      colour (and grey with alpha) Pillow reads the upper byte of each value, which is at most one level off.
    * CMYK becomes sRGB through the file's ICC profile (relative colorimetric); without one, channels are multiplied:
      R = (1 - C)(1 - K), and so on. Profiles of grey and RGB images are not applied, as in nearly all data sets and
      published models: values are taken as if they were sRGB.
    * Of an animation (PNG, WebP) the first frame, of the several pictures in a phone's JPEG (MPO) the main one.
    * Of the pages of a TIFF the one that is not marked as a smaller version or a mask, wherever it stands.
    * A JPEG may lack its end marker, but no pixels.

    Refused are a TIFF with several full pages, a camera's raw data (DNG), which a viewer develops or shows by a
    preview, and signed or 32-bit integers and floating point (TIFF), which do not say what is black and what is white.

    Raises:
      ValueError: the bytes are no complete image of these formats, or it is refused; the message says what they are.
    """
    try:
        if file_bytes.startswith(tiff.SIGNATURES):
            file_bytes, orientation = tiff.picture(file_bytes)
            return _upright(_decode(file_bytes), orientation)
        return _decode(file_bytes)
    except UnidentifiedImageError as error:
        what = file_kinds.describe(file_bytes)
        if not what.startswith(("a damaged", "an empty")):
            what = "not an image in JPEG, PNG, BMP, WebP or TIFF" + (f", but {what}" if what else "")
        raise ValueError(what) from error
    except ImageCms.PyCMSError as error:
        raise ValueError(f"its colour profile cannot be used ({error}); save the image as RGB") from error
    except ValueError:
        raise
    except Exception as error:  # a broken file surfaces as almost any exception, depending on its format
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file_kinds.describe(file_bytes)} ({reason})") from error


def _decode(file_bytes: bytes) -> UInt8[np.ndarray, "height width 3"]:
    with Image.open(io.BytesIO(file_bytes), formats=PHOTOGRAPH_FORMATS) as image:
        try:
            image.load()
        except OSError:  # it ends too early
            whole = unended_jpeg.ended(file_bytes) if image.format in ("JPEG", "MPO") else None
            if whole is None:
                raise
            return _decode(whole)
        pixels, orientation = _as_seen(image), tiff.orientation(image.info.get("exif", b""))
    return _upright(pixels, orientation)  # here: Pillow has given back its image


def _as_seen(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of an image, part by part: Pillow makes several copies of what it converts."""
    width, height = image.size
    rows = max(1, _PART_PIXELS // width)
    if rows >= height:
        return _part_as_seen(image, image)
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = _part_as_seen(image.crop((0, top, width, bottom)), image)
    return pixels


def _upright(pixels: np.ndarray, orientation: int) -> UInt8[np.ndarray, "height width 3"]:
    """Pillow's own way to do this writes the EXIF block anew, and fails at whatever is wrong in it."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _part_as_seen(image: Image.Image, whole: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """The pixels of a part of an image; what the file says of them is kept with the whole."""
    if image.mode.startswith("I;16") or (image.mode == "I" and whole.format == "PNG"):  # the latter: Pillow 10
        return _from_deep_grey(image, whole)
    if image.mode in ("I", "F"):
        kind = "floating point" if image.mode == "F" else "signed or 32-bit integers"
        raise ValueError(f"pixels are {kind}, of which black and white are not known; save it with 8 or 16 bits")
    if image.mode == "CMYK" and whole.info.get("icc_profile"):
        image = ImageCms.profileToProfile(
            image,
            io.BytesIO(whole.info["icc_profile"]),
            ImageCms.createProfile("sRGB"),
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _from_deep_grey(image: Image.Image, whole: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """16-bit grey, and the 12-bit grey of TIFF that Pillow hands out in 16 bits, unscaled."""
    values = np.asarray(image).astype(np.uint32)
    tags = whole.tag_v2 if whole.format == "TIFF" else {}
    white = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    grey = ((values * 255 + white // 2) // white).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    if "transparency" in whole.info:  # the one value that stands for transparent pixels
        grey[values == whole.info["transparency"]] = 255
    return np.repeat(grey[..., None], 3, axis=2)
