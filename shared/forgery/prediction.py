"""The verb `predict`: images, folders and videos of a user's own, scored frame by frame and video by video."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shared.data.files import BadFileError, list_images, read_levels
from shared.data.selection import evenly_spaced
from shared.forgery.crops import FaceDetector, crop_face
from shared.forgery.detection import ForgeryDetection
from shared.forgery.pictures import scored_faces, timeline
from shared.forgery.sets import natural, stretched_levels
from shared.forgery.videos import is_video, read_video
from shared.loggers import artefact_folder, log_figure, log_image, log_table
from shared.messages import shown_path

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

NO_FACE = "no face"
UNREADABLE = "unreadable"
SHOWN = 24
MAPPED = 6
_BATCH = 64
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Input:
    """One thing to judge.

    Attributes:
        name: what it is called in tables, relative to what the user gave.
        files: one image, the frames of a video, or one video file.
        is_video: whether it is a video file.
    """

    name: str
    files: list[Path]
    is_video: bool = False


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: a row an input, a row a frame, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    frames: list[dict[str, Any]]
    summary: dict[str, Any]


def find_inputs(path: str | Path) -> list[Input]:
    """Find what to judge: a file by itself; of a folder every image and video in it, and every sub-folder of images as the frames of one video.

    Raises:
        FileNotFoundError: if there is nothing.
    """
    root = Path(path).expanduser()
    if root.is_file():
        return [Input(root.name, [root], is_video(root))]
    videos = sorted(file for file in root.rglob("*") if is_video(file) and file.is_file() and not file.name.startswith(".")) if root.is_dir() else []
    try:
        images = list_images(root, "images, sub-folders of frames, or videos")
    except FileNotFoundError:
        if not videos:
            raise
        images = []
    folders: dict[Path, list[Path]] = {}
    for image in images:
        folders.setdefault(image.parent, []).append(image)
    found = [Input(image.name, [image]) for image in folders.pop(root, [])]
    found += [Input(str(folder.relative_to(root)), sorted(files, key=lambda file: natural(file.name))) for folder, files in folders.items()]
    return found + [Input(str(file.relative_to(root)), [file], is_video=True) for file in videos]


def read_frames(given: Input, count: int) -> Iterator[tuple[str, float | None, Tensor | None]]:
    """Yield evenly spaced frames of an input: name, time in seconds where there is one, and (3, H, W) uint8; None for what cannot be read.

    A warning says why. A video that cannot be read is one such frame.
    """
    if given.is_video:
        try:
            video = read_video(given.files[0], count)
        except BadFileError as error:
            _log.warning("%s", error)
            yield given.name, None, None
            return
        for image, number, time in zip(video.images, video.numbers.tolist(), video.times.tolist(), strict=True):
            yield f"frame {number}", time, image
        return
    for place in evenly_spaced(len(given.files), count):
        file = given.files[place]
        try:
            image = read_levels(file)
        except BadFileError as error:
            _log.warning("%s", error)
            yield file.name, None, None
        else:
            yield file.name, None, image


@torch.inference_mode()
def judge(
    module: ForgeryDetection, given: Input, detector: FaceDetector | None, margin: float, count: int
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """Score the frames of an input.

    Args:
        module: in evaluation mode.
        given: the input.
        detector: finds faces; None takes images for face crops, which are stretched to the square as those of the training are.
        margin: side of the crop in sides of the face's box.
        count: frames of a video.

    Returns:
        A row a frame, with `frame`, `seconds`, `state` and `score` (NaN where no face was found, or nothing could be read); the (T,) scores; and
        the crops, (T, 3, size, size) uint8, black for what could not be read.
    """
    size, rows, crops = module.hparams.size, [], []
    for name, time, image in read_frames(given, count):
        if image is None:
            state, crop = UNREADABLE, torch.zeros(3, size, size, dtype=torch.uint8)
        elif detector is None:
            state, crop = "face", stretched_levels(image, size)
        else:
            crop, _, state = crop_face(image, detector, margin, size)
        rows.append({"input": given.name, "frame": name, "seconds": time, "state": state})
        crops.append(crop)
    images = torch.stack(crops)
    scores = torch.cat([module(part.to(module.device)).cpu() for part in images.split(_BATCH)])
    for number, row in enumerate(rows):
        if row["state"] in (NO_FACE, UNREADABLE):
            scores[number] = torch.nan
        row["score"] = float(scores[number])
    return rows, scores, images


def predict(trainer: ProjectTrainer, module: ForgeryDetection, path: str, detector: FaceDetector | None, margin: float, count: int) -> Predicted:
    """Judge a user's images and videos, and write tables and pictures.

    Args:
        trainer: the trainer, with its device and run.
        module: the detector.
        path: an image, a video, or a folder of them.
        detector: finds faces; None takes images as they are.
        margin: side of the crop in sides of the face's box.
        count: frames of each video.

    Raises:
        FileNotFoundError: if there is nothing to judge.
        BadFileError: if nothing of it can be read.
    """
    inputs = find_inputs(path)
    module.to(trainer.strategy.root_device).eval()
    rows: list[dict[str, Any]] = []
    frames: list[dict[str, Any]] = []
    shown: list[tuple[Tensor, float]] = []
    for number, given in enumerate(inputs):
        with trainer.precision_plugin.forward_context():
            of_input, scores, images = judge(module, given, detector, margin, count)
        score, faces = float(scores.nanmean()), int(scores.isfinite().sum())
        blank = UNREADABLE if all(row["state"] == UNREADABLE for row in of_input) else NO_FACE
        verdict = blank if faces == 0 else "fake" if score > 0.5 else "real"
        rows.append({"input": given.name, "verdict": verdict, "score": score, "frames": len(scores), "faces": faces})
        frames += of_input
        if len(shown) < SHOWN and verdict != UNREADABLE:
            shown.append((images[len(images) // 2].clone(), score))
        if len(scores) > 1:
            times = [row["seconds"] for row in of_input]
            seconds = None if None in times else torch.tensor(times)
            log_figure(trainer, f"timeline_{number:03d}", timeline(scores, seconds, title=given.name))
    if all(row["verdict"] == UNREADABLE for row in rows):
        raise BadFileError(f"nothing in {path} can be read, for the reasons above: replace it")
    log_table(trainer, "predictions", rows)
    log_table(trainer, "frames", frames)
    pictures, values = torch.stack([image for image, _ in shown]), torch.tensor([score for _, score in shown])
    log_figure(trainer, "faces", scored_faces(pictures, values))
    if (sheet := module.explanation(pictures[:MAPPED])) is not None:
        log_image(trainer, "maps", sheet)
    for row in rows[:20]:
        print(f"  {row['input']}: {row['verdict']}" + ("" if row["faces"] == 0 else f", {row['score']:.3f}"))
    if detector and (faceless := sum(row["verdict"] == NO_FACE for row in rows)):
        print(f"no face was found in {faceless} of them; if they are face crops already, say --detector none")
    print(f"{len(rows)} inputs; the table: {shown_path(artefact_folder(trainer) / 'predictions.csv')}")
    counts = {verdict: sum(row["verdict"] == verdict for row in rows) for verdict in ("real", "fake", NO_FACE, UNREADABLE)}
    return Predicted(rows, frames, {"inputs": len(rows)} | counts)
