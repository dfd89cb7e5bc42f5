"""The verb `export`: a detector as an ONNX file, which needs neither this software nor torch."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from projects.moe_ffd.experts import Beside, LoraMixture
from projects.moe_ffd.model import Detector
from projects.moe_ffd.module import FaceForgeryDetection
from shared.export import latency
from shared.forgery.exporting import Exported, report_detector, write_detector

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

TOLERANCE = 1e-3
"""Difference in probability that is let pass: rounding may send a token that lies between two experts to the other one."""


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
    net = module.net
    configuration = net.configuration
    mean, std = configuration["mean"], configuration["std"]
    file = write_detector(trainer, FakeProbability(net), module.hparams.size, mean, std, configuration, TOLERANCE)
    return report_detector(trainer, file, latency(file.path, file.examples))
