"""The verb `export`: the part of an inspector that is a network, as an ONNX file that needs no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from projects.comad.features import ViTFeatures
from projects.comad.inspector import Inspector
from projects.comad.module import ComponentInspection
from projects.comad.segmentation import soft_maps
from shared.export import beside_torch, export_onnx
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.seeding import generator

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

BATCHES = (1, 2)
TOLERANCE = 1e-3
"""Difference that is let pass, of probabilities, and of features of about 1 to 10."""


@dataclass(frozen=True)
class Exported:
    """What `export` returns: a row of the latency table a runtime, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class NetworkPart(nn.Module):
    """What the file computes of pictures, (B, 3, H, W) from 0 to 255 in RGB, and nothing that the CRF, the metrology or the patch memory does.

    It gives the features, (B, C, h, w), and the soft maps of the K clusters, (B, K, H, W), from which the CRF starts; a light one has only maps.
    """

    centres: Tensor

    def __init__(self, inspector: Inspector) -> None:
        super().__init__()
        self.light, self.metric = inspector.light, inspector.metric
        self.features = inspector.features if self.light is None else None
        if self.light is None:
            assert inspector.centres is not None
            self.register_buffer("centres", inspector.centres.cpu())

    @property
    def outputs(self) -> list[str]:
        """Names of what it gives."""
        return ["features", "components"] if self.light is None else ["components"]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        levels = images.round().clamp(0, 255).to(torch.uint8)
        if self.light is not None:
            return self.light(levels)
        assert self.features is not None
        features = self.features(levels)
        return features, soft_maps(features, self.centres, (images.shape[2], images.shape[3]), self.metric)


def export(trainer: ProjectTrainer, module: ComponentInspection) -> Exported:
    """Write `features.onnx` among the verb's artefacts, checked against torch, and print how fast it is and what it gives.

    Args:
        trainer: of the verb.
        module: the inspector.

    Raises:
        ValueError: if the transformer resizes pictures, which other runtimes do otherwise; and see `shared.export.export_onnx`.
    """
    inspector = module.to("cpu").inspector
    height, width = inspector.size
    if isinstance(inspector.features, ViTFeatures) and inspector.features.size != inspector.size:
        sizes = f"the transformer takes {inspector.features.size}, pictures have {inspector.size}"
        raise ValueError(f"{sizes}: other runtimes resize otherwise, so fit with data.size equal to model.size")
    path, network = artefact_folder(trainer) / "features.onnx", NetworkPart(inspector).eval()
    examples = {"images": pictures(max(BATCHES), height, width)}
    print(f"writing {path.name} for pictures of {height} x {width}, and comparing what it gives with torch ...", flush=True)
    about = {"about": inspector.about, "metric": inspector.metric, "components": list(inspector.metrology.components)}
    difference = export_onnx(network, path, examples, network.outputs, about, BATCHES, TOLERANCE)
    rows = beside_torch(network, path, examples)
    log_table(trainer, "latency", rows)
    megabytes = path.stat().st_size / 2**20
    print(f"{shown_path(path)}: {megabytes:.1f} MB; it differs from torch by at most {difference:.1e}\n\n{markdown(rows)}\n")
    print(f'use it:\n  session = onnxruntime.InferenceSession("{shown_path(path)}")')
    print(f"  images = ...  # (B, 3, {height}, {width}) float32 from 0 to 255, RGB, scaled to this size with antialiasing")
    print(f'  [{", ".join(network.outputs)}] = session.run(None, {{"images": images}})')
    print("components: of each pixel the probability of each cluster; the largest is its component where there is no CRF")
    summary = {"onnx/megabytes": round(megabytes, 2), "onnx/difference": difference, "onnx/milliseconds": round(rows[0]["milliseconds"], 2)}
    return Exported(rows, summary)


def pictures(count: int, height: int, width: int) -> Tensor:
    """Return random pictures of coarse squares with grain, (count, 3, H, W) whole floats from 0 to 255.

    Without grain the deviations of offline features are roots of what rounding leaves, which differs between runtimes.
    """
    chance = generator(0, "export")
    coarse = nn.functional.interpolate(torch.rand(count, 3, 8, 8, generator=chance), (height, width))
    return (255 * (0.9 * coarse + 0.1 * torch.rand(count, 3, height, width, generator=chance))).round()
