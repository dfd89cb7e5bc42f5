"""Fitting over several processes, in passes that Lightning runs; what an interrupted fit has made of its pictures is not made again."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import Dataset

from projects.comad.data import InspectionData, PictureFiles
from projects.comad.features import FeatureExtractor
from projects.comad.inspector import Inspector
from projects.comad.module import MODEL, ComponentInspection
from shared.distributed import gather_objects
from shared.loggers import artefact_folder
from shared.runs import atomic, remove

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from shared.cli import ProjectTrainer


FEW = 10
"""Training pictures below which a note is made."""


class Reader(Sequence[Tensor]):
    """A sequence of tensors that are read, each time, when they are asked for.

    Args:
        read: returns one of them.
        length: how many there are.
    """

    def __init__(self, read: Callable[[int], Tensor], length: int) -> None:
        self.read, self.length = read, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: Any) -> Any:
        return self.read(place)


class Kept:
    """Tensors of pictures in files, so that memory does not grow with their number, processes share them, and a killed fit goes on.

    Args:
        folder: of the files.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder  # made by the first tensors: the processes may not have met yet, and the first one takes no run that is there

    def has(self, name: str, places: Sequence[int]) -> bool:
        """Tell whether all of some pictures are there."""
        return all(self._file(name, place).is_file() for place in places)

    def put(self, name: str, places: Sequence[int], values: Tensor) -> None:
        """Keep (B, ...) of pictures."""
        from safetensors.torch import save_file

        for place, value in zip(places, values.cpu(), strict=True):
            with atomic(self._file(name, place)) as temporary:
                save_file({name: value.contiguous().clone()}, temporary)

    def get(self, name: str, places: Sequence[int]) -> Tensor:
        """Return (B, ...) of pictures."""
        from safetensors.torch import load_file

        return torch.stack([load_file(self._file(name, place))[name] for place in places])

    def all(self, name: str, count: int) -> Iterator[Tensor]:
        """Yield (1, ...) of each of `count` pictures, in order."""
        return (self.get(name, [place]) for place in range(count))

    def each(self, name: str, count: int) -> Reader:
        """Return a sequence of (...) of `count` pictures, each read when it is asked for."""
        return Reader(lambda place: self.get(name, [place])[0], count)

    def _file(self, name: str, place: int) -> Path:
        return self.folder / f"{name}-{place:06}.safetensors"


class Pass(L.LightningModule):
    """Goes once through pictures and keeps something of each.

    Args:
        inspector: what is being fitted.
        networks: modules that have to be on the device.
        kept: where it is kept.
    """

    def __init__(self, inspector: Inspector, networks: Sequence[FeatureExtractor], kept: Kept) -> None:
        super().__init__()
        self.inspector, self.kept = inspector, kept
        self.networks = torch.nn.ModuleList(networks)


class Collection(Pass):
    """Keeps the pictures, at the size that they are looked at, so that files are read once."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.kept.put("image", batch["index"].tolist(), batch["image"])


class Observation(Pass):
    """Keeps features, those of the patch memory if it has its own, and the tokens that the vocabulary is fitted to."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        inspector, places = self.inspector, batch["index"].tolist()
        if not self.kept.has("tokens", places):
            features = inspector.features(batch["image"])
            self.kept.put("features", places, features)
            if inspector.structural is not None:
                self.kept.put("structural", places, inspector.structural(batch["image"]))
            tokens = [inspector.sample(own[None], place) for own, place in zip(features, places, strict=True)]
            self.kept.put("tokens", places, torch.stack(tokens))  # last: who has them has all


class Segmentation(Pass):
    """Keeps the heat maps of components."""

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        places = batch["index"].tolist()
        if not self.kept.has("levels", places):
            features = self.kept.get("features", places).to(self.device)
            self.kept.put("levels", places, self.inspector.segment(batch["image"], features))


class KeptPictures(Dataset):
    """Pictures that were kept, as batches have them.

    Args:
        kept: where they are.
        count: how many there are.
    """

    def __init__(self, kept: Kept, count: int) -> None:
        self.kept, self.count = kept, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {"image": self.kept.get("image", [place])[0], "index": place}


class Calibration(L.LightningModule):
    """Scores pictures of validation.

    Args:
        module: the inspector, fitted.
    """

    def __init__(self, module: ComponentInspection) -> None:
        super().__init__()
        self.module = module
        self.rows: list[tuple[int, dict[str, float]]] = []

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        scores = self.module.inspector.examine(batch["image"]).scores
        for row, place in enumerate(batch["index"].tolist()):
            self.rows.append((place, {part: float(values[row]) for part, values in scores.items()}))

    def gathered(self) -> dict[str, Tensor]:
        """Return the scores of all processes, (N,) by part, in the order of the pictures."""
        rows = [scores for _, scores in sorted(gather_objects(self.rows), key=lambda row: row[0])]
        return {part: torch.tensor([row[part] for row in rows], dtype=torch.float64) for part in rows[0]}


