"""The verb `embed`: embeddings of a user's recordings, what spoils them, and which of them sound alike."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from projects.rsknet import audio
from projects.rsknet.blocks import BranchGate
from projects.rsknet.calibration import probability
from projects.rsknet.features import energy_vad
from projects.rsknet.figures import draw_recording, draw_similarity, picture_name
from projects.rsknet.hearing import Heard, Models, calibrated, compare, find, listen, shown
from projects.rsknet.model import RSKNet
from projects.rsknet.readout import stage_weights
from projects.rsknet.scoring import Backend, Scorer, unit
from shared.checkpoints import weights_digest
from shared.data.selection import evenly_spaced
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import Interval, shown_path
from shared.pictures import shortened
from shared.runs import atomic, digest, remove

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from projects.rsknet.enrolling import Voices
    from projects.rsknet.module import SpeakerVerification
    from shared.cli import ProjectTrainer
    from shared.data.inputs import Input

PICTURED, PICTURED_SECONDS = 50, 15.0
"""Recordings that a picture is drawn of at most, and seconds of each."""
PRINTED, GROUPED = 20, 3000
"""Recordings that are printed at most, and those that are grouped: the time grows with the square of their number."""
SAVED_EVERY = 20.0
"""Seconds of work after which what is embedded is written."""
_ORDERED = 500  # recordings of a picture whose order is improved, which takes long
_MEASURES = ("seconds", "rate", "level", "clipped", "speech")


@dataclass(frozen=True)
class Found:
    """What `embed` returns: a row a recording, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def embed_files(
    trainer: ProjectTrainer, module: SpeakerVerification, scorer: Scorer, path: str, voices: Voices | None = None, backend: Backend = "cosine_asnorm"
) -> Found:
    """Embed a user's recordings, and write the embeddings, tables and pictures; what an interrupted run embedded is not embedded again.

    Recordings with too little speech are embedded too, but neither compared nor grouped.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the network.
        scorer: its scorer.
        path: a recording, a folder or a pattern.
        voices: enrolled people whom recordings are compared with.
        backend: how to compare.

    Raises:
        FileNotFoundError, BadFileError: see `audio.find_audio`; silent recordings are refused, and all that cannot be used are named.
        ValueError: if the back-end is not calibrated; or see `hearing.listen`.
        OSError: if a result cannot be written.
    """
    calibrated(scorer, backend)
    inputs, folder = find(module, path), artefact_folder(trainer)
    for old in ("pictures", "similarity.png"):
        remove(folder / old)
    digests = [digest(given.file) for given in inputs]
    store = Store(folder / "embeddings.npz", _settings(trainer, module), scorer.mean)
    heard = _embed_all(trainer, module, store, inputs, digests)
    found = [heard[key] for key in digests]
    rows = _rows(module, inputs, digests, found)
    if spoken := [row for row, one in zip(rows, found, strict=True) if not one.lack]:
        files = Models.of(scorer, [[one] for one in found if not one.lack])
        _compare(scorer, backend, spoken, files, voices)
        _group(trainer, scorer, backend, spoken, files)
    log_table(trainer, "files", rows)
    _say(rows, folder)
    for place in evenly_spaced(len(inputs), PICTURED):
        log_figure(trainer, picture_name(inputs[place].name), picture(module, inputs[place]))
    remarked = sum(bool(row["remarks"]) for row in rows)
    return Found(rows, {"recordings": len(rows), "groups": len({row["group"] for row in rows} - {None}), "remarked on": remarked})


# ---- what is kept


