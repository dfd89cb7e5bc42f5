"""The verbs `protect`, `verify` and `attack`: sets published, and what exploiters make of them."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from projects.umed.callbacks import change_sheet
from projects.umed.data import ProtectionData
from projects.umed.module import Protector
from projects.umed.protected import MANIFEST, protected_files, read_manifest, read_protected, write_protected
from projects.umed.sets import MaskedSet, SegmentationSet
from shared.checkpoints import weights_digest
from shared.distributed import in_one_process
from shared.loggers import artefact_folder, log_figure, log_image, log_table
from shared.messages import shown_path
from shared.runs import write_json

if TYPE_CHECKING:
    from projects.umed.exploiting import Outcome, Recipe
    from shared.cli import ProjectTrainer

RecipeName = Literal["auto", "paper", "quick"]
SHOWN = 6
OFFLINE = ("ellipses", "micrographs")


@dataclass(frozen=True)
class Published:
    """What `protect` returns: the folder, its manifest, and the figures that head the run's page."""

    folder: Path
    manifest: dict[str, Any]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Verified:
    """What `verify` returns: the exploiter on the clean and on the protected copy, 1 as the exit code if the protection fails, and the summary."""

    clean: Outcome
    protected: Outcome
    exit_code: int
    summary: dict[str, Any]


@dataclass(frozen=True)
class Attacked:
    """What `attack` returns: what the exploiter learnt, and the figures that head the run's page."""

    outcome: Outcome
    summary: dict[str, Any]


def everything(data: ProtectionData) -> MaskedSet:
    """Return all images of a source, in no split; of a drawn one those of all its splits, in a folder each."""
    if data.source not in OFFLINE:
        return data.all_files()
    parts = {"train": data.train_set.load(), "val": data.val_set.load(), "test": data.test_set.load()}
    names = [f"{split}/{name}" for split, images in parts.items() for name in images.names]
    images, masks = (torch.cat([getattr(part, what) for part in parts.values()]) for what in ("images", "mask_bytes"))
    return SegmentationSet(images, masks, names, None, data.class_count, data.class_names)


def protect(trainer: ProjectTrainer, model: Protector, data: ProtectionData, folder: str | None, out: str | None) -> Published:
    """Write protected copies of all images of a source, or of a user's folder.

    Args:
        trainer: the trainer, with its device and run.
        model: the trained generators.
        data: the source, and how masks and depths of a folder are read.
        folder: a user's images/ and masks/; None takes the source.
        out: where to write; None writes among the run's artefacts.

    Raises:
        ValueError: if images and generators do not fit, no mask has foreground, or `out` holds something else.
    """
    in_one_process(trainer)
    if folder is not None:
        options = {name: data.hparams[name] for name in ("mask_values", "window", "on_bad_file")}
        if data.source != "folder":
            options |= {"mask_values": None, "window": None}
        data = ProtectionData(source="folder", root=folder, channels=model.hparams.channels, classes=model.hparams.classes, **options)
    elif data.source in OFFLINE:
        data.prepare_data()
    images = everything(data)
    if images.image_shape[0] != model.hparams.channels or images.classes != model.hparams.classes:
        theirs, ours = (images.image_shape[0], images.classes), (model.hparams.channels, model.hparams.classes)
        raise ValueError(f"images of {theirs[0]} channel(s) and {theirs[1]} class(es), generators for {ours[0]} and {ours[1]}: train with such data")
    if not any(bool(images.original(index).mask.any()) for index in range(len(images))):  # the first that has some ends the search
        raise ValueError(
            f"the masks of all {len(images)} images are empty, so nothing would be protected: check how they are written, see data.mask_values"
        )
    device = trainer.strategy.root_device
    model.to(device)
    about = {"method": "umed"} | {name: model.hparams[name] for name in ("epsilon", "texture", "clip", "high_pass", "seed")}
    about |= {"generator": weights_digest(model.perturbator), "source": data.source, "precision": trainer.precision}
    target = artefact_folder(trainer) / "set" if out is None else Path(out)

    def perturb(levels: Tensor, masks: Tensor) -> Tensor:
        with trainer.precision_plugin.forward_context():
            return model.delta(levels, masks).float().cpu()

    def report(count: int) -> None:
        print(f"\r{count} of {len(images)} images", end="" if count < len(images) else "\n", flush=True)

    manifest = write_protected(target, images, perturb, about, model.hparams.radius, 16, data.given_root, report)
    columns = ("original", "psnr", "psnr_roi", "ssim", "max_change")
    log_table(trainer, "quality", [{name: record[name] for name in columns} for record in manifest["images"]])
    shown_rows = [row for row, record in enumerate(manifest["images"]) if record["psnr_roi"] is not None][:SHOWN] or [0]
    stored = protected_files(target, data.size, check=False)
    before, after = ([source.original(row) for row in shown_rows] for source in (images, stored))
    clean, published = ([one.as_bytes() for one in each] for each in (before, after))
    log_image(trainer, "protected", change_sheet(model, clean, published, [one.mask for one in before]))
    mean = {f"protect/{name}": value for name, value in manifest["mean"].items() if value is not None}
    shown = ", ".join(f"{name.removeprefix('protect/')} {value:.4g}" for name, value in mean.items())
    print(f"{len(images)} images in {shown_path(target)}; on the stored integers: {shown}")
    if bare := [record["original"] for record in manifest["images"] if record["psnr_roi"] is None]:
        print(f"{len(bare)} of them, such as {bare[0]}, have no foreground in their masks and are published as they were")
    print("They are protected against training, not against disclosure: whoever has two releases sees where the masks are. Not for diagnosis.")
    _suggest("verify", None if folder is None and out is None else target, data)
    return Published(target, manifest, {"images": len(images)} | {name: round(value, 3) for name, value in mean.items()})


