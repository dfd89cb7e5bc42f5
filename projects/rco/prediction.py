"""The verb `predict`: what a student says of a user's own pictures or vectors, and which faces resemble each other."""

from __future__ import annotations

import csv
import hashlib
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import center_crop

from projects.rco.sets import Files
from shared.checkpoints import load_checkpoint, weights_digest
from shared.data.arrays import read_npy, read_npz
from shared.data.files import blamed, first_few, read_image, read_levels
from shared.data.inputs import Input, find_files, find_pictures, named
from shared.data.selection import evenly_spaced
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import Interval, shown_path
from shared.pictures import beside, overview, shortened
from shared.results import report_left_out
from shared.runs import atomic, digest, remove

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from projects.rco.data import DistillationData
    from projects.rco.module import RouteDistillation
    from shared.cli import ProjectTrainer

BATCH = 64
"""Pictures that are judged, and kept, at once."""
TOP = 5
"""Classes, or faces, that are named of each."""
SHOWN, PRINTED = 12, 20
"""Pictures in the overview, and lines that are printed."""
VECTORS = (".npy", ".npz", ".csv")
"""Endings of files of vectors."""
_ROWS = 1024  # faces that are compared with all others at once


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: a row an input, the figures that head the run's page, and 0 or `shared.results.LEFT_OUT`."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]
    exit_code: int = 0


def predict(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, path: str, class_names: Sequence[str] = ()) -> Predicted:
    """Judge a user's files and write the table, with an overview; what an interrupted run of the same settings has judged is not judged again.

    Args:
        trainer: the trainer, with its device, precision and run.
        module: the student.
        data: says how images are brought to what the student takes; its own files are not needed.
        path: a file, a folder with sub-folders, or a pattern: of pictures, or of `VECTORS` for a student of vectors.
        class_names: K names, see `names_of`.

    Raises:
        FileNotFoundError: if nothing is there.
        BadFileError: naming files that cannot be read, or vectors that do not fit.
        ValueError: if what the network says is not finite.
    """
    module.to(trainer.strategy.root_device).eval()
    judge = _vectors if len(module.hparams.shape) == 1 else _faces if module.embeds else _pictures
    found = judge(trainer, module, data, path, class_names)
    log_table(trainer, "predictions", found.rows)
    for row in found.rows[:PRINTED]:
        print(f"  {sentence(row)}")
    print(f"{len(found.rows)} judged, the table: {shown_path(artefact_folder(trainer) / 'predictions.csv')}")
    return found


def names_of(module: RouteDistillation, ckpt_path: str | None) -> list[str]:
    """Return the names of the student's classes as its checkpoint keeps them, or else their numbers."""
    classes = module.hparams.classes
    kept = list((module.class_names if ckpt_path is None else load_checkpoint(ckpt_path).get("class_names")) or [])
    return kept if len(kept) == classes else [str(number) for number in range(classes)]


def sentence(row: Mapping[str, Any]) -> str:
    """Say in a line what a row of the table says."""
    what = row["file"] + (f", row {row['row']}" if "row" in row else "")
    if "class" in row:
        return f"{what}: {row['class']} ({row['probability']:.1%})"
    return f"{what}: resembles {row['nearest']} (cosine {row['cosine']:.2f})" if row["nearest"] is not None else f"{what}: alone"


# ---- the three kinds of students


def _pictures(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, path: str, class_names: Sequence[str]) -> Predicted:
    inputs, bad = find_pictures(path, data.options.on_bad_file)
    numbers = _judge_files(trainer, module, data, inputs)
    rows = [{"file": given.name} | likeliest(said, class_names) for given, said in zip(inputs, numbers, strict=True)]
    places = evenly_spaced(len(inputs), SHOWN)
    titles = {place: f"{rows[place]['class']}, {rows[place]['probability']:.1%}" for place in places}
    _draw(trainer, inputs, {place: [place] for place in places}, titles)
    return _predicted(trainer, rows, bad, {"pictures": len(rows), "classes": len({row["class"] for row in rows})})