@dataclass(frozen=True, eq=False)
class Store:
    """The file of embeddings: `names` (N,), `embeddings` (N, E) as the network gives them, `unit` (N, E) centred and of length 1, and measures.

    Attributes:
        file: .npz, which `numpy.load` reads with `allow_pickle=False`.
        settings: all that embeddings depend on, but the recordings.
        mean: (E,) that is subtracted.
    """

    file: Path
    settings: str
    mean: Tensor

    def write(self, names: Sequence[str], digests: Sequence[str], heard: Mapping[str, Heard]) -> None:
        """Write those recordings of the names that were heard, by the digests of their content."""
        kept = [place for place, key in enumerate(digests) if key in heard]
        found = [heard[digests[place]] for place in kept]
        vectors = torch.stack([one.vector for one in found])
        columns: dict[str, Any] = {name: np.array([getattr(one, name) for one in found]) for name in _MEASURES}
        columns |= {"names": np.array([names[place] for place in kept]), "digests": np.array([digests[place] for place in kept])}
        columns |= {"embeddings": vectors.numpy(), "unit": unit(vectors, self.mean).float().numpy(), "settings": np.array(self.settings)}
        with atomic(self.file, private=True) as temporary:  # embeddings tell who speaks
            np.savez(temporary, **columns)

    def earlier(self) -> dict[str, Heard]:
        """Return what an earlier run of the same settings heard, by the digests of the content."""
        try:
            with np.load(self.file, allow_pickle=False) as kept:
                if str(kept["settings"]) != self.settings:
                    return {}
                columns = zip(torch.from_numpy(kept["embeddings"]), *(kept[name].tolist() for name in _MEASURES), strict=True)
                return {key: Heard(*row) for key, row in zip(kept["digests"].tolist(), columns, strict=True) if len(row[0]) == len(self.mean)}
        except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile):
            return {}


def _settings(trainer: ProjectTrainer, module: SpeakerVerification) -> str:
    return repr((weights_digest(module.net), sorted(module.hparams.items()), trainer.precision))


def _embed_all(
    trainer: ProjectTrainer, module: SpeakerVerification, store: Store, inputs: Sequence[Input], digests: Sequence[str]
) -> dict[str, Heard]:
    """Return what is heard by the digests of the content, which is written now and then, and at the end whatever happens."""
    files = {key: given.file for given, key in zip(inputs, digests, strict=True)}
    heard = {} if trainer.is_forced else {key: one for key, one in store.earlier().items() if key in files}
    if heard:
        print(f"{len(heard)} of {len(files)} recordings were embedded already by an earlier run (--force does it again)")
    names, saving = [given.name for given in inputs], Interval(SAVED_EVERY)
    try:
        for key, one in listen(trainer, module, {key: file for key, file in files.items() if key not in heard}):
            heard[key] = one
            if saving.is_over():
                store.write(names, digests, heard)
    finally:
        if heard:
            store.write(names, digests, heard)
    return heard


# ---- what is said of them


def similarities(scorer: Scorer, backend: Backend, files: Models) -> np.ndarray:
    """Return the (N, N) probabilities, at even odds, that recordings are of the same person; symmetric, with ones on the diagonal."""
    likely = probability(compare(scorer, backend, files, files)[1])
    return ((likely + likely.T) / 2).fill_diagonal_(1).numpy()


def groups(probabilities: np.ndarray) -> tuple[list[int], list[int]]:
    """Tell which recordings seem to be of one person: clusters in which the mean probability of a pair is one half or more (average linkage).

    Args:
        probabilities: (N, N) symmetric, N at least 2.

    Returns:
        (N,) numbers of clusters, from 1 in the order of their first recordings; and (N,) an order in which similar recordings stand together.
    """
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(1 - probabilities, checks=False), "average", optimal_ordering=len(probabilities) <= _ORDERED)
    numbers = fcluster(tree, 0.5, "distance").tolist()
    known = {number: place for place, number in enumerate(dict.fromkeys(numbers), 1)}
    return [known[number] for number in numbers], leaves_list(tree).tolist()


def _group(trainer: ProjectTrainer, scorer: Scorer, backend: Backend, rows: Sequence[dict[str, Any]], files: Models) -> None:
    """Number the groups in the rows, and draw them, unless there are too many recordings."""
    if len(rows) == 1:
        rows[0]["group"] = 1
    elif len(rows) <= GROUPED:
        likely = similarities(scorer, backend, files)
        numbers, order = groups(likely)
        for row, number in zip(rows, numbers, strict=True):
            row["group"] = number
        names = [rows[place]["file"] for place in order]
        log_figure(trainer, "similarity", draw_similarity(likely[np.ix_(order, order)], names, [numbers[place] for place in order]))


