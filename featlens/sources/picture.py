"""One encoded image to raw pixels; whatever would lose or invent something is refused."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featlens.errors import FeatlensError

__all__ = ["BOMB", "SUFFIXES", "decode"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")

BOMB = r"Image size \(\d+ pixels\) exceeds limit"
"""Start of Pillow's warning about images of absurd size."""

_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM")
_GREY, _COLOUR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA")


def decode(
    data: bytes, where: str, expected: tuple[int, ...] | None = None, first: str = ""
) -> NDArray[np.uint8]:
    """Pixels of an encoded image, (C, H, W) uint8 with C of 1 or 3.

    Parameters
    ----------
    data
        Contents of the file.
    where
        Name of the image in messages.
    expected
        (C, H, W) that it must have, compared before anything is decoded.
    first
        Name of the image that gave ``expected``.

    Raises
    ------
    FeatlensError
        Damaged, of another size, transparent, animated, with more than 8 bits, CMYK.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as picture:
            shape = _shape(picture, data, where)
            if expected is not None and shape != expected:
                raise _unequal(shape, expected, where, first)
            picture.load()
            return _pixels(picture, shape, where)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise FeatlensError(
            f"{where}: says to have so many pixels that it is probably made to fill the memory; remove it"
        ) from error
    except (FeatlensError, MemoryError):
        raise
    except Exception as error:
        # Pillow's readers fail in a dozen ways on damaged files.
        said = "" if isinstance(error, UnidentifiedImageError) else f" ({' '.join(str(error).split())})"
        raise FeatlensError(
            f"{where}: damaged, or not an image of the kind its name says{said}; replace or remove it"
        ) from error


def _shape(picture: Any, data: bytes, where: str) -> tuple[int, int, int]:
    """(C, H, W) by the header, if it is an image that can be taken as it is."""
    width, height = picture.size
    if _deep(picture, data):
        raise FeatlensError(f"{where}: has more than 8 bits a channel; convert it to 8 bits, or use .npy")
    if picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1:
        raise FeatlensError(f"{where}: holds {picture.n_frames} images (animated or pages); save one of them")
    if picture.mode not in _GREY + _COLOUR:
        raise FeatlensError(f"{where}: is {picture.mode}, expected greyscale or RGB; convert it to RGB")
    return (1 if picture.mode in _GREY else 3), height, width


def _deep(picture: Any, data: bytes) -> bool:
    """Whether a channel has more than 8 bits; Pillow cuts those of RGB images without a word."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        return True
    if picture.format == "PNG":
        return data[24] > 8
    if picture.format == "TIFF":
        return bool(max(picture.tag_v2.get(258, (1,))) > 8)
    if picture.format == "PPM":
        head = re.sub(rb"#[^\n\r]*", b" ", data[:4096]).split(maxsplit=4)
        return head[0] not in (b"P1", b"P4") and len(head) > 3 and int(head[3]) > 255
    return False


def _pixels(picture: Any, shape: tuple[int, int, int], where: str) -> NDArray[np.uint8]:
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        full = picture.convert("RGBA")
        if full.getchannel("A").getextrema()[0] < 255:
            raise FeatlensError(f"{where}: is transparent in places; put it on a background and save as RGB")
        picture = full if shape[0] == 3 else picture
    if shape[0] == 1:
        return np.asarray(picture.convert("L"), dtype=np.uint8)[None]
    return np.ascontiguousarray(np.asarray(picture.convert("RGB"), dtype=np.uint8).transpose(2, 0, 1))


def _unequal(shape: tuple[int, ...], expected: tuple[int, ...], where: str, first: str) -> FeatlensError:
    def told(shape: tuple[int, ...]) -> str:
        return f"{shape[2]} x {shape[1]} {'greyscale' if shape[0] == 1 else 'RGB'}"

    todo = "bring all to one size" if shape[1:] != expected[1:] else "save all as greyscale or all as RGB"
    return FeatlensError(
        f"{where}: is {told(shape)}, but the first image ({first}) is {told(expected)}; {todo}"
    )