def _suggest(verb: str, published: Path | None, data: ProtectionData) -> None:
    """Print the command that goes on with a protected set: with one of a user's own it has to be told where that and its originals lie."""
    words = [verb]
    if published is not None:
        words.append(str(published))
        if data.given_root is not None:
            words += ["--data.source", data.source, "--data.root", str(data.given_root)]
        given = {name: data.hparams[name] for name in ("mask_values", "window", "on_bad_file") if data.hparams[name] is not None}
        words += [word for name, value in given.items() for word in (f"--data.{name}", value if isinstance(value, str) else json.dumps(value))]
    print(f"next: lightning run projects/umed/cli.py {shlex.join(words)}")


def published_set(trainer: ProjectTrainer, data: ProtectionData, folder: str | None) -> tuple[SegmentationSet, SegmentationSet]:
    """Return the protected copies of the training and of the test images, read from the files of a protected folder.

    Args:
        trainer: the trainer, whose run may hold such a folder.
        data: the clean images.
        folder: what `protect` wrote; None takes the run's own.

    Raises:
        FileNotFoundError: if there is no such folder, or it lacks images of the source; says what to do.
    """
    own = trainer.run.artefacts("protect") / "set"
    path = own if folder is None else Path(folder).expanduser()
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(f"no protected set in {shown_path(path)}: run protect first, or name one")
    stored = read_protected(path, data.size)
    rows = {record["original"]: row for row, record in enumerate(read_manifest(path)["images"])}
    found = []
    for split, images in (("train", data.train_set), ("test", data.test_set)):
        prefix = f"{split}/" if data.source in OFFLINE else ""
        names = [prefix + name for name in images.names]
        if missing := [name for name in names if name not in rows]:
            raise FileNotFoundError(f"{shown_path(path)} lacks {len(missing)} of the {split} images, such as {missing[0]}: protect the same source")
        part, clean = stored.subset([rows[name] for name in names]), images.load()
        if not torch.equal(part.mask_bytes, clean.mask_bytes):
            raise ValueError(f"the masks in {shown_path(path)} are not those of the {split} images: protect the same source")
        found.append(part)
    return found[0], found[1]


def recipe_for(data: ProtectionData, exploiter: str, recipe: RecipeName, epochs: int | None) -> Recipe:
    """Return how an exploiter is trained: `auto` is quick for the drawn sources, and the paper's for the others."""
    from dataclasses import replace

    from projects.umed.exploiting import Recipe

    is_quick = recipe == "quick" or (recipe == "auto" and data.source in OFFLINE)
    chosen = Recipe(exploiter) if is_quick else Recipe.paper(exploiter)
    return chosen if epochs is None else replace(chosen, epochs=epochs)


def _options(trainer: ProjectTrainer) -> dict[str, Any]:
    accelerator = trainer.accelerator.__class__.__name__.removesuffix("Accelerator").lower()
    return {"accelerator": accelerator, "precision": trainer.precision}


