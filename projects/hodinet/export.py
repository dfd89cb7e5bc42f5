"""The verb `export`: a network as an ONNX file, which needs neither this software nor torch."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from projects.hodinet.fusion import HOSF
from projects.hodinet.model import STREAMS, STRIDE
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.scenes import draw_scene
from shared.export import beside_torch, export_onnx
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

DEFAULT = 256
"""Side of the pictures of a network that judges any size, in pixels."""
BATCHES = (1, 2)
TOLERANCE = 1e-3
"""Difference in probability that is let pass."""
LARGEST = 2**30
"""Bytes of the relation of a picture, which the file stores as a whole, that are let pass."""
INPUTS = {"rgb": "images", "depth": "depth"}
"""Names of the inputs in the file, by stream."""


@dataclass(frozen=True)
class Exported:
    """What `export` returns: a row of the latency table a runtime, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class SaliencyMap(nn.Module):
    """What the file computes, (B, 3, H, W) RGB from 0 to 255 and (B, 1, H, W) depth from 0 to 1 -> (B, 1, H, W) probabilities of being salient.

    Pictures are judged at the size they have. A network of one stream takes that one only. The module itself is left as it is.
    """

    def __init__(self, module: SaliencyDetection) -> None:
        super().__init__()
        self.net = copy.deepcopy(module.net).cpu().eval()

    def forward(self, first: Tensor, second: Tensor | None = None) -> Tensor:
        inputs = dict(zip(self.net.encoders, (first, second), strict=False))
        return self.net(inputs.get("rgb"), inputs.get("depth"), sides=False)[0].sigmoid()


def export(trainer: ProjectTrainer, module: SaliencyDetection, height: int | None, width: int | None) -> Exported:
    """Write `saliency.onnx` among the verb's artefacts, checked against torch on drawn scenes, and print how fast it is and how to use it.

    Args:
        trainer: of the verb.
        module: the network.
        height: H of the pictures that the file takes, in pixels; None is the size that the module judges at, or `DEFAULT`.
        width: W of them.

    Raises:
        ValueError: if a side is below 32 pixels, or the relation of a picture would be too large; and see `shared.export.export_onnx`.
    """
    side = module.hparams.size or DEFAULT
    height, width = side if height is None else height, side if width is None else width
    _check(module, height, width)
    path, network, examples = artefact_folder(trainer) / "saliency.onnx", SaliencyMap(module), scene_examples(module, height, width)
    print(f"writing {path.name} for pictures of {height} x {width}, and comparing what it gives with torch ...", flush=True)
    difference = export_onnx(network, path, examples, ["probability"], describe(module, height, width), BATCHES, TOLERANCE)
    rows = beside_torch(network, path, examples)
    log_table(trainer, "latency", rows)
    megabytes = path.stat().st_size / 2**20
    print(f"{shown_path(path)}: {megabytes:.1f} MB; its probabilities differ from torch's by at most {difference:.1e}\n\n{markdown(rows)}\n")
    _explain(list(examples), path, height, width)
    summary = {"onnx/megabytes": round(megabytes, 2), "onnx/difference": difference, "onnx/milliseconds": round(rows[0]["milliseconds"], 2)}
    return Exported(rows, summary)


def _check(module: SaliencyDetection, height: int, width: int) -> None:
    if min(height, width) < STRIDE:
        raise ValueError(f"height and width must be at least {STRIDE} pixels, got {height} and {width}")
    if (size := relation_bytes(module, height, width)) > LARGEST:
        raise ValueError(
            f"the file stores the relation of colour and depth, and that of {height} x {width} pixels takes {size / 2**30:.1f} GB a picture: "
            "take a smaller height and width, or train with a larger model.pool"
        )


def relation_bytes(module: SaliencyDetection, height: int, width: int) -> int:
    """Return the bytes of the largest relation of all places of a picture of H x W pixels, which torch computes without storing it."""
    largest = 0
    for stage, fusion in enumerate(module.net.fusions):
        if isinstance(fusion, HOSF):
            sides = [-(-size // STRIDE) * STRIDE // (4 * 2**stage) for size in (height, width)]  # as padded
            pooled = [-(-size // fusion.pool) for size in sides]
            largest = max(largest, 4 * sides[0] * sides[1] * pooled[0] * pooled[1])
    return largest


def scene_examples(module: SaliencyDetection, height: int, width: int) -> dict[str, Tensor]:
    """Return as many scenes as the largest of `BATCHES`, by the name of the input: floats, as the file takes them, cut from squares."""
    drawn = [draw_scene("test", index, size=max(height, width)) for index in range(max(BATCHES))]
    given = {"rgb": torch.stack([scene.image for scene in drawn]).float(), "depth": torch.stack([scene.depth for scene in drawn])}
    return {INPUTS[name]: given[name][:, :, :height, :width].contiguous() for name in STREAMS if name in module.net.encoders}


def describe(module: SaliencyDetection, height: int, width: int) -> dict[str, Any]:
    """Return what a user of the file must know, as its metadata."""
    about = {
        "images": {"shape": ["batch", 3, height, width], "type": "float32", "range": [0, 255], "channels": "RGB, normalised in the graph"},
        "depth": {"shape": ["batch", 1, height, width], "type": "float32", "range": [0, 1], "near": 1, "not measured": 0},
    }
    return {
        "inputs": {INPUTS[name]: about[INPUTS[name]] for name in module.net.encoders},
        "output": "probability: (batch, 1, height, width) of each pixel being salient",
        "input_size": [height, width],
        "configuration": {name: value for name, value in module.hparams.items() if not name.startswith("_")},
    }


def _explain(inputs: list[str], path: Path, height: int, width: int) -> None:
    shapes = {
        "images": f"(B, 3, {height}, {width}) float32 from 0 to 255, RGB",
        "depth": f"(B, 1, {height}, {width}) float32 from 0 to 1, each map stretched to that range: near is 1, what was not measured is 0",
    }
    given = ", ".join(f'"{name}": {name}' for name in inputs)
    print(f'use it:\n  session = onnxruntime.InferenceSession("{shown_path(path)}")')
    for name in inputs:
        print(f"  {name} = ...  # {shapes[name]}")
    print(f"  (probability,) = session.run(None, {{{given}}})  # (B, 1, {height}, {width}) of each pixel being salient")
    print("scale whole pictures to this size, with antialiasing, and the probability back; pixels above 0.5 are salient")
