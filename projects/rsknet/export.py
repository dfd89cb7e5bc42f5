"""The verb `export`: from waveform to embedding as one ONNX file, which needs neither this software nor torch."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from projects.rsknet.calibration import Calibration
from projects.rsknet.features import subtract_mean
from projects.rsknet.folding import folded
from projects.rsknet.judging import FAR
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.scoring import Scorer, unit
from projects.rsknet.synthesis import utterance
from shared.export import both_runtimes, export_onnx
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

LEAST = 16
"""Frames that a recording holds at least."""
SECONDS = (1.0, 2.0, 5.0)
"""Lengths of recordings that the file is compared with torch on, and timed."""
TOLERANCE = 1e-4
"""Difference of embeddings of length 1, the file's from torch's, that is let pass."""


@dataclass(frozen=True)
class Exported:
    """What `export` returns: a row of the latency table a runtime and length, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class SpeakerEmbedding(nn.Module):
    """What the file computes, waveforms (B, N) in [-1, 1] -> embeddings (B, E), of recordings of any length but without windows for long ones.

    Embeddings have the mean of the training set subtracted, if it is known, and length 1: the product of two is the score of the back-end cosine. The
    module itself is left as it is.

    Args:
        module: the trained network.
        mean: (E,) what is subtracted; None for nothing.
    """

    mean: Tensor

    def __init__(self, module: SpeakerVerification, mean: Tensor | None = None) -> None:
        super().__init__()
        self.fbank = copy.deepcopy(module.fbank).cpu().eval()
        self.net = folded(module.net).cpu().to(memory_format=torch.contiguous_format)  # the exporter fixes lengths in channels_last
        self.register_buffer("mean", torch.zeros(module.embedding_size) if mean is None else mean.float().cpu())

    def forward(self, waveforms: Tensor) -> Tensor:
        embeddings = self.net(subtract_mean(self.fbank(waveforms))) - self.mean
        return nn.functional.normalize(embeddings, dim=1)


def export(trainer: ProjectTrainer, module: SpeakerVerification, scorer: Scorer | None) -> Exported:
    """Write `speaker.onnx` among the verb's artefacts, checked against torch on drawn voices, and print how fast it is and how to use it.

    Args:
        trainer: of the verb.
        module: the network.
        scorer: holds the mean of the training set and how cosines are calibrated; None leaves both out.

    Raises:
        ValueError: if the network takes sliding means or leaves out silence, which cannot be written for any length; if the file would not give what
            the module gives; and see `shared.export.export_onnx`.
    """
    if module.hparams.mean_window is not None:
        raise ValueError("files take the mean of the whole recording: train with model.mean_window null to export the network")
    if module.hparams.vad:
        raise ValueError("files take all frames, with speech or without: train with model.vad false to export the network")
    path, rate = artefact_folder(trainer) / "speaker.onnx", module.hparams.rate
    network = SpeakerEmbedding(module, None if scorer is None else scorer.mean)
    examples = [drawn_voices(rate, seconds) for seconds in SECONDS]
    apart = _difference(module, network, examples)
    least = module.fbank.length + (LEAST - 1) * module.fbank.shift
    print(f"writing {path.name} for recordings of any length, and comparing what it gives with torch ...", flush=True)
    difference = export_onnx(
        network,
        path,
        {"waveform": examples[0]},
        ["embedding"],
        describe(module, scorer),
        (1, 2),
        TOLERANCE,
        {"waveform": {1: ("samples", least)}},
        [{"waveform": waveforms} for waveforms in examples[1:]],
    )
    difference = max(difference, apart)
    network.to(memory_format=torch.channels_last)  # as the module computes
    rows = time_lengths(network, str(path), SECONDS, examples)
    log_table(trainer, "latency", rows)
    megabytes = path.stat().st_size / 2**20
    print(f"{shown_path(path)}: {megabytes:.1f} MB; its embeddings differ from torch's by at most {difference:.1e}\n\n{markdown(rows)}\n")
    print(usage(shown_path(path), module, None if scorer is None else scorer.calibrations.get("cosine")))
    summary = {"onnx/megabytes": round(megabytes, 2), "onnx/difference": difference, "onnx/milliseconds": round(rows[-2]["milliseconds"], 2)}
    return Exported(rows, summary)


