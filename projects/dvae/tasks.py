"""The verbs `purify`, `poison`, `train` and `detect`: sets read, made, judged and written."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch
import yaml
from torch import Tensor

from projects.dvae.callbacks import Separations
from projects.dvae.data import PurificationData
from projects.dvae.module import Purifier
from projects.dvae.pictures import GAIN, SHOWN, around_grey, sheet
from projects.dvae.purification import psnr
from projects.dvae.sets import MANIFEST, FolderSet, Format, ImageSet, LabelledSet, PerturbationWriter, SetWriter, read_manifest, read_set
from shared.callbacks import ResumePoint
from shared.checkpoints import load_checkpoint, weights_digest
from shared.distributed import in_one_process
from shared.loggers import artefact_folder, log_figure, log_image, log_table
from shared.messages import say, shown_path
from shared.metrics import SSIM_WINDOW, ssim
from shared.runs import claim_folder, write_json, write_text

if TYPE_CHECKING:
    from projects.dvae.detection import Verdict
    from projects.dvae.training import Outcome
    from shared.cli import ProjectTrainer


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenSets:
    """What `purify` and `poison` return: the folder of each set, and the figures that head the run's page."""

    folders: dict[str, Path]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """What `train` returns: the victim's accuracies, and the figures that head the run's page."""

    outcome: Outcome
    summary: dict[str, Any]


@dataclass(frozen=True)
class Detected:
    """What `detect` returns: the verdict, 1 as the exit code if the set is poisoned, and what heads the run's page."""

    verdict: Verdict
    exit_code: int
    summary: dict[str, Any]


class Purification(L.LightningModule):
    """Purifies the images of a loader and writes the products; what an earlier, interrupted call wrote is not made again.

    Args:
        purifier: the trained module.
        writers: of what is kept: the product's name (x1, x2, x3, p1, p2) and its writer.
        loader: of the training set, in order, each image once.
    """

    def __init__(self, purifier: Purifier, writers: Sequence[tuple[str, SetWriter]], loader: Any) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True
        self.purifier, self.writers, self.loader = purifier, writers, loader

    def predict_dataloader(self) -> Any:
        return self.loader

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        indices = batch["index"].tolist()
        missing = [(name, writer) for name, writer in self.writers if not writer.has(indices)]
        if missing:
            named = self.purifier.purify(batch).named()
            for name, writer in missing:
                writer.write(indices, named[name].cpu())


def product_names(stages: int) -> list[str]:
    """Return the names of everything that purification with so many stages makes."""
    return [f"x{number}" for number in range(1, stages + 2)] + [f"p{number}" for number in range(1, stages + 1)]


def with_weights(model: Purifier, ckpt_path: str | None, may_be_half_trained: bool = False) -> Purifier:
    """Load the weights in a checkpoint, which the command line has checked against the model, into the model.

    Args:
        model: the module.
        ckpt_path: the checkpoint; None loads nothing.
        may_be_half_trained: says of a training that stopped before the end of its last stage what is still random, instead of refusing it.

    Raises:
        ValueError: if the training stopped before the end of its last stage, whose weights would be random ones.
    """
    if ckpt_path is not None:
        checkpoint, epochs = load_checkpoint(ckpt_path), sum(model.hparams.epochs)
        if checkpoint["epoch"] + 1 < epochs:
            said = f"{ckpt_path} is from epoch {checkpoint['epoch'] + 1} of {epochs}: its last stage is not trained; go on with fit --resume"
            if not may_be_half_trained:
                raise ValueError(said)
            say(f"note: {said}. What is measured of that stage, is measured of random weights")
        model.load_state_dict(checkpoint["state_dict"])
        model.on_load_checkpoint(checkpoint)
    return model


