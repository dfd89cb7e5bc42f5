"""The verb `export`: a detector as an ONNX file, which needs neither this software nor torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from projects.tripinet.encoders import StreamEncoder
from projects.tripinet.forensics import FFTHighPass, Stream
from projects.tripinet.forging import FORGERIES, LARGEST, forge
from projects.tripinet.model import LEAST
from projects.tripinet.module import ManipulationLocalisation
from shared.export import beside_torch, export_onnx
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

BATCHES = (1, 3)
TOLERANCE = 1e-3
"""Difference in probability that is let pass."""
REFUSED = "block_dct"
"""The stream that rounds coefficients: in 10 000 pixels about one lies at a half, which the last digit moves to another plane."""


@dataclass(frozen=True)
class Exported:
    """What `export` returns: a row of the latency table a runtime, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class FourierHighPass(FFTHighPass):
    """What `FFTHighPass` computes, by products with the rows of the orthonormal real Fourier transform, which ONNX knows."""

    def low(self, pixels: Tensor) -> Tensor:
        down, across = (fourier_matrix(size, self.alpha).to(pixels) for size in pixels.shape[2:])
        return down.T @ (down @ pixels @ across.T) @ across


def fourier_matrix(size: int, alpha: float) -> Tensor:
    """Return the orthonormal cosines and sines of size N of fewer than alpha / 2 cycles a pixel, (rows, N) float64."""
    cycles = np.flatnonzero(np.fft.rfftfreq(size) < alpha / 2)
    angles = 2 * np.pi / size * (cycles[:, None] * np.arange(size) % size)
    matrix = np.sqrt(2 / size) * np.concatenate([np.cos(angles), np.sin(angles[1:])])
    matrix[:1] /= np.sqrt(2)  # of the mean
    return torch.from_numpy(matrix)


class Localiser(nn.Module):
    """What the file computes, (B, 3, H, W) RGB images from 0 to 255 -> (B, 1, H, W) and (B,) probabilities of pixels and pictures being manipulated.

    Both are calibrated as validation decided, see `Decision`. Pictures are judged whole, never in tiles. The module itself is left as it is.
    """

    def __init__(self, module: ManipulationLocalisation) -> None:
        super().__init__()
        self.net, self.decision = copy.deepcopy(module.net).cpu().eval(), copy.deepcopy(module.decision).cpu()
        for stream in self.net.streams:
            if isinstance(stream, StreamEncoder) and isinstance(front_end := stream.front_end, FFTHighPass):
                stream.front_end = FourierHighPass(front_end.alpha, front_end.scaling)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self.net(images, sides=False)
        logits = outputs.sides[0]
        raw = logits.flatten(1).amax(1) if outputs.image is None else outputs.image
        return self.decision.probabilities(logits), (self.decision.slope * raw + self.decision.intercept).sigmoid()


def export(trainer: ProjectTrainer, module: ManipulationLocalisation, height: int, width: int) -> Exported:
    """Write `localiser.onnx` among the verb's artefacts, checked against torch on forged pictures, and print how fast it is and how to use it.

    Args:
        trainer: of the verb.
        module: the detector.
        height: H of the pictures that the file takes, in pixels; the network pads sides that are no multiples of its stride by itself.
        width: W of them.

    Raises:
        ValueError: if a side is below 32 pixels, or the detector has the stream `block_dct`; and see `shared.export.export_onnx`.
    """
    if REFUSED in (module.hparams.streams or ()):
        others = ", ".join(name for name in get_args(Stream) if name != REFUSED)
        raise ValueError(f"the stream {REFUSED} rounds, which runtimes do not do alike, and is not exported: train with some of {others}")
    if min(height, width) < LEAST:
        raise ValueError(f"height and width must be at least {LEAST} pixels, got {height} and {width}")
    path, localiser, images = artefact_folder(trainer) / "localiser.onnx", Localiser(module), forged_examples(height, width)
    print(f"writing {path.name} for pictures of {height} x {width}, and comparing what it gives with torch ...", flush=True)
    description = describe(module, height, width)
    difference = export_onnx(localiser, path, {"images": images}, ["probability", "score"], description, BATCHES, TOLERANCE)
    rows = beside_torch(localiser, path, {"images": images})
    log_table(trainer, "latency", rows)
    megabytes = path.stat().st_size / 2**20
    print(f"{shown_path(path)}: {megabytes:.1f} MB; its probabilities differ from torch's by at most {difference:.1e}\n\n{markdown(rows)}\n")
    _explain(module, path, height, width)
    summary = {"onnx/megabytes": round(megabytes, 2), "onnx/difference": difference, "onnx/milliseconds": round(rows[0]["milliseconds"], 2)}
    return Exported(rows, summary)


def forged_examples(height: int, width: int) -> Tensor:
    """Return as many forged pictures as the largest of `BATCHES`, (B, 3, H, W) float32 of whole numbers from 0 to 255; small ones are tiled."""
    made = torch.stack([forge("test", index, size=LARGEST, kind=FORGERIES[index % len(FORGERIES)]).image for index in range(max(BATCHES))])
    return made.repeat(1, 1, -(-height // LARGEST), -(-width // LARGEST))[:, :, :height, :width].float().contiguous()


def describe(module: ManipulationLocalisation, height: int, width: int) -> dict[str, Any]:
    """Return what a user of the file must know, as its metadata."""
    return {
        "class_names": ["authentic", "manipulated"],
        "input": "images: whole pictures or parts of them in their own resolution, RGB, float32",
        "input_size": ["batch", 3, height, width],
        "value_range": [0, 255],
        "normalisation": {"in_the_graph": True},
        "output": "probability: (batch, 1, height, width) of each pixel being manipulated; score: (batch,) of the picture being so; both calibrated",
        "pixel_threshold": module.decision.pixel_threshold,
        "score_threshold": 0.5,
        "false_alarms": module.decision.false_alarms(),
        "configuration": {name: value for name, value in module.hparams.items() if not name.startswith("_")},
    }


def _explain(module: ManipulationLocalisation, path: Path, height: int, width: int) -> None:
    decision = module.decision
    print("use it:")
    print(f'  session = onnxruntime.InferenceSession("{shown_path(path)}")')
    print(f"  images = ...  # (B, 3, {height}, {width}) float32 from 0 to 255, RGB: cut pictures to this size, for resizing wears traces away")
    print('  probability, score = session.run(None, {"images": images})  # (B, 1, H, W) of pixels and (B,) of pictures being manipulated')
    print(f"  mask = probability > {decision.pixel_threshold:.4g}  # the threshold of the largest mean F1 on validation")
    print("  is_manipulated = score > 0.5")
    if float(decision.slope) == 0:
        print("validation told nothing of whole pictures: the score is the same for all")
    print(decision.false_alarms())
