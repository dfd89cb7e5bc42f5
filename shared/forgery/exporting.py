"""Detectors as ONNX files, which need neither this software nor torch: what the verb `export` writes and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from shared.export import export_onnx
from shared.forgery.faces import faces
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

BATCHES = (1, 3, 8)


@dataclass(frozen=True)
class Exported:
    """What `export` returns: a row of the latency table a batch size, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class DetectorFile:
    """A detector's ONNX file.

    Attributes:
        path: the file.
        examples: (8, 3, S, S) float32 drawn faces in [0, 1], as `images`.
        difference: largest absolute difference between its probabilities and torch's.
    """

    path: Path
    examples: Mapping[str, Tensor]
    difference: float


def write_detector(
    trainer: ProjectTrainer,
    probability: nn.Module,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    configuration: Mapping[str, Any],
    tolerance: float = 1e-4,
) -> DetectorFile:
    """Write `detector.onnx` among the verb's artefacts, checked against torch on drawn faces.

    Args:
        trainer: of the verb.
        probability: maps (B, 3, S, S) float32 images in [0, 1] to (B,) probabilities of being fake.
        size: side S of the images in pixels.
        mean: that it subtracts from the images, a number a channel.
        std: by which it then divides them.
        configuration: what the detector was built with, for the file's metadata.
        tolerance: largest difference in probability.

    Raises:
        ValueError: see `shared.export.export_onnx`.
    """
    path, examples = artefact_folder(trainer) / "detector.onnx", drawn_examples(size)
    metadata = {
        "class_names": ["real", "fake"],
        "input": "images: face crops, RGB, float32",
        "input_size": ["batch", 3, size, size],
        "value_range": [0, 1],
        "normalisation": {"in_the_graph": True, "mean": list(mean), "std": list(std)},
        "output": "probability of being fake",
        "configuration": dict(configuration),
    }
    print("writing detector.onnx, and comparing what it gives with torch ...", flush=True)
    return DetectorFile(path, examples, export_onnx(probability, path, examples, ["probability"], metadata, BATCHES, tolerance))


def drawn_examples(size: int) -> dict[str, Tensor]:
    """Return drawn faces as a detector's input: `images`, (8, 3, S, S) float32 in [0, 1]."""
    count = max(BATCHES)
    return {"images": faces("test", count, size=size).__getitems__(range(count))["image"] / 255}


def report_detector(trainer: ProjectTrainer, file: DetectorFile, rows: list[dict[str, Any]]) -> Exported:
    """Write the latency table, and print it with how to use the file.

    Args:
        trainer: of the verb.
        file: the detector's.
        rows: those of `shared.export.latency`, the file's own for a single image first.
    """
    log_table(trainer, "latency", rows)
    megabytes, size, place = file.path.stat().st_size / 2**20, file.examples["images"].shape[-1], shown_path(file.path)
    print(f"{place}: {megabytes:.1f} MB; its probabilities differ from torch's by at most {file.difference:.1e}\n\n{markdown(rows)}\n")
    print("use it:")
    print(f'  session = onnxruntime.InferenceSession("{place}")')
    print(f"  images = ...  # (B, 3, {size}, {size}) float32 in [0, 1]: RGB face crops")
    print('  (probability,) = session.run(None, {"images": images})  # (B,) of being fake')
    milliseconds = round(rows[0]["milliseconds"], 2)
    return Exported(rows, {"onnx/megabytes": round(megabytes, 2), "onnx/difference": file.difference, "onnx/milliseconds": milliseconds})
