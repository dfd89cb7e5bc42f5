"""The verb `export`: a found network as an ONNX file, and how fast it is beside small networks made by hand."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from projects.forgery_nas.baselines import Baseline, build_baseline
from projects.forgery_nas.inference import count, fold
from projects.forgery_nas.module import ForgeryNetTraining
from projects.forgery_nas.network import ForgeryNet
from shared.export import export_onnx, latency
from shared.forgery.exporting import DetectorFile, Exported, report_detector, write_detector

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

COMPARED = ("mobilenetv3_small_100", "mobilenetv3_large_100", "efficientnet_b0")
"""Networks of timm that the latency table sets beside."""
TOLERANCE = 5e-3
"""Difference in probability that is let pass: rounding moves the paper's 12 cells of random weights 1.4e-3 from what they give in float64."""


class FakeProbability(nn.Module):
    """What the file computes, (B, 3, S, S) images in [0, 1] -> (B,) probabilities of being fake; searched networks are folded."""

    def __init__(self, net: ForgeryNet | Baseline) -> None:
        super().__init__()
        self.net = fold(net) if isinstance(net, ForgeryNet) else net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images).softmax(1)[:, 1]


def export(trainer: ProjectTrainer, module: ForgeryNetTraining) -> Exported:
    """Write `detector.onnx` among the verb's artefacts, checked against torch on drawn faces, and print its latency beside that of other networks.

    Those have random weights; they go through the same exporter, and get images of the same size.

    Raises:
        ValueError: see `shared.export.export_onnx`.
    """
    net, own, size = module.net, module.hparams.network, module.hparams.size
    mean, std = ([0.0] * 3, [1.0] * 3) if isinstance(net, ForgeryNet) else (net.mean.flatten().tolist(), net.std.flatten().tolist())
    configuration = {name: value for name, value in module.hparams.items() if not name.startswith("_")}  # but for Lightning's own
    file = write_detector(trainer, FakeProbability(net), size, mean, std, configuration, TOLERANCE)
    rows = _measured(own, net, size, file)
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        for name in COMPARED:
            if name != own:
                print(f"writing {name} to compare with ...", flush=True)
                other, path = build_baseline(name, size), Path(folder) / f"{name}.onnx"
                difference = export_onnx(FakeProbability(other), path, file.examples, ["probability"], tolerance=TOLERANCE)
                rows += _measured(name, other, size, DetectorFile(path, file.examples, difference))
    return report_detector(trainer, file, rows)


def _measured(name: str, net: nn.Module, size: int, file: DetectorFile) -> list[dict[str, Any]]:
    """Return a network's rows of the latency table; its parameters and multiply-adds (of one image) are those before folding."""
    cost = count(net, size)
    about = {"network": name, "parameters": cost.parameters, "macs": cost.macs}
    return [about | row for row in latency(file.path, file.examples)]