def purify(
    trainer: ProjectTrainer, model: Purifier, data: PurificationData, products: list[str] | None, form: Format, out: str | None
) -> WrittenSets:
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
    known, final = product_names(len(model.stages)), f"x{len(model.stages) + 1}"
    wanted = known if products is None else products
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"--products {', '.join(unknown)}: a model of {len(model.stages)} stage(s) makes {', '.join(known)}")
    data.prepare_data()
    data.setup()
    model.check_set(data)
    places = [(name, artefact_folder(trainer) / name) for name in wanted]
    if out is not None:
        places.append((final, claim_folder(out, MANIFEST, source=data.given_root)))
    key = f"{weights_digest(model)}-{data.fingerprint()}-{model.hparams.seed}"

    def begin() -> list[tuple[str, SetWriter]]:
        options = {"names": data.train_set.names, "labels": data.train_set.labels, "class_names": data.class_names, "shape": data.image_shape}
        kinds = [(name, PerturbationWriter if name.startswith("p") else SetWriter, folder) for name, folder in places]
        return [(name, kind(folder, **options, format=form, key=f"{name}-{key}")) for name, kind, folder in kinds]  # type: ignore[arg-type]

    writers = begin() if trainer.is_global_zero else []
    trainer.strategy.barrier("the sets are begun")
    task = Purification(model, writers or begin(), data.ordered_loader())
    L.Trainer.predict(trainer, task, return_predictions=False)
    trainer.strategy.barrier("the sets are written")
    summary: dict[str, Any] = {"images": len(data.train_set)}
    if trainer.is_global_zero:
        about = {"made_by": "purify", "origin": data.origin(), "rates": model.hparams.rates, "seed": model.hparams.seed}
        for name, writer in writers:
            writer.finish(about | {"product": name}, data.is_poisoned)
        rows = changes(data.train_set, {name: read_set(folder) for name, folder in places if name.startswith("x")})
        log_table(trainer, "changes", rows)
        summary |= {f"purify/{name}": round(sum(row[name] for row in rows) / len(rows), 3) for name in rows[0] if name.startswith(("psnr", "ssim"))}
        shown = {name: value.to(model.device) for name, value in data.train_set.__getitems__(list(range(min(SHOWN, len(rows))))).items()}
        named = model.purify(shown).named()
        sheets = [shown["image"], *(around_grey(images) if name.startswith("p") else images for name, images in named.items())]
        log_image(trainer, "purified", sheet(sheets).cpu())
        for name, folder in places:
            print(f"  {name}: {shown_path(folder)}")
        print("rows of the picture: the images, " + ", ".join(known) + f" (perturbations {GAIN} times around grey)")
    return WrittenSets(dict(places), summary)


def changes(images: LabelledSet, products: dict[str, ImageSet | FolderSet]) -> list[dict[str, Any]]:
    """Return a row an image: its index, its name where it has one, and each stored product's PSNR to it in dB and, from 11 pixels a side, SSIM."""
    rows: list[dict[str, Any]] = []
    measures = {"psnr": psnr, "ssim": ssim} if min(images.image_shape[1:]) >= SSIM_WINDOW else {"psnr": psnr}
    for indices in torch.arange(len(images)).split(64):
        given = images.read(indices.tolist()).float() / 255
        made = {name: product.read(indices.tolist()).float() / 255 for name, product in products.items()}
        found = {f"{measure}_{name}": take(product, given) for measure, take in measures.items() for name, product in made.items()}
        for row, index in enumerate(indices.tolist()):
            named = {"index": index} if images.names is None else {"index": index, "name": images.names[index]}
            rows.append(named | {name: round(float(values[row]), 3) for name, values in found.items()})
    return rows


