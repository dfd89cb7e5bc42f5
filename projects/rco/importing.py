"""The verb `collect`: a run with a route of checkpoints that another program left behind."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from projects.rco.anchors import Route, State, write_route
from projects.rco.collecting import collect
from projects.rco.guide import AnchorNet
from projects.rco.judging import Answers, measures
from projects.rco.networks import build_network
from projects.rco.tasks import anchors_of
from shared.data.inputs import find_files, spelt
from shared.loggers import log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from projects.rco.data import DistillationData
    from projects.rco.module import RouteDistillation
    from shared.cli import ProjectTrainer

ENDINGS = (".pth", ".pt", ".ckpt", ".tar", ".safetensors", ".bin", ".pkl", ".pickle")
"""Endings of checkpoints; those that could execute code are refused by name."""
_BARE = re.compile(r"student_(\d+|best|latest)")  # of mdistiller, whose epoch_40 beside student_40 holds the same network, with the teacher
_COPIES = re.compile(r"(^|[^a-z])(best|last|latest)([^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Imported:
    """What `collect` returns: a row a state, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def import_route(
    trainer: ProjectTrainer,
    module: RouteDistillation,
    data: DistillationData,
    path: str,
    key: str | None = None,
    prefix: str = "",
    half: bool = False,
    counts_from: int | None = None,
) -> Imported:
    """Make a route of checkpoints in the trainer's run, judge its states on the samples held out of training, and print a table.

    Args:
        trainer: of the verb.
        module: tells the teacher's network, and the shapes that it maps.
        data: whose samples held out of training the states are judged on, if there are some; with embeddings they are not.
        path: a folder, whose copies of other checkpoints (best, last, latest) are left out; a pattern; or a file.
        key: see `collecting.collect`.
        prefix: see there.
        half: see there.
        counts_from: see there.

    Raises:
        FileNotFoundError: if nothing is there.
        BadFileError, ValueError: see `collecting.collect`.
    """
    files = find_checkpoints(path)
    given, names = module.hparams, [spelt(Path(file.name)) for file in files]
    about = {"network": given.teacher, "shape": list(given.shape), "outputs": module.width, "embeds": module.embeds, "collected": names}
    net = build_network(given.teacher, given.shape, module.width)
    route = collect(files, anchors_of(trainer.run, trainer.verb), about, key, prefix, half, net, counts_from)
    if data.held_out and not module.embeds:
        route = judged(route, AnchorNet(net, route).to(trainer.strategy.root_device, torch.contiguous_format), data)
    rows = [_row(route, state) for state in route.states]
    log_table(trainer, "states", rows)
    print(f"{markdown(rows)}\n\n{len(rows)} states in {shown_path(route.folder)}, {route.bytes / 2**20:.1f} MB")
    if not route.accuracy():
        print("no accuracy is known of them, which walk.choice phase asks for: name samples to judge them on by --data.held_out, such as 0.1")
    return Imported(rows, {"states": len(rows), "first": route.epochs[0], "final": route.final})


def find_checkpoints(path: str) -> list[Path]:
    """Find checkpoints by a file, a folder or a pattern; a folder's copies (best, last, latest) are left out, unless there is nothing else.

    Of a folder of mdistiller's, whose files have no endings, those named student_<epoch> are taken.
    """
    given = Path(path).expanduser()
    bare = sorted(file for file in given.iterdir() if _BARE.fullmatch(file.name)) if given.is_dir() else []
    files = bare or find_files(path, ENDINGS, "checkpoint", "checkpoints", "out/ckpt_epoch_*.pth")[1]
    copies = [file for file in files if _COPIES.search(file.name)] if given.is_dir() else []
    if not copies or len(copies) == len(files):
        return files
    left = ", ".join(spelt(Path(file.name)) for file in copies)
    print(f"left out as copies of others: {left} (name the files by a pattern such as '{path}/*' to take all)")
    return [file for file in files if file not in copies]


def judged(route: Route, guide: AnchorNet, data: DistillationData) -> Route:
    """Write into a route the accuracy of its states, `val/accuracy`, on the samples that are held out of training."""
    data.setup()
    states = tuple(replace(state, metrics=state.metrics | {"val/accuracy": accuracy(guide, state.epoch, data)}) for state in route.states)
    guide.close()
    route = replace(route, states=states, history=states)
    write_route(route)
    return route


def accuracy(guide: AnchorNet, epoch: int, data: DistillationData) -> float:
    """Return the accuracy of a state of the teacher on the samples held out of training."""
    guide.at(epoch)
    device = next(guide.net.parameters()).device
    outputs, labels = [], []
    with torch.inference_mode():
        for batch in data.ordered("held"):
            batch = data.finish({name: tensor.to(device) for name, tensor in batch.items()}, augment=False)
            outputs.append(guide.net(batch["input"]).float())
            labels.append(batch["label"])
    return measures(Answers(torch.cat(labels), torch.cat(outputs)))["accuracy"]


def _row(route: Route, state: State) -> dict[str, Any]:
    row = {"epoch": state.epoch, "file": state.file, "MB": (route.folder / state.file).stat().st_size / 2**20}
    return row | ({"accuracy": state.metrics["val/accuracy"]} if "val/accuracy" in state.metrics else {})
