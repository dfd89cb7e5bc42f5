"""The verb `purify`: the whole training set through the trained D-VAEs, written as sets that any training can read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
from torch import Tensor

from projects.dvae.module import Purifier
from projects.dvae.purification import psnr
from projects.dvae.sets import PerturbationWriter, SetWriter
from shared.checkpoints import load_checkpoint
from shared.distributed import gather_objects
from shared.loggers import artefact_folder, log_image, log_table
from shared.messages import shown_path

if TYPE_CHECKING:
    from projects.dvae.data import PurificationData
    from shared.cli import ProjectTrainer

Format = Literal["png", "npy"]


@dataclass(frozen=True)
class PurifiedSets:
    """What `purify` returns: the folder of each product, and the figures that head the run's page."""

    folders: dict[str, Path]
    summary: dict[str, Any]


class Purification(L.LightningModule):
    """Purifies the images of a loader and writes the products; what an earlier, interrupted call wrote is not made again.

    Args:
        purifier: the trained module.
        writers: a writer for each product to keep, by its name (x1, x2, x3, p1, p2).
        loader: of the training set, in order, each image once.
    """

    def __init__(self, purifier: Purifier, writers: dict[str, SetWriter | PerturbationWriter], loader: Any) -> None:
        super().__init__()
        self.purifier, self.writers, self.loader = purifier, writers, loader
        self.rows: list[dict[str, float]] = []

    def predict_dataloader(self) -> Any:
        return self.loader

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        indices = batch["index"].tolist()
        if all(writer.has(indices) for writer in self.writers.values()):
            return
        found = self.purifier.purify(batch)
        named = found.named()
        for name, writer in self.writers.items():
            writer.write(indices, named[name].cpu())
        changes = {name: psnr(images, batch["image"]) for name, images in named.items() if name.startswith("x")}
        for row, index in enumerate(indices):
            self.rows.append({"index": index} | {f"psnr_{name}": float(values[row]) for name, values in changes.items()})


def product_names(stages: int) -> list[str]:
    """Return the names of everything that purification with so many stages makes."""
    return [f"x{number}" for number in range(1, stages + 2)] + [f"p{number}" for number in range(1, stages + 1)]


def with_weights(model: Purifier, ckpt_path: str | None) -> Purifier:
    """Load the weights in a checkpoint, which the command line has checked against the model, into the model."""
    if ckpt_path is not None:
        model.load_state_dict(load_checkpoint(ckpt_path)["state_dict"])
    return model


def purify(
    trainer: ProjectTrainer, model: Purifier, data: PurificationData, products: list[str] | None, form: Format, out: str | None
) -> PurifiedSets:
    """Write the purified sets among the run's artefacts, and the last product to the folder that the user named.

    Args:
        trainer: the trainer, with its device and processes.
        model: the trained module.
        data: the set that it was trained on.
        products: names of what to write; None writes everything.
        form: png or npy.
        out: the user's folder for the last product, or None.

    Raises:
        ValueError: for an unknown product, or a folder that holds something else.
    """
    known = product_names(len(model.stages))
    wanted = known if products is None else products
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--products {', '.join(unknown)}: a model of {len(model.stages)} stage(s) makes {', '.join(known)}")
    data.prepare_data()
    data.setup()
    final = known[len(model.stages)]
    folders = {name: artefact_folder(trainer) / name for name in wanted}
    if out is not None:
        folders["out"] = claim_folder(out, MANIFEST, source=data.given_root)
    writers = {name: _writer(folder, final if name == "out" else name, data, form) for name, folder in folders.items()}
    task = Purification(model, {final if name == "out" else name: writer for name, writer in writers.items()}, data.ordered_loader())
    L.Trainer.predict(trainer, task, return_predictions=False)
    rows = sorted(gather_objects(task.rows), key=lambda row: row["index"])
    return PurifiedSets(folders, {"images": len(rows)})