def train_on_folder(trainer: ProjectTrainer, model: Purifier, data: PurificationData, folder: str) -> tuple[Purifier, PurificationData]:
    """Train a purifier on a user's class folders, as the run's settings say; they become those of the run.

    Args:
        trainer: the trainer; where it is interrupted, --resume goes on.
        model: gives all options but classes, channels and size, which the folder decides.
        data: gives batch size, channels, size and how bad files are met.
        folder: `<class>/*`.
    """
    if data.source != "folder":
        raise ValueError("purify FOLDER would train with settings for small drawn sets: add --config folder, or set data.source to folder")
    kept = {name: data.hparams[name] for name in ("batch_size", "num_workers", "seed", "size", "channels", "on_bad_file", "test_root")}
    own = PurificationData(source="folder", root=folder, **kept)
    own.setup()
    options = dict(model.hparams) | {"classes": len(own.class_names), "size": list(own.image_shape[1:]), "channels": own.image_shape[0]}
    purifier = Purifier(**{name: value for name, value in options.items() if name in Purifier.__init__.__annotations__})
    if trainer.is_global_zero:
        settings = yaml.safe_load(trainer.run.config_file.read_text(encoding="utf-8"))
        settings["model"] |= {name: options[name] for name in ("classes", "size", "channels")}
        settings["data"] |= {"source": "folder", "root": str(Path(folder).expanduser().resolve()), "poison": "none"}
        write_text(trainer.run.config_file, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    last = trainer.run.checkpoints / "last.ckpt"
    trainer.callbacks.extend([ResumePoint(trainer.run.checkpoints, 100), Separations()])  # type: ignore[attr-defined]
    print(f"training on {len(own.train_set)} images of {len(own.class_names)} classes", flush=True)
    L.Trainer.fit(trainer, purifier, datamodule=own, ckpt_path=str(last) if last.is_file() else None)
    return purifier, own


def poison(
    trainer: ProjectTrainer,
    data: PurificationData,
    attack: str,
    out: str | None,
    radius: float | None,
    rate: float,
    choice: Literal["random", "classes"],
    surrogate: str,
    recipe: Literal["paper", "quick"],
    form: Format,
) -> WrittenSets:
    """Write a poisoned copy of the training set, with what the stored integers differ by.

    Args:
        trainer: the trainer, for its device and run.
        data: names the clean set; a poison that its options put on it is left out.
        attack: a key of `ATTACKS`.
        out: folder; None writes among the run's artefacts.
        radius: bound in the attack's unit; None is the customary one.
        rate: part of the images that is poisoned.
        choice: random images or whole classes.
        surrogate: network of attacks that learn.
        recipe: their effort.
        form: png or npy.

    Raises:
        ValueError: for unknown names, wrong bounds, or a folder that holds something else.
    """
    from projects.dvae.poisons import ATTACKS, make_pattern, poison_dataset, tell
    from projects.dvae.victims import build_victim
    from shared.poisons import measure

    in_one_process(trainer)
    data = PurificationData(**(data.options() | {"poison": "none", "perturbation": None}))
    data.prepare_data()
    data.setup()
    folder = artefact_folder(trainer) / attack if out is None else claim_folder(out, MANIFEST, source=data.given_root)
    clean, (channels, *size) = data.train_set, data.image_shape
    classes = len(data.class_names)
    print(f"{attack}: a perturbation for {len(clean)} images of {classes} classes, computed on {trainer.strategy.root_device}", flush=True)
    pattern = make_pattern(
        attack,
        clean,
        classes,
        data.image_shape,
        data.seed,
        radius,
        build=lambda seed: build_victim(surrogate, classes, channels, max(size), seed),
        recipe=recipe,
        device=trainer.strategy.root_device,
        progress=tell(attack),
    )
    images, is_poisoned = poison_dataset(pattern, clean, rate, choice, data.seed)
    if not is_poisoned.any():
        raise ValueError(f"--rate {rate} by {choice} chooses nothing of {len(clean)} images in {classes} classes: raise it")
    originals = clean.load().images
    bounds = {name: round(float(value), 6) for name, value in measure(originals[is_poisoned], images[is_poisoned]).items()}
    writer = SetWriter(
        folder,
        clean.names,
        clean.labels,
        data.class_names,
        data.image_shape,
        form,
        key=f"{attack}-{radius}-{rate}-{choice}-{surrogate}-{recipe}-{data.fingerprint()}",
    )
    for indices in torch.arange(len(clean)).split(256):
        if not writer.has(indices.tolist()):
            writer.write(indices.tolist(), images[indices])
    given: dict[str, Any] = {
        "attack": attack,
        "norm": ATTACKS[attack].kind,
        "radius": ATTACKS[attack].radius if radius is None else radius,
        "rate": rate,
    }
    given |= {"choice": choice, "seed": data.seed, "measured": bounds}
    if ATTACKS[attack].is_learned:
        given |= {"surrogate": surrogate, "recipe": recipe}
    writer.finish({"made_by": "poison", "origin": data.origin()} | given, is_poisoned)
    shift = (images[:SHOWN].float() - originals[:SHOWN].float()) / 255
    log_image(trainer, f"poison_{attack}", sheet([originals[:SHOWN].float() / 255, images[:SHOWN].float() / 255, around_grey(shift)]))
    print(f"{int(is_poisoned.sum())} of {len(clean)} images poisoned; measured on the stored integers: {bounds}\n  {shown_path(folder)}")
    size_options = f"--data.size {size[0]}" if size[0] == size[1] else "--data.size null"
    root = shlex.quote(shown_path(folder))
    print(f"next: lightning run projects/dvae/cli.py fit --data.source stored --data.root {root} --data.poison none {size_options}")
    return WrittenSets({attack: folder}, {"attack": attack} | bounds)


def find_set(trainer: ProjectTrainer, data: PurificationData, path: str | None) -> LabelledSet:
    """Return the set that a verb is to look at: the data set, a product of the run, a stored set, or class folders.

    Raises:
        FileNotFoundError, ValueError: if there is no such set, or its images have another shape or other classes than the data set.
    """
    data.prepare_data()
    data.setup()
    if path is None:
        return data.train_set
    own = trainer.run.artefacts("purify") / path
    folder = own if (own / MANIFEST).is_file() else Path(path).expanduser()
    if read_manifest(folder, must_exist=False) is not None:
        found: LabelledSet = read_set(folder)
    elif folder.is_dir():
        found = FolderSet.of_classes(folder, "RGB" if data.channels == 3 else "L", data.size, data.on_bad_file)
    else:
        made = ", ".join(sorted(manifest.parent.name for manifest in own.parent.glob(f"*/{MANIFEST}"))) or "none: run purify first"
        raise FileNotFoundError(f"{path} is neither a folder nor a product of {shown_path(trainer.run.path)} ({made})")
    for what, theirs, ours in (("shape", found.image_shape, data.image_shape), ("classes", found.class_names, data.class_names)):
        if theirs != ours:
            raise ValueError(f"{path} has the {what} {theirs}, the data set {ours}: name its source with the data options")
    return found


def train(
    trainer: ProjectTrainer,
    data: PurificationData,
    path: str | None,
    victim: str,
    defence: str,
    epochs: int | None,
    recipe: Literal["auto", "paper", "quick"],
    seed: int,
) -> Trained:
    """Train a victim on a set, test it on clean images, and log the curve and the confusion matrix.

    Raises:
        ValueError: for unknown names, or where no clean test images are known.
    """
    from dataclasses import replace

    from projects.dvae.defences import Budget, parse_defence
    from projects.dvae.training import Recipe, train_victim

    labelled = find_set(trainer, data, path).load()
    if not torch.equal(labelled.labels, data.train_set.labels):
        _log.warning("%s has other labels than the data's training set: drawn with another data.seed, it may hold clean test images", path)
    if data.test_set is None:
        raise ValueError("no clean test images are known: name a folder of them with --data.test_root FOLDER")
    test = data.test_set.load()
    is_quick = recipe == "quick" or (recipe == "auto" and data.source in ("digits", "textures"))
    size, classes = max(data.image_shape[1:]), len(data.class_names)
    chosen = Recipe.quick(victim) if is_quick else Recipe.paper(victim, classes, size, defence)
    chosen = chosen if epochs is None else replace(chosen, epochs=epochs)
    budget = Budget(epochs=30, width=24, batch_size=64) if is_quick else None
    made = parse_defence(defence, budget)
    print(f"{victim} on {path or data.source} ({len(labelled)} images), defence {defence}, {chosen.epochs} epochs", flush=True)
    accelerator = trainer.accelerator.__class__.__name__.removesuffix("Accelerator").lower()
    options: dict[str, Any] = {"accelerator": accelerator, "devices": trainer.num_devices, "num_nodes": trainer.num_nodes}
    options["precision"] = trainer.precision
    outcome = train_victim(
        labelled.images, labelled.labels, test.images, test.labels, classes, chosen, made, seed, artefact_folder(trainer) / "victim", **options
    )
    label = f"{(path and Path(path).name) or data.source}-{victim}-{defence}-{seed}".replace(":", "")
    if trainer.is_global_zero:
        write_json(artefact_folder(trainer) / f"{label}.json", asdict(outcome) | {"images": path or data.source, "recipe": asdict(chosen)})
        log_table(trainer, "curve", [{"epoch": epoch, "accuracy": value} for epoch, value in enumerate(outcome.curve, 1)])
        log_figure(trainer, "confusion", confusion_figure(outcome, data.class_names))
        print(f"clean test accuracy: {outcome.last:.3f} after the last epoch, {outcome.peak:.3f} at the peak (epoch {outcome.peak_epoch})")
    return Trained(outcome, {"train/last": outcome.last, "train/peak": outcome.peak, "train/peak_epoch": outcome.peak_epoch})


def confusion_figure(outcome: Outcome, class_names: Sequence[str]) -> Any:
    """Draw the accuracy over the epochs, and the confusion matrix after the last."""
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), width_ratios=(1.2, 1))
    left.plot(range(1, len(outcome.curve) + 1), outcome.curve, marker=".")
    left.set(xlabel="epoch", ylabel="accuracy on clean test images", ylim=(0, 1))
    counts = torch.tensor(outcome.confusion).double()
    shown = right.imshow(counts / counts.sum(1, keepdim=True).clamp_min(1), vmin=0, vmax=1, cmap="viridis")
    if len(class_names) <= 20:
        right.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=7)
        right.set_yticks(range(len(class_names)), class_names, fontsize=7)
    right.set(xlabel="predicted", ylabel="true")
    figure.colorbar(shown, ax=right, label="share of the true class")
    return figure