def _rows(module: SpeakerVerification, inputs: Sequence[Input], digests: Sequence[str], found: Sequence[Heard]) -> list[dict[str, Any]]:
    first: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for given, key, one in zip(inputs, digests, found, strict=True):
        same = [f"same content as {first[key]}"] if key in first else []
        first.setdefault(key, given.name)
        rows.append(
            {
                "file": given.name,
                "seconds": round(one.seconds, 3),
                "rate": one.rate,
                "level_dbfs": round(one.level, 1),
                "clipped": round(one.clipped, 4),
                "speech": round(one.speech, 4),
                "magnitude": float(one.vector.norm()),
                "nearest": None,
                "probability": None,
                "group": None,
                "remarks": "; ".join(one.remarks(module.hparams.rate) + same),
            }
        )
    return rows


def _compare(scorer: Scorer, backend: Backend, rows: Sequence[dict[str, Any]], files: Models, voices: Voices | None) -> None:
    """Fill in which of the others, and which enrolled voice, each recording is most like."""
    if len(rows) > 1:
        _fill(rows, [row["file"] for row in rows], _nearest(scorer, backend, files, files, is_same=True), "nearest", "probability")
    if voices is not None and len(voices):
        _fill(rows, voices.names, _nearest(scorer, backend, voices.models, files), "voice", "voice_probability")


def _nearest(scorer: Scorer, backend: Backend, models: Models, files: Models, is_same: bool = False) -> tuple[Tensor, Tensor]:
    """Return for each of N files the (N,) probability and index of the model that it is most like; of others if models are the files."""
    best, step = [], max(1, (1 << 20) // len(models.counts))
    for start in range(0, len(files.counts), step):
        part = files.rows(start, start + step)
        llrs = compare(scorer, backend, models, part)[1]
        if is_same:
            llrs[torch.arange(start, start + len(part.counts)), torch.arange(len(part.counts))] = -torch.inf
        best.append(llrs.max(0))
    return probability(torch.cat([one.values for one in best])), torch.cat([one.indices for one in best])


def _fill(rows: Sequence[dict[str, Any]], names: Sequence[str], nearest: tuple[Tensor, Tensor], who: str, chance: str) -> None:
    for row, likely, index in zip(rows, nearest[0].tolist(), nearest[1].tolist(), strict=True):
        row |= {who: names[index], chance: likely}


@torch.no_grad()
def picture(module: SpeakerVerification, given: Input) -> Figure:
    """Draw the beginning of a recording; for selective kernels the title has the mean weight of the most dilated branch in each stage."""
    rate = module.hparams.rate
    samples = min(round(PICTURED_SECONDS * rate), audio.info(given.file).samples_at(rate))
    waveform = audio.read(given.file, rate, 0, samples)[None].to(module.device)
    energies = module.fbank.log_energy(waveform).cpu()
    title = shortened(given.name, 80)
    if isinstance(module.net, RSKNet) and any(isinstance(part, BranchGate) for part in module.net.modules()):
        weights = stage_weights(module.net, *module.features(waveform))[:, -1].tolist()
        title += f"\nweight of the dilated branch by stage: {', '.join(f'{weight:.2f}' for weight in weights)}"
    return draw_recording(title, module.fbank(waveform)[0], energies[0], energy_vad(energies)[0], module.fbank.shift / rate)


def _say(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    for row in rows[:PRINTED]:
        near = f"; most like {row['nearest']} (probability {shown(row['probability'])})" if row["nearest"] else ""
        voice = f"; sounds like {row['voice']} (probability {shown(row['voice_probability'])})" if "voice" in row else ""
        remarks = f"; {row['remarks']}" if row["remarks"] else ""
        print(f"  {row['file']}: {row['seconds']:.1f} s{near}{voice}{remarks}")
    if len(rows) > PRINTED:
        print(f"  ... and {len(rows) - PRINTED} more")
    numbers = {row["group"] for row in rows} - {None}
    seem = f", in {len(numbers)} groups that seem to be of one person each" if len(rows) > 1 and numbers else ""
    print(f"{len(rows)} recordings{seem}; the table: {shown_path(folder / 'files.csv')}; embeddings: {shown_path(folder / 'embeddings.npz')}")
