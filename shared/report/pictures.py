"""Pictures of a run, inlined into the page."""

from __future__ import annotations

import base64
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

BYTES = 2_000_000  # larger files are scaled down
PIXELS = 64_000_000  # larger pictures are not decoded
LAST = 8  # pictures of one series that are shown
SMALL = 256  # width in pixels up to which the pixels of a picture are shown as squares
STEP = re.compile(r"^(?P<name>.+)-(?P<step>\d{6,})$")


@dataclass(frozen=True)
class Picture:
    """One picture: either `source`, a data URI, or the `problem` why it is not shown. Width and height are the file's, in pixels."""

    file: Path
    caption: str
    source: str = ""
    width: int = 0
    height: int = 0
    problem: str = ""

    @property
    def is_small(self) -> bool:
        """Whether single pixels should stay visible."""
        return self.width <= SMALL

    @property
    def shown_width(self) -> int:
        """Width on the page in CSS pixels: small pictures are enlarged by a whole factor up to 12."""
        return self.width * max(1, min(12, 320 // self.width)) if self.width else 0


@dataclass(frozen=True)
class PictureSeries:
    """Pictures of one name, in order of steps; `omitted` earlier ones are not shown."""

    name: str
    pictures: list[Picture]
    omitted: int = 0

    @property
    def columns(self) -> int:
        """In how many columns the pictures stand: fewer for wide ones."""
        shapes = [picture.width / picture.height for picture in self.pictures if picture.height]
        widest = max(shapes, default=1.0)
        return min(len(self.pictures), 4 if widest <= 2 else 2 if widest <= 4 else 1)


def find_series(folder: Path) -> dict[str, list[tuple[int | None, Path]]]:
    """Find the PNG files of a folder by name, each with its step (None without one), in order of steps."""
    found: dict[str, list[tuple[int | None, Path]]] = {}
    for file in sorted(folder.glob("*.png")):
        match = STEP.match(file.stem)
        name, step = (match["name"], int(match["step"])) if match else (file.stem, None)
        found.setdefault(name, []).append((step, file))
    return {name: sorted(files, key=lambda item: -1 if item[0] is None else item[0]) for name, files in found.items()}


def read_series(name: str, files: list[tuple[int | None, Path]], last: int = LAST) -> PictureSeries:
    """Read the last pictures of a series."""
    captions = [(f"step {step}" if step is not None else "", file) for step, file in files]
    return PictureSeries(name, [read_picture(file, caption) for caption, file in captions[-last:]], max(0, len(files) - last))


def read_picture(file: Path, caption: str) -> Picture:
    """Read a PNG file into a data URI, scaled down if the file is large; what is wrong with it becomes the picture's `problem`."""
    from PIL import Image

    try:
        content = file.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the lower one
            image = Image.open(io.BytesIO(content), formats=["PNG"])
        width, height = image.size
        if width * height > PIXELS:
            return Picture(file, caption, problem=f"{width} x {height} pixels are too many to show")
        image.load()
        if len(content) > BYTES:
            content = _scaled_down(image, len(content))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises on broken files
        return Picture(file, caption, problem=f"cannot be read ({type(error).__name__})")
    return Picture(file, caption, f"data:image/png;base64,{base64.b64encode(content).decode()}", width, height)


def _scaled_down(image: Image.Image, length: int) -> bytes:
    from PIL import Image

    content = b""
    image = image.convert("RGBA") if image.mode == "P" else image
    while length > BYTES:
        factor = 0.9 * (BYTES / length) ** 0.5
        image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))), Image.Resampling.BOX)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        content, length = buffer.getvalue(), buffer.tell()
    return content