def learn(trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData) -> None:
    """Fit the inspector to the training pictures, set scales and threshold by those of validation, and write its file into the run folder.

    Args:
        trainer: the trainer, with its processes and run.
        module: the inspector and its features.
        data: the pictures.

    Raises:
        ValueError: if there are too few pictures, or no cluster is a component.
        OSError: if a file cannot be written.
    """
    data.prepare_data()
    data.setup()
    inspector, count = module.inspector, len(data.train_set)
    earlier = _earlier(module)
    for remark in remarks(inspector, data):
        _say(trainer, remark)
    inspector.about = {"product": data.name, "training": count, "validation": len(data.val_set), "source": data.source}
    inspector.about["original_size"] = list(data.train_set.original_size(0))
    kept = Kept(artefact_folder(trainer) / "kept" / _fingerprint(inspector, data))
    networks = [module.features, *([module.structural] if module.structural is not None else [])]
    _say(trainer, f"1/4 features of {count} training pictures")
    if not kept.has("image", range(count)):
        _run(trainer, Collection(inspector, networks, kept), data.train_dataloader())
    pictures = data.evaluation_loader(KeptPictures(kept, count))
    for features in networks:
        if features.learns:
            features.fit(kept.all("image", count))  # by every process, with all pictures
    _run(trainer, Observation(inspector, networks, kept), pictures)
    _say(trainer, "2/4 components")
    inspector.learn_vocabulary(torch.cat([tokens.flatten(0, 1) for tokens in kept.all("tokens", count)]))
    if inspector.recipe.choose is not None:
        _say(trainer, f"    {inspector.recipe.k} clusters by {inspector.recipe.choose}")
    if earlier is not None:
        inspector.number_like(earlier)
    _run(trainer, Segmentation(inspector, networks, kept), pictures)
    _say(trainer, "3/4 measures and patches")
    draft = kept.folder / MODEL  # without scales and threshold: nobody may take it for a model
    if trainer.is_global_zero:
        inspector.learn_components(kept.each("levels", count), kept.each("image", count))
        for dropped in inspector.drop_absent() if earlier is not None else ():
            _say(trainer, f"    {dropped}")
        inspector.judged_by(inspector.judgement)
        inspector.learn_patches(kept.all("features" if module.structural is None else "structural", count))
        inspector.calibrate_with({part: torch.zeros(1, dtype=torch.float64) for part in inspector.recipe.parts})
        inspector.save(draft)
    trainer.strategy.barrier()
    module.load(draft)
    _say(trainer, f"4/4 scores of good pictures of validation: {len(data.val_set)}")
    calibrate(trainer, module, data)
    if trainer.is_global_zero:
        module.inspector.save(trainer.run.path / MODEL)
        remove(kept.folder.parent)
    trainer.strategy.barrier()


def remarks(inspector: Inspector, data: InspectionData) -> list[str]:
    """Say what a user should know before the work begins.

    Raises:
        ValueError: if there is only one training picture.
    """
    training, validation, needed = len(data.train_set), len(data.val_set), math.ceil(1 / max(1 - inspector.judgement.quantile, 1e-9))
    if training < 2:
        raise ValueError("there is one training picture after some are held out: nothing can be compared with others; add good pictures")
    said = []
    if training < FEW:
        said.append(f"note: {training} training pictures are few: measures need some dozens to tell what is usual")
    if inspector.judgement.quantile < 1 and validation < needed:
        quantile = f"the quantile {inspector.judgement.quantile:g} of the scores needs {needed} good pictures of validation"
        said.append(f"note: {quantile}, and there are {validation}: expect more false alarms, or add good pictures")
    return said


def _earlier(module: ComponentInspection) -> Inspector | None:
    """Return the inspector whose components keep their numbers, if any.

    Raises:
        ValueError: if it has other features, or another number of clusters.
    """
    if module.hparams.like is None:
        return None
    own, earlier = module.inspector, copy.deepcopy(module).load(module.hparams.like).inspector
    theirs, ours = (" ".join(filter(None, (one.name, getattr(one, "output", "")))) for one in (earlier.features, own.features))
    if theirs != ours:
        raise ValueError(f"{module.hparams.like} was fitted to features {theirs}, here they are {ours}: give the same")
    if own.recipe.choose is not None or earlier.recipe.k != own.recipe.k:
        raise ValueError(f"{module.hparams.like} has {earlier.recipe.k} clusters: give --model.k {earlier.recipe.k} and no model.choose_k")
    return earlier


def calibrate(trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData) -> None:
    """Set scales and threshold by the pictures of validation, under the inspector's present judgement."""
    task = Calibration(module)
    _run(trainer, task, data.val_dataloader())
    module.inspector.calibrate_with(task.gathered())


def _run(trainer: ProjectTrainer, task: L.LightningModule, loader: DataLoader) -> None:
    L.Trainer.predict(trainer, task, dataloaders=loader, return_predictions=False)
    trainer.strategy.barrier()  # then what all processes kept is there


def _say(trainer: ProjectTrainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, flush=True)


def _fingerprint(inspector: Inspector, data: InspectionData) -> str:
    """Return a name for what is kept, which other settings and other pictures do not share."""
    options = {name: value for name, value in data.hparams.items() if name not in ("batch_size", "num_workers")}
    networks = [None if features is None else features.state() for features in (inspector.features, inspector.structural)]
    plain = [state and [part.tolist() if isinstance(part, Tensor) else part for part in state.values()] for state in networks]
    paths = [picture.path for picture in data.train_set.pictures] if isinstance(data.train_set, PictureFiles) else []
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.sha256(repr((inspector.recipe.state(), plain, sorted(options.items()), files)).encode()).hexdigest()[:12]
