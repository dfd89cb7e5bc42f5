"""The files that the verb `predict` writes for a picture, and what of them an earlier run left."""

from __future__ import annotations

import hashlib
import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.comad.segmentation import colour_coded, palette
from projects.comad.spro import enlarged
from shared.data.inputs import Input
from shared.pictures import OVERLAY, laid_over, shrunk
from shared.runs import atomic, digest, write_json

if TYPE_CHECKING:
    from PIL.Image import Image

SHOWN_AT_LEVEL = 0.5
"""Strength of the heat map, in [0, 1], at the inspector's `map_level`; it is 1 at twice the level."""
BACKGROUND = (110, 110, 110)
"""Colour that stands for clusters that are no components in a legend."""
_DIM = 0.45  # what is left of the picture's brightness there
_LETTERS = 34  # of a line of the legend


class Looked(NamedTuple):
    """A picture with what was found.

    Attributes:
        image: (3, H, W) uint8, as in its file.
        labels: (h, w) clusters, at the inspector's size.
        strength: (1, h, w) of the heat map, in [0, 1], at the inspector's size.
        found: see `projects.comad.prediction.describe`.
    """

    image: Tensor
    labels: Tensor
    strength: Tensor
    found: dict[str, Any]


class Entry(NamedTuple):
    """A line of the legend: a cluster, whether it is a component, and its text."""

    cluster: int
    is_component: bool
    text: str


@dataclass(frozen=True)
class Results:
    """The results of pictures in a folder, under the pictures' names.

    Attributes:
        folder: the folder.
        settings: all that results depend on, but the files that are inspected.
        entries: the legend of the component pictures, a line for each cluster in order.
    """

    folder: Path
    settings: str
    entries: Sequence[Entry]

    def file(self, given: Input, ending: str) -> Path:
        """Return the file of a result; names keep the picture's ending, so that 1.png and 1.jpg are told apart."""
        return self.folder / f"{given.name}{ending}"

    def key(self, given: Input) -> str:
        """Return 16 hexadecimal digits that change with the settings and with what the file holds."""
        return hashlib.sha256(repr((self.settings, digest(given.file))).encode()).hexdigest()[:16]

    def earlier(self, given: Input) -> dict[str, Any] | None:
        """Return what an earlier run found in a picture, if it wrote all of its files, of the same key; else None."""
        try:
            found = json.loads(self.file(given, ".json").read_text(encoding="utf-8"))
            is_whole = all((self.file(given, ".json").parent / name).is_file() for name in found["files"].values())
            return found if is_whole and found["key"] == self.key(given) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, given: Input, looked: Looked, headline: str) -> dict[str, Any]:
        """Write the component picture, the heat map and, last, `<name>.json`, whose content is returned.

        Raises:
            OSError: if a file cannot be written.
        """
        from PIL.Image import fromarray

        heading = [*textwrap.wrap(headline, _LETTERS), *textwrap.wrap(looked.found["text"], _LETTERS)]
        painted = with_legend(painted_components(looked.image, looked.labels, self.entries), self.entries, heading)
        heat = fromarray(heat_map(looked.image, looked.strength).permute(1, 2, 0).numpy())
        files = {"components": self._save(given, "-components.png", painted), "heat": self._save(given, "-heat.png", heat)}
        content = {"file": given.name} | looked.found | {"files": files, "key": self.key(given)}
        write_json(self.file(given, ".json"), content)
        return content

    def _save(self, given: Input, ending: str, picture: Image) -> str:
        with atomic(self.file(given, ending)) as temporary:
            picture.save(temporary, format="PNG", compress_level=1)
        return self.file(given, ending).name


def fingerprint(state: Any) -> str:
    """Return 16 hexadecimal digits for dictionaries and lists of tensors and plain values."""
    found = hashlib.sha256()
    _feed(state, found.update)
    return found.hexdigest()[:16]


def _feed(value: Any, update: Callable[[bytes], object]) -> None:
    if isinstance(value, Tensor):
        update(repr((value.dtype, tuple(value.shape))).encode())
        update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            update(repr(str(key)).encode())
            _feed(value[key], update)
    elif isinstance(value, list | tuple):
        update(f"[{len(value)}".encode())
        for part in value:
            _feed(part, update)
    else:
        update(repr(value).encode())


# ---- pictures


def heat_map(image: Tensor, strength: Tensor) -> Tensor:
    """Lay a heat map over its picture: grey where nothing is found, the redder the more, and what exceeds the inspector's level outlined.

    Args:
        image: (3, H, W) uint8.
        strength: (1, h, w) in [0, 1].

    Returns:
        (3, H', W') uint8, scaled down where a side exceeds `OVERLAY`.
    """
    small = shrunk(image, OVERLAY)
    return laid_over(small, enlarged(strength[None], (small.shape[1], small.shape[2]))[0], SHOWN_AT_LEVEL)


def painted_components(image: Tensor, labels: Tensor, entries: Sequence[Entry]) -> Tensor:
    """Paint components in their colours over the picture in grey, which is dim where there is none.

    Args:
        image: (3, H, W) uint8.
        labels: (h, w) clusters.
        entries: of all clusters, in order.

    Returns:
        (3, H, W) uint8.
    """
    large = F.interpolate(labels[None, None].byte(), size=tuple(image.shape[1:]), mode="nearest-exact")[0, 0].long()
    components = torch.tensor([entry.is_component for entry in entries])[large]
    dim = (image.float().mean(0, keepdim=True) * _DIM).round().byte()
    return torch.where(components, colour_coded(large[None], len(entries), image[None])[0], dim)


def with_legend(picture: Tensor, entries: Sequence[Entry], heading: Sequence[str]) -> Image:
    """Set a legend to the right of a picture, (3, H, W) uint8, which keeps its size and lies in the upper left corner."""
    from PIL import Image, ImageDraw, ImageFont

    pixels = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    letter = max(12, round(pixels.height / 45))
    line, margin = round(1.5 * letter), letter
    font = ImageFont.truetype(_font(), letter)
    texts = [*heading, *(entry.text for entry in entries)]
    width = round(max(font.getlength(text) for text in texts)) + line + 2 * margin
    height = max(pixels.height, round((len(texts) + 0.5) * line) + 2 * margin)
    whole = Image.new("RGB", (pixels.width + width, height), "white")
    whole.paste(pixels, (0, 0))
    draw, left, top = ImageDraw.Draw(whole), pixels.width + margin, margin
    for text in heading:
        draw.text((left, top), text, "black", font)
        top += line
    top += line // 2
    for entry, colour in zip(entries, palette(len(entries)).tolist(), strict=True):
        draw.rectangle((left, top, left + letter, top + letter), tuple(colour) if entry.is_component else BACKGROUND)
        draw.text((left + line, top), entry.text, "black", font)
        top += line
    return whole


def _font() -> str:
    """Return a font file with letters of many alphabets, which comes with matplotlib."""
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")
