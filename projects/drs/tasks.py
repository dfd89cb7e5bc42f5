"""The verbs `certify` and `predict`: a trained module smoothed, run over a data set or a user's own images, and what it found written down."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from projects.drs.certification import Certification, Plan, Prediction
from projects.drs.data import CertificationData
from projects.drs.module import DualSmoothing
from shared.checkpoints import load_checkpoint, with_weights
from shared.data.crops import on_grid
from shared.data.files import ImageMode, check_images, list_images, read_image
from shared.data.folders import OnBadFile, fit_square
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.runs import digest, remove
from shared.smoothing import Table, read_table, summarise
from shared.smoothing.fast import find_batch_size
from shared.smoothing.log import config_hash, read_rows

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

OWN = "own"
"""What names of logs of a user's own images begin with."""
UNKNOWN = -1
"""The label of images that have none."""
NETWORK = ("split", "split_seed", "embedding", "backbone", "size", "channels", "classes", "statistics", "ensemble", "shared_network")
"""Options of the model that say, with its weights, which classifier it is."""


@dataclass(frozen=True)
class Certified:
    """What `certify` returns: the table that it wrote, and the figures that head the run's page."""

    table: Path
    summary: dict[str, Any]


@dataclass(frozen=True)
class Predicted:
    """What `predict` returns: one row an image, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


class OwnImages(Dataset):
    """A user's image, or those of a folder and its sub-folders, brought to the model's size; without labels.

    Args:
        path: the image or the folder.
        size: side that images are cut and resized to, in pixels.
        channels: 1 or 3.
        on_bad_file: `skip` leaves out images that cannot be read, and says how many.

    Raises:
        FileNotFoundError, BadFileError: if there are none, or one cannot be read; all are checked at once.
    """

    def __init__(self, path: str | Path, size: int, channels: int, on_bad_file: OnBadFile = "refuse") -> None:
        self.root = Path(path).expanduser()
        self.paths = check_images([self.root] if self.root.is_file() else list_images(self.root), on_bad_file)
        self.size = size
        self.mode: ImageMode = "RGB" if channels == 3 else "L"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = read_image(self.paths[index], self.mode)
        if image.shape[1:] != (self.size, self.size):
            image = fit_square(image, self.size)
        return {"image": on_grid(image), "label": UNKNOWN, "index": index}

    def names(self) -> list[str]:
        """Return the files' paths below the folder."""
        return [path.name if path == self.root else path.relative_to(self.root).as_posix() for path in self.paths]


def restored(model: DualSmoothing, ckpt_path: str | None) -> DualSmoothing:
    """Give a module the weights of a checkpoint and the names of the classes that it learned."""
    with_weights(model, ckpt_path)
    model.class_names = load_checkpoint(cast(str, ckpt_path)).get("class_names", [])
    return model


def certify(
    trainer: ProjectTrainer, model: DualSmoothing, data: CertificationData, ckpt_path: str | None, plan: Plan, images: str | None, batch: int | None
) -> Certified:
    """Certify a data set, or a user's images, and write the log, the curve and the table.

    Args:
        trainer: the trainer, with its device and processes.
        model: the module.
        data: the data set.
        ckpt_path: the module's weights.
        plan: noise, budget and certificate.
        images: the user's image or folder; None certifies the data set.
        batch: copies of images in a forward pass.
    """
    restored(model, ckpt_path)
    own, loader = _images(data, images, model)
    classifier = plan.smooth(model, trainer.strategy.root_device, batch)
    network = {name: model.hparams[name] for name in NETWORK}
    about = network | {"weights": digest(Path(cast(str, ckpt_path))), "data": data.fingerprint() if own is None else digest(own.root)}
    if plan.denoiser is not None:
        about |= {"denoiser": digest(Path(plan.denoiser)), "denoising": plan.denoising}
    settings = classifier.settings | about
    label = f"{data.source if own is None else OWN}-sigma{plan.sigma:.4g}-n{plan.draws}-{config_hash(settings)[:6]}"  # other settings, other folder
    folder = artefact_folder(trainer) / label
    if trainer.is_forced and trainer.is_global_zero:
        remove(folder)
    if batch is None and classifier.device.type == "cuda":
        with torch.cuda.device(classifier.device):  # kernels are launched on the current one, and no strategy has chosen it yet
            classifier = plan.smooth(model, classifier.device, find_batch_size(classifier, loader.dataset[0]["image"]))
    task = Certification(classifier, loader, folder, settings)
    try:
        L.Trainer.predict(trainer, task, return_predictions=False)
    finally:
        task.close()
    path = folder / "certify.tsv"
    if trainer.is_global_zero:
        task.merge(asked_for(loader.dataset))
        names = None if own is None else own.names()
        return Certified(path, _report(trainer, path, plan, len(model.net.split) * model.net.ensemble, names, _class_names(data, own, model)))
    return Certified(path, {})