def detect(trainer: ProjectTrainer, data: PurificationData, path: str | None, reference: str | None, seed: int) -> Detected:
    """Judge a set, and write the scores and the verdict.

    Args:
        trainer: the trainer, for its run.
        data: the data set, which is judged unless `path` names another one.
        path: a stored set, a product of the run, or class folders.
        reference: a clean set of the same kind: class folders or a stored set.
        seed: seed of halves and training.
    """
    from projects.dvae.detection import Detector, check_threshold, judge, score_set

    in_one_process(trainer)
    suspect = find_set(trainer, data, path).load()
    beside = None if reference is None else find_set(trainer, data, reference).load()
    detector = Detector() if beside is None else Detector(images=min(len(suspect), len(beside)))
    if beside is None:
        check_threshold(suspect, detector)
    known = None if beside is None else score_set(beside, detector, seed)
    verdict = judge(score_set(suspect, detector, seed), known)
    rows = [{"set": path or data.source} | verdict.to_row()]
    if known is not None:
        rows.append({"set": reference, "verdict": "reference", "threshold": verdict.threshold} | asdict(known) | {"amplify": known.amplify})
    log_table(trainer, "detection", rows)
    word = "poisoned" if verdict.is_poisoned else "clean"
    print(f"{word}: separability {verdict.scores.separability:.2f}, threshold {verdict.threshold:.2f}; amplify {verdict.scores.amplify:+.2f}")
    if known is None:
        looked = min(len(suspect), detector.images)
        print(f"The threshold is that of {detector.images} drawn digits of 16 pixels; {looked} images were looked at.")
        print("Other clean sets may exceed it: name clean images of the kind with --reference.")
    print("A verdict of clean does not make a set safe to train on: attacks that are not separable in this way are not found.")
    summary = {"verdict": word, "detect/separability": round(verdict.scores.separability, 4), "detect/amplify": round(verdict.scores.amplify, 4)}
    return Detected(verdict, int(verdict.is_poisoned), summary)
