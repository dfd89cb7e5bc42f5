"""The verb `export`: the student for other programs, as ONNX and as plain weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.export import beside_torch, both_runtimes, export_onnx
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.runs import atomic, write_json
from shared.seeding import generator

if TYPE_CHECKING:
    from projects.rco.data import DistillationData
    from projects.rco.module import RouteDistillation
    from shared.cli import ProjectTrainer

TOLERANCE = 1e-4
"""Difference of a probability, or of a number of an embedding of length 1, that is let pass."""
BATCHES = (1, 2, 8)


@dataclass(frozen=True)
class Exported:
    """What `export` returns: a row of the latency table a runtime, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class StudentFile(nn.Module):
    """What the file computes: raw vectors (B, n), or images (B, C, H, W) in [0, 1], to (B, K) probabilities or (B, d) embeddings of length 1.

    Images are normalised within. The module itself is left as it is.

    Args:
        module: the trained student.
        data: says how images are normalised; its files are not needed.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: RouteDistillation, data: DistillationData) -> None:
        super().__init__()
        self.student = copy.deepcopy(module.student).cpu().float().to(memory_format=torch.contiguous_format).eval()
        self.embeds = module.embeds
        mean, std = data.normalisation or ((0.0,), (1.0,))
        self.is_normalised = data.normalisation is not None
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.student((inputs - self.mean) / self.std if self.is_normalised else inputs)
        return F.normalize(outputs, dim=1) if self.embeds else outputs.softmax(dim=1)


def export(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, class_names: Sequence[str] = ()) -> Exported:
    """Write `student.safetensors`, `student.json` and `student.onnx`, this one checked against torch, and print how fast it is and how to use it.

    Args:
        trainer: of the verb.
        module: the student.
        data: says how images are brought to what the student takes; its files are not needed.
        class_names: K names.

    Raises:
        ValueError: see `shared.export.export_onnx`.
    """
    folder, network, about = artefact_folder(trainer), StudentFile(module, data), describe(module, data, class_names)
    write_weights(folder / "student.safetensors", module)
    write_json(folder / "student.json", about)
    path, (name, examples) = folder / "student.onnx", example_inputs(module)
    print(f"writing {path.name}, and comparing what it gives with torch ...", flush=True)
    difference = export_onnx(network, path, {name: examples}, [about["output"]["name"]], about, BATCHES, TOLERANCE)
    rows = (beside_torch if examples.ndim == 4 else both_runtimes)(network, path, {name: examples})
    log_table(trainer, "latency", rows)
    megabytes = path.stat().st_size / 2**20
    print(f"{shown_path(path)}: {megabytes:.3g} MB; it differs from torch by at most {difference:.1e}\n\n{markdown(rows)}\n")
    print(usage(shown_path(path), about))
    summary = {"onnx/megabytes": round(megabytes, 3), "onnx/difference": difference, "onnx/milliseconds": round(rows[0]["milliseconds"], 3)}
    return Exported(rows, summary)


def write_weights(path: Path, module: RouteDistillation) -> None:
    """Write the student's weights and buffers, by the names of `build_network(name, shape, outputs).state_dict()`."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in module.student.state_dict().items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary)


def example_inputs(module: RouteDistillation) -> tuple[str, Tensor]:
    """Return the name of the input and as many drawn examples as the largest of `BATCHES`: vectors from N(0, 1), or images from U(0, 1)."""
    shape, random = (max(BATCHES), *module.hparams.shape), generator("rco export")
    return ("vectors", torch.randn(shape, generator=random)) if len(shape) == 2 else ("images", torch.rand(shape, generator=random))


def describe(module: RouteDistillation, data: DistillationData, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what a user of the files must know, plain values only."""
    shape, given = list(module.hparams.shape), {"name": example_inputs(module)[0]}
    if len(shape) == 3:
        scaling = "the shorter side scaled to 8/7 of the size, then the centre" if data.source == "imagenet" else "the centre scaled to the size"
        channels = "RGB" if shape[0] == 3 else "grey"
        given |= {"range": "0 to 1", "channels": channels, "scaling": scaling, "normalisation": "within the ONNX file"}
    output = {"name": "embedding", "length": 1} if module.embeds else {"name": "probability"}
    mean_std = dict(zip(("mean", "std"), map(list, data.normalisation), strict=True)) if data.normalisation else None
    return {
        "network": module.hparams.student,
        "shape": shape,
        "outputs": module.width,
        "classes": [] if module.embeds else list(class_names),
        "normalisation": mean_std,  # what the plain weights want
        "input": given | {"shape": ["batch", *shape], "type": "float32"},
        "output": output | {"shape": ["batch", module.width], "type": "float32"},
    }


def usage(path: str, about: dict[str, Any]) -> str:
    """Return the lines of Python that use the file alone."""
    name, output, of = about["input"]["name"], about["output"]["name"], ", ".join(map(str, about["shape"]))
    between = f", {about['input']['channels']} from 0 to 1" if name == "images" else ""
    lines = [
        "use it:",
        f'  session = onnxruntime.InferenceSession("{path}")',
        f"  {name} = ...  # (B, {of}) float32{between}",
        f'  ({output},) = session.run(None, {{"{name}": {name}}})  # (B, {about["outputs"]})',
    ]
    if about["classes"]:
        lines.append('  names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])')
    return "\n".join(lines)