def _images(data: CertificationData, images: str | None, model: DualSmoothing) -> tuple[OwnImages | None, DataLoader]:
    """Return a user's images, or None where the data set's are meant, and a loader of either, dealt over the processes."""
    if images is not None:
        own = OwnImages(images, data.size, data.channels, data.on_bad_file)
        return own, data.evaluation_loader(own)
    data.prepare_data()
    data.setup()
    model.check_classes(data.class_names)
    return None, data.certification_loader()


def asked_for(images: Dataset) -> set[int]:
    """Return the indices in the data set of the images that were asked for: the log may hold others of earlier runs."""
    return set(images.indices) if isinstance(images, Subset) else set(range(len(cast(Sized, images))))


def _class_names(data: CertificationData, own: OwnImages | None, model: DualSmoothing) -> list[str]:
    """Return the names of the classes: those that the model learned, else the data set's, else numbers."""
    if own is None or model.class_names:
        return model.class_names or data.class_names
    try:
        data.setup()
        model.check_classes(data.class_names)
    except (OSError, ValueError):
        return [str(number) for number in range(model.net.classes)]
    return data.class_names


def _report(trainer: ProjectTrainer, path: Path, plan: Plan, networks: int, names: list[str] | None, classes: list[str]) -> dict[str, Any]:
    """Write and print what the log says, where every draw, those of the selection too, passes `networks`; return the figures for the run's page."""
    table = exact_table(path)
    draws = torch.tensor([plan.selection + row.details["draws"] for row in read_rows(path.with_suffix(".jsonl"))[1]], dtype=torch.float64)
    passes = float(draws.mean()) * networks
    seconds = float(table.seconds.mean())
    print(f"\n{len(table)} images, {passes:,.0f} forward passes and {seconds:.2f} s an image; the table: {shown_path(path)}")
    if names is not None:
        rows = own_rows(path, names, classes)
        log_table(trainer, "certificates", rows)
        for row in rows[:20]:
            print(f"  {row['file']}: {row['class'] or 'abstains'}" + (f", certified to {row['radius']:.3f}" if row["radius"] else ""))
        return {"images": len(table), "abstention": float((table.predicted == UNKNOWN).double().mean())}
    radii = default_radii(table, plan.sigma)
    figures = summarise(table, radii, plan.alpha)
    rows = [{"radius": radius, "certified_accuracy": share} for radius, share in zip(radii, figures.certified_accuracy, strict=True)]
    log_table(trainer, "certified_accuracy", rows)
    from shared.smoothing.plots import figure

    log_figure(trainer, "certified_accuracy", figure({path.parent.name: table}))
    print("certified accuracy: " + "  ".join(f"{row['radius']:g}: {row['certified_accuracy']:.3f}" for row in rows))
    print(f"average certified radius {figures.average_certified_radius:.4f}, abstentions {figures.abstention:.1%}")
    summary = {"certify/acr": figures.average_certified_radius, "certify/abstention": figures.abstention}
    summary |= {f"certify/accuracy_{row['radius']:g}": row["certified_accuracy"] for row in rows}
    for logger in trainer.loggers:
        logger.log_metrics(summary, 0)
        logger.save()
    return {name: round(value, 6) for name, value in summary.items()}