def _faces(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, path: str, class_names: Sequence[str]) -> Predicted:
    inputs, bad = find_pictures(path, data.options.on_bad_file)
    embeddings = _judge_files(trainer, module, data, inputs)
    with atomic(artefact_folder(trainer) / "embeddings.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, names=np.array([given.name for given in inputs]), embeddings=embeddings)
    others, cosines = nearest(torch.from_numpy(embeddings))
    rows = []
    for given, places, values in zip(inputs, others.tolist(), cosines.tolist(), strict=True):
        named_so = [inputs[place].name for place in places]
        rows.append({"file": given.name} | (_ranked("nearest", named_so, "cosine", values) if places else {"nearest": None, "cosine": None}))
    shown = evenly_spaced(len(inputs), SHOWN)
    pairs = {place: [place, *others[place, :1].tolist()] for place in shown}
    _draw(trainer, inputs, pairs, {place: sentence(rows[place]).partition(": ")[2] for place in shown})
    return _predicted(trainer, rows, bad, {"faces": len(rows)})


def _vectors(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, path: str, class_names: Sequence[str]) -> Predicted:
    if module.embeds:
        raise ValueError("predict takes no vectors for a student of embeddings: it compares pictures of faces")
    base, files = find_files(path, VECTORS, "vector file", "vector files", "inbox/*.npy")
    width = module.hparams.shape[0]
    read = [(given.name, read_vectors(given.file, width)) for given in named(files, base)]
    rows = []
    for name, vectors in read:
        said = torch.cat([_answers(trainer, module, part) for part in vectors.split(_ROWS)]).numpy()
        rows += [{"file": name, "row": number} | likeliest(numbers, class_names) for number, numbers in enumerate(said)]
    log_figure(trainer, "overview", draw_bars([rows[place] for place in evenly_spaced(len(rows), SHOWN)]))
    return _predicted(trainer, rows, [], {"vectors": len(rows), "classes": len({row["class"] for row in rows})})


def _predicted(trainer: ProjectTrainer, rows: list[dict[str, Any]], bad: list[dict[str, str]], summary: dict[str, Any]) -> Predicted:
    left_out, exit_code = report_left_out(trainer, bad)
    return Predicted(rows, summary | left_out, exit_code)


# ---- what is said


def _answers(trainer: ProjectTrainer, module: RouteDistillation, inputs: Tensor) -> Tensor:
    """Return, for (B, ...) inputs as the student takes them, (B, d) embeddings of length 1, or (B, 2 k): the k likeliest labels, then their chances.

    Raises:
        ValueError: if one is not finite.
    """
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        outputs = module(inputs.to(module.device)).float().cpu()
    if not outputs.isfinite().all():
        raise ValueError("what the network says is not finite; use --trainer.precision 32, or another checkpoint")
    if module.embeds:
        return F.normalize(outputs, dim=1)
    chances, labels = outputs.softmax(1).topk(min(TOP, outputs.shape[1]), dim=1)
    return torch.cat([labels.float(), chances], dim=1)


def likeliest(numbers: NDArray[np.float32], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the columns `class`, `probability`, `class_2`, `probability_2`, ... from (2 k,) labels and probabilities."""
    labels, chances = np.split(numbers, 2)
    return _ranked("class", [class_names[int(label)] for label in labels], "probability", chances.tolist())


def _ranked(name: str, names: Sequence[str], value: str, values: Sequence[float]) -> dict[str, Any]:
    pairs = enumerate(zip(names, values, strict=True), start=1)
    return {key: cell for rank, both in pairs for key, cell in zip((_numbered(name, rank), _numbered(value, rank)), both, strict=True)}


def _numbered(name: str, rank: int) -> str:
    return name if rank == 1 else f"{name}_{rank}"


def nearest(embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Find the others that each of some faces resembles most.

    Args:
        embeddings: (N, d) of length 1.

    Returns:
        (N, k) places of the others, and (N, k) cosines, falling; k is `TOP`, or N - 1 if that is less.
    """
    count = min(TOP, len(embeddings) - 1)
    places, cosines = [], []
    for start in range(0, len(embeddings), _ROWS):
        similarity = embeddings[start : start + _ROWS] @ embeddings.T
        own = torch.arange(len(similarity))
        similarity[own, start + own] = -torch.inf
        values, found = similarity.topk(count, dim=1)
        places.append(found)
        cosines.append(values)
    return torch.cat(places), torch.cat(cosines)


# ---- pictures


def picture_set(data: DistillationData, shape: Sequence[int], files: Sequence[Path]) -> Dataset:
    """Return the set of some image files, brought to a size as test images are; items are `{"input": (C, H, W)}` and more, bytes or in [0, 1]."""
    labels = torch.zeros(len(files), dtype=torch.int64)
    if shape[0] == 1:
        return Grey(files, shape[1], shape[2])
    if data.source == "identities":
        from projects.rco.faces import FaceFiles

        return FaceFiles(files, labels, shape[1])
    return Files(files, labels, shape[1], has_border=data.source == "imagenet")


class Grey(Dataset):
    """Image files in grey, of which the centre of the wanted proportions is taken; items are {"input": (1, height, width) in [0, 1]}."""

    def __init__(self, files: Sequence[Path], height: int, width: int) -> None:
        self.files, self.size = files, (height, width)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = read_image(self.files[index], "L")
        scale = min(have / want for have, want in zip(image.shape[1:], self.size, strict=True))
        image = center_crop(image, [max(1, round(scale * side)) for side in self.size])
        return {"input": F.interpolate(image[None], size=self.size, mode="bilinear", align_corners=False, antialias=True)[0].clamp(0, 1)}


def _judge_files(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, inputs: Sequence[Input]) -> NDArray[np.float32]:
    """Return the `_answers` to pictures, (N, m) in their order; those of the same content and settings that lie finished are read."""
    keys = [digest(given.file) for given in inputs]
    settings = repr((weights_digest(module), list(module.hparams.shape), trainer.precision, data.source, data.normalisation))
    folder = artefact_folder(trainer) / "answers" / hashlib.sha256(settings.encode()).hexdigest()[:12]
    if trainer.is_forced and folder.is_dir():
        remove(folder)
    found = _kept(folder)
    if done := sum(key in found for key in keys):
        print(f"{done} of {len(keys)} pictures were judged already by an earlier run (--force does them again)")
    todo = {key: given.file for key, given in zip(keys, inputs, strict=True) if key not in found}
    images, progress = picture_set(data, module.hparams.shape, list(todo.values())), Interval()
    loader: Iterable[dict[str, Tensor]] = DataLoader(images, batch_size=BATCH, num_workers=data.num_workers) if todo else []
    for number, batch in enumerate(loader):
        own = list(todo)[number * BATCH : (number + 1) * BATCH]
        said = _answers(trainer, module, data.finish(batch, augment=False)["input"]).numpy()
        with atomic(folder / f"{own[0]}.npz") as temporary, temporary.open("wb") as file:
            np.savez(file, keys=np.array(own), answers=said)
        found |= dict(zip(own, said, strict=True))
        if progress.is_over():
            print(f"  {len(found)} of {len(keys)}", flush=True)
    return np.stack([found[key] for key in keys])


def _kept(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Read the answers that lie in a folder, by the digest of the picture; damaged files count as not there."""
    found: dict[str, NDArray[np.float32]] = {}
    for path in sorted(folder.glob("*.npz")):
        try:
            with np.load(path, allow_pickle=False) as part:
                found |= dict(zip(part["keys"].tolist(), part["answers"], strict=True))
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            continue
    return found


def _draw(trainer: ProjectTrainer, inputs: Sequence[Input], shown: Mapping[int, Sequence[int]], titles: Mapping[int, str]) -> None:
    """Draw pictures, by their places, with others beside each."""
    thumbnails = []
    for place, beside_it in shown.items():
        title = f"{shortened(inputs[place].name)}\n{shortened(titles[place], 50)}"
        thumbnails.append((title, beside([read_levels(inputs[other].file) for other in beside_it])))
    heading = f"{len(thumbnails)} of {len(inputs)} pictures" if len(thumbnails) < len(inputs) else ""
    log_figure(trainer, "overview", overview(thumbnails, 4 if all(len(others) == 1 for others in shown.values()) else 3, heading))


# ---- vectors


def read_vectors(path: Path, width: int) -> Tensor:
    """Read vectors from an .npy or .npz file, whose array `x`, or only array, has the shape (n,) or (N, n), or from a .csv file, headed or not.

    Returns:
        (N, width) float32.

    Raises:
        BadFileError: if the file is damaged or of another kind, or a row has NaN, infinity, words, or another number of columns; says which, from 0.
    """
    with blamed(path):
        array = _from_csv(path, width) if path.suffix.lower() == ".csv" else _from_numpy(path)
        if array.dtype.kind not in "fiub" or array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}, expected numbers of shape ({width},) or (N, {width})")
        rows = np.atleast_2d(array)
        if rows.shape[1] != width:
            raise ValueError(f"its rows have {rows.shape[1]} numbers, the student takes {width}: give the columns that it was trained on")
        vectors = rows.astype(np.float32)
        if bad := np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
            raise ValueError(
                f"NaN or infinity in {len(bad)} of its rows, counted from 0: {', '.join(first_few(map(str, bad), 5))}; repair or remove them"
            )
    return torch.from_numpy(vectors)


def _from_numpy(path: Path) -> NDArray[Any]:
    if path.suffix.lower() not in VECTORS:
        raise ValueError(f"the student takes vectors: give a file ending in {', '.join(VECTORS)}")
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    loaded = read_npz(path)
    if "x" not in loaded and len(loaded) != 1:
        raise ValueError(f"it holds the arrays {', '.join(first_few(sorted(loaded))) or '(none)'}: call the one to judge x")
    return loaded["x"] if "x" in loaded else next(iter(loaded.values()))


def _from_csv(path: Path, width: int) -> NDArray[np.float64]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)]
    if lines and not any(_is_number(cell) for cell in lines[0]):
        lines = lines[1:]
    for number, line in enumerate(lines):
        if len(line) != width or not all(_is_number(cell) for cell in line):
            words = [cell for cell in line if not _is_number(cell)]
            what = f"the word {words[0]!r}" if words and len(line) == width else f"{len(line)} columns"
            raise ValueError(f"row {number}, counted from 0 below the header, has {what}, expected {width} numbers between commas")
    return np.array([[float(cell) for cell in line] for line in lines])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def draw_bars(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the probabilities of the likeliest classes, a panel a row."""
    from matplotlib.figure import Figure

    columns = min(4, len(rows))
    count = -(-len(rows) // columns)
    figure = Figure(figsize=(3.4 * columns, 1.8 * count), layout="constrained")
    axes = list(figure.subplots(count, columns, squeeze=False).flat)
    for axis in axes:
        axis.axis("off")
    for axis, row in zip(axes, rows, strict=False):
        ranks = [rank for rank in range(1, TOP + 1) if _numbered("class", rank) in row]
        axis.axis("on")
        axis.barh([shortened(row[_numbered("class", rank)], 20) for rank in ranks], [row[_numbered("probability", rank)] for rank in ranks])
        axis.invert_yaxis()
        axis.set_xlim(0, 1)
        axis.set_title(f"{shortened(row['file'], 30)}, row {row['row']}", fontsize=9, parse_math=False)
    return figure