def verify(
    trainer: ProjectTrainer, data: ProtectionData, folder: str | None, exploiter: str, recipe: RecipeName, epochs: int | None, limit: float, seed: int
) -> Verified:
    """Train one exploiter on the clean and one on the protected copy, and compare them on clean test images.

    Args:
        trainer: the trainer, with its device and run.
        data: the clean images.
        folder: a protected folder; None takes the one that `protect` wrote in this run.
        exploiter: network.
        recipe: how it is trained.
        epochs: epochs; None takes the recipe's.
        limit: largest similarity on clean test images, in %, of a set that counts as protected.
        seed: seed of the exploiter.
    """
    from projects.umed.exploiting import train_exploiter

    in_one_process(trainer)
    data.prepare_data()
    chosen = recipe_for(data, exploiter, recipe, epochs)
    train, signature = published_set(trainer, data, folder)
    clean, test = data.train_set.load(), data.test_set.load()
    places, options = artefact_folder(trainer), _options(trainer)
    print(f"{exploiter}, {chosen.epochs} epochs on {len(clean)} clean images of {data.size} x {data.size} pixels", flush=True)
    before = train_exploiter(clean, test, chosen, seed, folder=places / "clean", **options)
    print(f"{exploiter}, {chosen.epochs} epochs on {len(train)} protected images of {data.size} x {data.size} pixels", flush=True)
    after = train_exploiter(train, test, chosen, seed, signature=signature, folder=places / "protected", **options)
    rows = [_row("clean", before), _row("protected", after)]
    log_table(trainer, "verification", rows)
    log_figure(trainer, "dice", curves_figure({"trained on clean images": before, "trained on protected images": after}))
    assert after.signature_dice is not None
    word = verdict(before, after, limit)
    figures = f"{100 * after.last:.1f} % DSC on clean test images (trained on clean ones {100 * before.last:.1f})"
    signs = f"training {100 * after.train_dice:.1f}, signature {100 * after.signature_dice:.1f}"
    print(f"{word}: {figures}; {signs}; best epoch {100 * after.best:.1f}")
    summary = {"verdict": word, "verify/clean_dsc": round(100 * before.last, 2), "verify/protected_dsc": round(100 * after.last, 2)}
    summary |= {"verify/training_dsc": round(100 * after.train_dice, 2), "verify/signature_dsc": round(100 * after.signature_dice, 2)}
    _suggest("attack", None if folder is None else Path(folder), data)
    return Verified(before, after, int(word != "protected"), summary)


def verdict(before: Outcome, after: Outcome, limit: float) -> str:
    """Say whether a set is protected: an exploiter learns it, but fails on clean test images, on which training on clean images succeeds.

    Args:
        before: what the exploiter learnt from the clean copy.
        after: what it learnt from the protected copy, with its signature.
        limit: largest similarity on clean test images, in %, of a protected set.

    Returns:
        "protected", "not protected", or "undecided, as ...".
    """
    if 100 * after.last > limit:
        return "not protected"
    if min(after.train_dice, after.signature_dice or 0.0) < 0.8:
        return "undecided, as the training failed"
    return "protected" if 100 * before.last > limit else "undecided, as training on clean images fails as well"


def attack(
    trainer: ProjectTrainer,
    data: ProtectionData,
    folder: str | None,
    exploiter: str,
    defence: str,
    recipe: RecipeName,
    epochs: int | None,
    seed: int,
) -> Attacked:
    """Train an exploiter with a defence on the protected copy, and test it on clean images."""
    from projects.umed.defences import parse_defence
    from projects.umed.exploiting import train_exploiter

    in_one_process(trainer)
    made = parse_defence(defence)
    data.prepare_data()
    chosen = recipe_for(data, exploiter, recipe, epochs)
    train, signature = published_set(trainer, data, folder)
    clean, test = data.train_set.load(), data.test_set.load()
    what = f"{len(train)} protected images of {data.size} x {data.size} pixels"
    print(f"{exploiter} with the defence {defence}, {chosen.epochs} epochs on {what}", flush=True)
    outcome = train_exploiter(train, test, chosen, seed, made, signature, clean, folder=artefact_folder(trainer) / "exploiter", **_options(trainer))
    label = f"{exploiter}-{defence}-{seed}".replace(":", "").replace("+", "-")
    write_json(artefact_folder(trainer) / f"{label}.json", asdict(outcome) | {"exploiter": exploiter, "defence": defence, "seed": seed})
    log_table(trainer, "curve", [{"epoch": epoch, "dice": value} for epoch, value in enumerate(outcome.curve, 1)])
    row = _row(label, outcome)
    print(", ".join(f"{name} {value}" for name, value in row.items() if name != "set"))
    return Attacked(outcome, {f"attack/{name}": value for name, value in row.items() if name != "set"})


def _row(name: str, outcome: Outcome) -> dict[str, Any]:
    """Return the scores of an outcome in %, and the distance in pixels."""
    row: dict[str, Any] = {"set": name, "dsc": outcome.last, "best": outcome.best, "iou": outcome.iou, "training": outcome.train_dice}
    row = {key: value if key == "set" else round(100 * value, 2) for key, value in row.items()}
    signature = None if outcome.signature_dice is None else round(100 * outcome.signature_dice, 2)
    return row | {"signature": signature, "hd95": round(outcome.hd95, 2)}


def curves_figure(outcomes: dict[str, Outcome]) -> Any:
    """Draw the similarity on clean test images over the epochs."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4))
    for name, outcome in outcomes.items():
        axis.plot(range(1, len(outcome.curve) + 1), [100 * value for value in outcome.curve], marker=".", label=name)
    axis.set(xlabel="epoch", ylabel="DSC on clean test images (%)", ylim=(0, 100))
    axis.legend()
    return figure