def _difference(module: SpeakerVerification, network: SpeakerEmbedding, examples: Sequence[Tensor]) -> float:
    """Return by how much what is exported differs at most from the module itself on recordings that it takes as a whole.

    Raises:
        ValueError: if that is more than `TOLERANCE`.
    """
    found = 0.0
    for waveforms in examples:
        if waveforms.shape[1] <= int(module.hparams.longest * module.hparams.rate):
            expected = unit(module(waveforms.to(module.device)), network.mean.double())
            found = max(found, float((network(waveforms).detach() - expected).abs().max()))
    if not found <= TOLERANCE:
        raise ValueError(f"the exported embeddings would differ from the module's by {found:.1e}: is one of the settings of model not exported?")
    return found


def drawn_voices(rate: int, seconds: float) -> Tensor:
    """Return two drawn recordings, (2, N)."""
    return torch.stack([utterance(0, "export", speaker, 0, seconds, rate) for speaker in range(2)])


def time_lengths(network: SpeakerEmbedding, path: str, seconds: Sequence[float], examples: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Time one recording of each length in both runtimes; a row has its `seconds` and the `real_time_factor` besides what `both_runtimes` gives."""
    return [
        {"seconds": length} | row | {"real_time_factor": row["milliseconds"] / 1000 / length}
        for length, waveforms in zip(seconds, examples, strict=True)
        for row in both_runtimes(network, path, {"waveform": waveforms})
    ]


def describe(module: SpeakerVerification, scorer: Scorer | None) -> dict[str, Any]:
    """Return what a user of the file must know, as its metadata."""
    about: dict[str, Any] = {
        "input": "waveform: (batch, samples) float32 in [-1, 1], one channel",
        "output": f"embedding: (batch, {module.embedding_size}) float32 of length 1; the product of two is the score of a pair",
        "rate": module.hparams.rate,
        "is_centred": scorer is not None,
        "configuration": {name: value for name, value in module.hparams.items() if not name.startswith("_")},
    }
    calibration = None if scorer is None else scorer.calibrations.get("cosine")
    if calibration is not None:
        about["calibration"] = {"scale": calibration.scale, "offset": calibration.offset, "durations": calibration.weights.tolist()}
        about["calibration"] |= {"range": calibration.span.tolist(), "threshold": _threshold(calibration), "false_accept_rate": FAR}
    return about


def _threshold(calibration: Calibration) -> float | None:
    """Return the log-likelihood ratio that a part `FAR` of impostors reached with the longest recordings; None if there were too few to tell."""
    return float(calibration.threshold(FAR, calibration.span[1:])) if calibration.fewest >= 1 / FAR else None


def usage(path: str, module: SpeakerVerification, calibration: Calibration | None) -> str:
    """Return the lines of Python that compare two recordings `first` and `second`, (N,) float32 in [-1, 1], by the file alone."""
    lines = [
        "use it:",
        "  import json, numpy, onnxruntime",
        f'  session = onnxruntime.InferenceSession("{path}")',
        f"  first, second = ...  # (N,) float32 in [-1, 1] at {module.hparams.rate} Hz, one channel each",
        '  a, b = (session.run(None, {"waveform": sound[None]})[0][0] for sound in (first, second))',
        "  score = float(a @ b)  # the cosine, higher for one person",
    ]
    if calibration is None:
        return "\n".join(lines)
    lines += [
        '  about = json.loads(session.get_modelmeta().custom_metadata_map["calibration"])',
        f"  durations = numpy.log(sorted([len(first) / {module.hparams.rate}, len(second) / {module.hparams.rate}]))",
        '  durations = numpy.clip(durations, *about["range"])  # what longer or shorter ones are worth was not measured',
        '  llr = about["scale"] * score + durations @ about["durations"] + about["offset"]  # natural logarithm of the likelihood ratio',
    ]
    if (threshold := _threshold(calibration)) is not None:
        lines.append(f"  same = llr >= {threshold:.3f}  # which {FAR:.0%} of the pairs of different speakers reach in long recordings")
    return "\n".join(lines)