def exact_table(path: Path) -> Table:
    """Read a log with its full radii instead of those of three digits."""
    table, rows = read_table(path), read_rows(path.with_suffix(".jsonl"))[1]
    table.radius.copy_(torch.tensor([row.radius for row in rows], dtype=torch.float64))
    return table


def default_radii(table: Table, sigma: float) -> list[float]:
    """Return radii from 0 up to the largest certified one, in the usual steps of a quarter, in smaller round ones where the noise is small."""
    step = next((step for step in (0.25, 0.1, 0.05, 0.025, 0.01) if step <= 1.4 * sigma), 0.005)
    return [round(step * number, 4) for number in range(int(float(table.radius.max()) / step) + 1)]


def own_rows(path: Path, names: Sequence[str], classes: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row for each of a user's images: file, class (empty for an abstention) and radius."""
    rows = read_rows(path.with_suffix(".jsonl"))[1]
    return [{"file": names[row.index], "class": "" if row.predicted < 0 else classes[row.predicted], "radius": row.radius} for row in rows]


def predict(
    trainer: ProjectTrainer,
    model: DualSmoothing,
    data: CertificationData,
    ckpt_path: str | None,
    plan: Plan,
    images: str | None,
    draws: int,
    alpha: float,
    seed: int | None,
) -> Predicted:
    """Predict a data set's or a user's images by the smoothed classifier, and write a table and a sheet of pictures.

    Args:
        trainer: the trainer, with its device and processes.
        model: the module.
        data: the data set.
        ckpt_path: the module's weights.
        plan: noise and networks; its budget has no effect.
        images: the user's image or folder; None predicts the data set.
        draws: draws of an image, over all branches.
        alpha: failure probability of a prediction.
        seed: seed of the noise; None draws a fresh key.
    """
    restored(model, ckpt_path)
    own, loader = _images(data, images, model)
    task = Prediction(plan.smooth(model, trainer.strategy.root_device), loader, draws, alpha, seed)
    L.Trainer.predict(trainer, task, return_predictions=False)
    found = task.gathered()
    classes, names = _class_names(data, own, model), None if own is None else own.names()
    rows: list[dict[str, Any]] = [{"class": classes[row["predict"]] if row["predict"] >= 0 else ""} | row for row in found]
    if names is not None:
        rows = [{"file": names[row["index"]]} | {name: value for name, value in row.items() if name != "label"} for row in rows]
    summary = {"images": len(rows), "abstention": sum(row["predict"] < 0 for row in rows) / len(rows)}
    if names is None:
        summary["accuracy"] = sum(row["predict"] == row["label"] for row in found) / len(rows)
    if trainer.is_global_zero:
        log_table(trainer, "predictions", rows)
        log_figure(trainer, "predictions", sheet(loader.dataset, rows[:24]))
        shown = ", ".join(f"{name} {value:.3g}" for name, value in summary.items())
        print(f"\n{shown}; the table: {shown_path(artefact_folder(trainer) / 'predictions.csv')}")
    return Predicted(rows, summary)


def sheet(images: Dataset, rows: Sequence[dict[str, Any]]) -> Any:
    """Draw images with what was predicted for them: the class and its share of the votes, or an abstention."""
    import matplotlib.pyplot as plt

    columns = min(6, len(rows))
    figure, axes = plt.subplots(-(-len(rows) // columns), columns, figsize=(2.0 * columns, 2.4 * -(-len(rows) // columns)), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, (axis, row) in enumerate(zip(axes.flat, rows, strict=False)):
        image: Tensor = images[number]["image"]
        axis.imshow(image.permute(1, 2, 0).squeeze(2), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        title = f"{row['class']}  {row['share']:.0%}" if row["class"] else f"abstains  {row['share']:.0%}"
        axis.set_title(title, fontsize=9, color="black" if row["class"] else "firebrick")
    return figure
