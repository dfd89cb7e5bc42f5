"""The verb `export`: a detector as an ONNX file, which needs neither this software nor torch (section 11)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from projects.moe_ffd.experts import Beside, LoraMixture
from projects.moe_ffd.model import Detector
from projects.moe_ffd.module import FaceForgeryDetection
from shared.export import export_onnx, latency
from shared.forgery.faces import faces
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

TOLERANCE = 1e-3
"""Difference in probability that is let pass: rounding may send a token that lies between two experts to the other one."""
BATCHES = (1, 3, 8)


@dataclass(frozen=True)
class Exported:
    """What `export` returns: a row of the latency table a batch size, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class FakeProbability(nn.Module):
    """What the file computes, (B, 3, S, S) images in [0, 1] -> (B,) probabilities of being fake, by a detector in evaluation mode."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = merge(detector)

    def forward(self, images: Tensor) -> Tensor:
        logits = Detector.forward(self.detector, images)  # that of `MoEViT` counts the images for its reports besides, which would fix the batch
        return logits.softmax(1)[:, 1]


def merge(detector: Detector) -> Detector:
    """Return a copy that computes the same, with LoRA experts that do not depend on the token (`fixed:E`, `uniform`, a single one) in the weights."""
    merged = copy.deepcopy(detector)
    for block in merged.blocks():
        place = block.attn.qkv
        if isinstance(place, Beside) and isinstance(place.mixture, LoraMixture) and place.mixture.router.is_constant:
            block.attn.qkv = place.module
            with torch.no_grad():
                block.attn.qkv.weight += place.mixture.delta()
    return merged


def export(trainer: ProjectTrainer, module: FaceForgeryDetection) -> Exported:
    """Write `detector.onnx` among the verb's artefacts, checked against torch on drawn faces, and print how fast it is and how to use it.

    Raises:
        ValueError: see `shared.export.export_onnx`.
    """
    net, size = module.net, module.hparams.size
    images = faces("test", max(BATCHES), size=size).__getitems__(range(max(BATCHES)))["image"] / 255
    path, examples = artefact_folder(trainer) / "detector.onnx", {"images": images}
    metadata = {
        "class_names": ["real", "fake"],
        "input": "images: face crops, RGB, float32",
        "input_size": ["batch", 3, size, size],
        "value_range": [0, 1],
        "normalisation": {"in_the_graph": True, "mean": net.configuration["mean"], "std": net.configuration["std"]},
        "output": "probability of being fake",
        "configuration": net.configuration,
    }
    print("writing detector.onnx, and comparing what it gives with torch ...", flush=True)
    difference = export_onnx(FakeProbability(net), path, examples, ["probability"], metadata, BATCHES, TOLERANCE)
    rows = latency(path, examples)
    log_table(trainer, "latency", rows)
    megabytes = path.stat().st_size / 2**20
    print(f"{shown_path(path)}: {megabytes:.1f} MB; its probabilities differ from torch's by at most {difference:.1e}\n\n{markdown(rows)}\n")
    print("use it:")
    print(f'  session = onnxruntime.InferenceSession("{shown_path(path)}")')
    print(f"  images = ...  # (B, 3, {size}, {size}) float32 in [0, 1]: RGB face crops")
    print('  (probability,) = session.run(None, {"images": images})  # (B,) of being fake')
    milliseconds = round(rows[0]["milliseconds"], 2)
    return Exported(rows, {"onnx/megabytes": round(megabytes, 2), "onnx/difference": difference, "onnx/milliseconds": milliseconds})
