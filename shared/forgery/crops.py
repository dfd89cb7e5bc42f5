"""Face crops: a detector finds the face, a square with a margin about it is cut out and resized; where there is no face, the middle is cut out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

MARGIN = 1.3
"""Side of the crop in sides of the detected box; detectors trained on other margins call everything real."""

SMALL = 40
"""Faces with a shorter side, in pixels, hold too little to judge by."""

_SEARCHED = 320  # longer side of what the cascade looks at, in pixels

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

State = Literal["face", "small face", "no face"]
"""How far a crop can be judged by: a score of a small face is doubtful, one of no face says nothing."""


class Face(NamedTuple):
    """A detected face: its box, and how sure the detector is; scores of different detectors do not compare."""

    box: Box
    score: float


FaceDetector = Callable[[Tensor], list[Face]]
"""Finds the faces in a (3, H, W) uint8 image."""


class FaceCrop(NamedTuple):
    """A crop (3, size, size) uint8, where it lies in the image, and its state."""

    image: Tensor
    box: tuple[int, int, int, int]
    state: State


def face_detector(name: str = "cascade", weights: str | Path | None = None) -> FaceDetector:
    """Return a detector by its name.

    Args:
        name: `cascade` is scikit-image's frontal faces by local binary patterns, which needs nothing more; `yunet` is OpenCV's network,
            better and faster, with its file of weights; `none` finds nothing, for images that are crops already.
        weights: file `face_detection_yunet_*.onnx` for yunet.

    Raises:
        ValueError: if the name is not known, or OpenCV is not installed.
        FileNotFoundError: if the weights are missing.
    """
    if name == "cascade":
        return detect_by_cascade
    if name == "none":
        return lambda image: []
    if name == "yunet":
        return _YuNet(weights)
    raise ValueError(f"face detector {name!r} is not known; choose cascade (frontal faces), yunet (needs OpenCV and a file of weights) or none")


def detect_by_cascade(image: Tensor) -> list[Face]:
    """Find upright frontal faces of at least an eighth of the image's shorter side; the score is the area in pixels."""
    longer = max(image.shape[1:])
    scale = min(1.0, _SEARCHED / longer)
    small = F.interpolate(image[None], scale_factor=scale, mode="bilinear", antialias=True)[0] if scale < 1 else image
    height, width = small.shape[1:]
    smallest = max(24, min(height, width) // 8)
    found = _cascade().detect_multi_scale(
        img=np.ascontiguousarray(small.permute(1, 2, 0).numpy()),
        scale_factor=1.2,
        step_ratio=1.5,
        min_size=(smallest, smallest),
        max_size=(min(height, width), min(height, width)),
    )
    back = longer / max(height, width)
    boxes = [(one["c"] * back, one["r"] * back, (one["c"] + one["width"]) * back, (one["r"] + one["height"]) * back) for one in found]
    return [Face(box, (box[2] - box[0]) * (box[3] - box[1])) for box in boxes]


@cache
def _cascade() -> Any:
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    return Cascade(lbp_frontal_face_cascade_filename())


class _YuNet:
    """OpenCV's YuNet."""

    def __init__(self, weights: str | Path | None) -> None:
        try:
            import cv2
        except ImportError as error:
            raise ValueError("the face detector yunet needs OpenCV: `uv pip install opencv-python-headless`, or choose cascade") from error
        if weights is None or not Path(weights).is_file():
            raise FileNotFoundError(f"no weights of yunet at {weights}: name the file face_detection_yunet_2023mar.onnx of OpenCV's model zoo")
        self.network = cv2.FaceDetectorYN.create(str(weights), "", (320, 320), 0.6)

    def __call__(self, image: Tensor) -> list[Face]:
        self.network.setInputSize((image.shape[2], image.shape[1]))
        _, rows = self.network.detect(np.ascontiguousarray(image.flip(0).permute(1, 2, 0).numpy()))  # blue first
        return [
            Face((x, y, x + w, y + h), s) for x, y, w, h, s in ((*row[:4].tolist(), float(row[-1])) for row in (rows if rows is not None else []))
        ]


def crop_face(image: Tensor, detector: FaceDetector, margin: float = MARGIN, size: int = 224) -> FaceCrop:
    """Cut out the largest face, or else the middle.

    Args:
        image: (3, H, W) uint8.
        detector: finds the faces.
        margin: side of the crop in longer sides of the face's box, at least 1.
        size: side of the result, in pixels.

    Raises:
        ValueError: if the margin is below 1 or the size not positive.
    """
    if margin < 1 or size < 1:
        raise ValueError(f"the margin must be at least 1 and the size positive, got {margin} and {size}")
    height, width = image.shape[1:]
    found = [face.box for face in detector(image) if face.box[2] > face.box[0] and face.box[3] > face.box[1]]
    if not found:
        side = min(height, width)
        box, state = square(((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2), 1.0, height, width), "no face"
    else:
        largest = max(found, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))
        box = square(largest, margin, height, width)
        state = "small face" if min(largest[2] - largest[0], largest[3] - largest[1]) < SMALL else "face"
    left, top, right, bottom = box
    part = image[None, :, top:bottom, left:right]
    return FaceCrop(F.interpolate(part, size=(size, size), mode="bilinear", antialias=True)[0], box, state)  # type: ignore[arg-type]


def square(box: Box, margin: float, height: int, width: int) -> tuple[int, int, int, int]:
    """Return the square about a box, enlarged, and moved into the frame; it is never larger than the frame's shorter side.

    Args:
        box: left, top, right and bottom, in pixels.
        margin: side in longer sides of the box.
        height: of the frame.
        width: of the frame.

    Returns:
        Left, top, right and bottom in whole pixels, at least one pixel wide.
    """
    side = min(max(1, round(margin * max(box[2] - box[0], box[3] - box[1]))), height, width)
    left = min(max(0, round((box[0] + box[2] - side) / 2)), width - side)
    top = min(max(0, round((box[1] + box[3] - side) / 2)), height - side)
    return left, top, left + side, top + side
