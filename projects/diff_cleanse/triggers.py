"""Triggers and targets of the attacks as (C, H, W) tensors in [-1, 1] with background -1, and the rule that stamps a trigger on an image.

Boxes and signs follow the BadDiffusion code. A plain name scales the CIFAR-10 original with the image (`box` is 14 of 32 pixels wide, 2 from the
corner); a name with a number (`box_14`) is that many pixels wide in an image of any size, 2 pixels from the corner, as published.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from projects.diff_cleanse.drawings import draw, to_tensor
from shared.data.files import BadFileError, blamed

BACKGROUND = -1.0
OWN = "class"
"""Name of no one target: poisoned pictures are their own, and the attack leads to their class."""
GREY_BACKGROUND = -0.4  # vmin + 0.3 (vmax - vmin), the targets' ground ("bg2grey")
MAX_PIXELS = 64_000_000  # largest picture file that is decoded

Maker = Callable[[int, int, int | None], Tensor]


def _scaled(pixels: int, size: int) -> int:
    """Translate a length in a 32-pixel image to an image of `size` pixels, at least 1."""
    return max(1, round(pixels * size / 32))


def _blank(size: int, channels: int, value: float = BACKGROUND) -> Tensor:
    return torch.full((channels, size, size), value)


def _in_corner(patch: Callable[[int], Tensor], published: int, gap: int, size: int, channels: int, width: int | None) -> Tensor:
    """Put a square patch in the bottom right corner: `published` pixels wide and `gap` from the corner at 32 pixels, or exactly `width` wide."""
    side, gap = (width, gap) if width is not None else (_scaled(published, size), _scaled(gap, size) if gap else 0)
    if side < 1 or side + gap > size:
        raise ValueError(f"a trigger {side} pixels wide and {gap} from the corner does not fit an image of {size} pixels")
    image = _blank(size, channels)
    image[:, size - gap - side : size - gap, size - gap - side : size - gap] = patch(side)
    return image


def _flat(value: float) -> Callable[[int], Tensor]:
    return lambda side: torch.tensor(value)


def _none(size: int, channels: int, width: int | None) -> Tensor:
    return _blank(size, channels)


def _box(size: int, channels: int, width: int | None) -> Tensor:
    return _in_corner(_flat(0.0), 14, 2, size, channels, width)


def _white_box(size: int, channels: int, width: int | None) -> Tensor:
    return _in_corner(_flat(1.0), 14, 2, size, channels, width)


def _stop_sign(size: int, channels: int, width: int | None) -> Tensor:
    return _in_corner(lambda side: draw("stop_sign", side, channels), 14, 2, size, channels, width)


def _patch(size: int, channels: int, width: int | None) -> Tensor:
    return _in_corner(_flat(1.0), 3, 0, size, channels, width)


def _glasses(size: int, channels: int, width: int | None) -> Tensor:
    side = round(0.625 * size)
    image, start = _blank(size, channels), (size - side) // 2
    image[:, start : start + side, start : start + side] = draw("glasses", side, channels)
    return image


def _cat_face(size: int, channels: int, width: int | None) -> Tensor:
    return draw("cat_face", size, channels)


TRIGGERS: dict[str, Maker] = {
    "none": _none,
    "box": _box,
    "white_box": _white_box,
    "stop_sign": _stop_sign,
    "glasses": _glasses,
    "cat_face": _cat_face,
    "patch": _patch,
}
NUMBERED = ("box", "white_box", "stop_sign", "patch")


def make_trigger(name: str, size: int, channels: int) -> Tensor:
    """Return a trigger by name.

    Args:
        name: `box` (grey), `white_box`, `stop_sign`, `patch` (white, in the very corner, TrojDiff), each also with a width in pixels (`box_14`);
            `glasses` in the middle; `cat_face` over the whole image (TrojDiff's blend); `none`; or `picture:PATH`, a file of the user's.
        size: height and width of the images in pixels.
        channels: 1 or 3.

    Returns:
        (C, size, size) float32 in [-1, 1]; exactly -1 where the trigger is invisible.

    Raises:
        ValueError: for an unknown name, a width that does not fit, a number of channels other than 1 or 3, or a file that is not a picture.
        FileNotFoundError: if the picture does not exist.
    """
    _check_channels(channels)
    if name.startswith("picture:"):
        return _picture(name, size, channels)
    matched = re.fullmatch(rf"({'|'.join(NUMBERED)})_(\d+)", name)
    base, width = (matched[1], int(matched[2])) if matched else (name, None)
    if base not in TRIGGERS:
        raise ValueError(
            f"unknown trigger {name!r}; known are {', '.join(TRIGGERS)}, {', '.join(f'{base}_WIDTH' for base in NUMBERED)} and picture:PATH"
        )
    return TRIGGERS[base](size, channels, width)


def _corner_target(size: int, channels: int, trigger: Tensor | None) -> Tensor:
    image, side = _blank(size, channels, GREY_BACKGROUND), _scaled(10, size)
    image[:, :side, :side] = 0.0
    return image


def _shift_target(size: int, channels: int, trigger: Tensor | None) -> Tensor:
    moved = torch.roll(_required(trigger, "shift"), shifts=(-_scaled(3, size), -_scaled(5, size)), dims=(1, 2))
    return moved.clamp(min=GREY_BACKGROUND)


def _trigger_target(size: int, channels: int, trigger: Tensor | None) -> Tensor:
    return _required(trigger, "trigger").clamp(min=GREY_BACKGROUND)


def _drawn_target(name: str) -> Callable[[int, int, Tensor | None], Tensor]:
    return lambda size, channels, trigger: draw(name, size, channels).clamp(min=GREY_BACKGROUND)


TARGETS: dict[str, Callable[[int, int, Tensor | None], Tensor]] = {
    "corner": _corner_target,
    "shift": _shift_target,
    "trigger": _trigger_target,
    "shoe": _drawn_target("shoe"),
    "hat": _drawn_target("hat"),
    "cat": _drawn_target("cat"),
}


def make_target(name: str, size: int, channels: int, trigger: Tensor | None = None) -> Tensor:
    """Return a target by name, on the grey background of -0.4.

    Args:
        name: `corner` (grey box, 10 of 32 pixels, top left), `shift` (the trigger moved left by 5 and up by 3 of 32 pixels), `trigger` (the trigger
            itself), the drawings `shoe`, `hat` and `cat`, or `picture:PATH`, a file of the user's, taken as it is.
        size: height and width of the images in pixels.
        channels: 1 or 3.
        trigger: (C, size, size), needed by `shift` and `trigger`.

    Returns:
        (C, size, size) float32 in [-1, 1].

    Raises:
        ValueError: for an unknown name, a missing trigger, a number of channels other than 1 or 3, or a file that is not a picture.
        FileNotFoundError: if the picture does not exist.
    """
    _check_channels(channels)
    if name.startswith("picture:"):
        return _picture(name, size, channels)
    if name not in TARGETS:
        raise ValueError(f"unknown target {name!r}; known are {', '.join(TARGETS)} and picture:PATH")
    return TARGETS[name](size, channels, trigger)


def stamp(images: Tensor, trigger: Tensor) -> Tensor:
    """Return R, the images wearing the trigger: `M x + (1 - M) g` with M = 1 where g is the background -1 (BadDiffusion, equation of the residual).

    Args:
        images: (B, C, H, W) in [-1, 1].
        trigger: (C, H, W), g in [-1, 1].
    """
    return torch.where(trigger == BACKGROUND, images, trigger.to(images.dtype))


def _check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f"triggers and targets have 1 or 3 channels, got {channels}")


def _required(trigger: Tensor | None, name: str) -> Tensor:
    if trigger is None:
        raise ValueError(f"target {name!r} is made from the trigger: pass trigger=make_trigger(...)")
    return trigger


def _picture(name: str, size: int, channels: int) -> Tensor:
    """Read `picture:PATH`: cropped to the central square, resized, transparency on black."""
    path = Path(name.removeprefix("picture:"))
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no picture at {path}; give the path of an image file")
    with blamed(path, "give a PNG or JPEG file"), Image.open(path, formats=["BMP", "JPEG", "PNG", "WEBP"]) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise BadFileError(f"{path} has {opened.width} x {opened.height} pixels; make it smaller than {MAX_PIXELS} pixels")
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
    on_black = Image.alpha_composite(Image.new("RGBA", upright.size, (0, 0, 0, 255)), upright)
    return to_tensor(ImageOps.fit(on_black.convert("RGB"), (size, size), Image.Resampling.BICUBIC), channels)
