"""The verbs `test` and `predict`: how good the trained nets are, also where a client is missing, and the class of test records or of new ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from projects.vafl.data import VerticalRecords
from projects.vafl.module import VerticalFederation
from projects.vafl.processes import client_file
from shared.checkpoints import describe_mismatch, load_checkpoint, with_weights
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.vertical import predicting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

HEAD = "the server's head"
"""What alone the checkpoint of `serve` holds, as it says under `only`."""
CHUNK = 1024
"""Records whose classes are told together."""


def with_all_nets(module: VerticalFederation, ckpt_path: str | None) -> VerticalFederation:
    """Load a checkpoint; one of `serve` needs the nets of the clients beside it, so that no untrained one is judged in their place.

    Args:
        module: the federation.
        ckpt_path: checkpoint; None leaves the module as it is.

    Returns:
        The module.

    Raises:
        ValueError: if nets are missing, or do not fit.
    """
    only = None if ckpt_path is None else load_checkpoint(ckpt_path).get("federation", {}).get("only")
    if ckpt_path is None or only is None:
        return with_weights(module, ckpt_path)
    files = [client_file(Path(ckpt_path).parent, party) for party in range(len(module.model.bottoms))]
    missing = [file.name for file in files if not file.is_file()]
    if only != HEAD or missing:
        where = f"copy {', '.join(missing)} from the clients' runs into {shown_path(files[0].parent)}" if only == HEAD else "go to the server's run"
        raise ValueError(f"{ckpt_path} holds {only} only, and nothing can be told without the other nets: {where}, if the parties agree to that")
    with_weights(module, ckpt_path)
    for file, bottom in zip(files, module.model.bottoms, strict=True):
        net = load_checkpoint(file)["client"]["net"]
        if differences := describe_mismatch(bottom.state_dict(), net):
            raise ValueError(f"{file} does not fit the nets that the settings describe:\n{differences}")
        bottom.load_state_dict(net)
    return module


@torch.no_grad()
def predict_unseen(trainer: ProjectTrainer, module: VerticalFederation, data: VerticalRecords, path: str) -> list[dict[str, Any]]:
    """Tell the classes of new records, and write them as the table `predictions`; a party without a file counts as missing, as in `test`.

    Args:
        trainer: the trainer, with its run.
        module: the trained federation.
        data: that it was trained on, whose records say how new ones are scaled.
        path: see `VerticalRecords.unseen`.

    Returns:
        A row a record: its name, class, and the probabilities of that class and of each.
    """
    data.setup()
    blocks, names = data.unseen(Path(path))
    device = trainer.strategy.root_device
    module.to(device).eval()
    if absent := [party for party, block in enumerate(blocks) if block is None]:
        print(f"without party {', '.join(map(str, absent))}, whose files are not there: the mean training record stands for it")
        module.ensure_absent(data.train.blocks)
    rows: list[dict[str, Any]] = []
    for places in torch.arange(len(names)).split(CHUNK):
        logits = module.model.head(module.embed_some([None if block is None else block[places].to(device) for block in blocks]))
        rows += _rows([names[place] for place in places.tolist()], logits.softmax(1).tolist(), data.class_names)
    table = log_table(trainer, "predictions", rows) or artefact_folder(trainer)
    print(f"the classes of {len(rows)} records: {shown_path(table)}")
    return rows


def _rows(records: list[str], probabilities: list[list[float]], classes: tuple[str, ...]) -> list[dict[str, Any]]:
    rows = []
    for record, own in zip(records, probabilities, strict=True):
        best = max(range(len(own)), key=own.__getitem__)
        row = {"record": record, "predicted": classes[best], "probability": round(own[best], 6)}
        rows.append(row | {f"p({name})": round(value, 6) for name, value in zip(classes, own, strict=True)})
    return rows


def log_predictions(trainer: ProjectTrainer, batches: Any, data: VerticalRecords) -> list[dict[str, Any]]:
    """Write the predictions; see `shared.vertical.predicting.log_predictions`, which is given the names of classes and records."""
    return predicting.log_predictions(trainer, batches, data.class_names, data.test.ids)


def log_quality(trainer: ProjectTrainer) -> list[dict[str, Any]]:
    """Print what a test came to, and write the quality where a client is missing: the table `missing`, a row a client, and the picture `without_one`.

    A missing client's embeddings are those of the mean training record, see `VerticalFederation.absent`.

    Args:
        trainer: after its test.

    Returns:
        The rows: client, and for each metric its value and how much lower it is than with all clients.
    """
    found = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    rows = missing_rows(found)
    print(quality_line("all clients", found, ""))
    if "noisy_accuracy" in found:
        print(quality_line("all clients, with the noise of protection", found, "noisy_"))
    log_table(trainer, "missing", rows)
    log_figure(trainer, "without_one", draw_missing(rows, found))
    if trainer.is_global_zero:
        print(f"without one of them:\n{markdown(rows)}\nthe table and a picture: {shown_path(artefact_folder(trainer))}")
    return rows


def quality_line(who: str, found: dict[str, float], prefix: str) -> str:
    """Return a line that says accuracy, AUROC where there is one, and loss of a test.

    Args:
        who: took part.
        found: metrics by name, without their stage.
        prefix: of the names.
    """
    shown = (("accuracy", "accuracy"), ("auroc", "AUROC"), ("loss", "loss"))
    parts = [f"{word} {found[prefix + name]:.4f}" for name, word in shown if prefix + name in found]
    return f"{who}: {', '.join(parts)}"


def missing_rows(found: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row a client that is missing: client, accuracy, accuracy_lost and, with two classes, auroc and auroc_lost.

    Args:
        found: metrics by name, without their stage.
    """
    measures = [name for name in ("accuracy", "auroc") if name in found]
    rows: list[dict[str, Any]] = []
    while f"without_{len(rows)}_accuracy" in found:
        own = {name: found[f"without_{len(rows)}_{name}"] for name in measures}
        told = {key: value for name in measures for key, value in ((name, own[name]), (f"{name}_lost", found[name] - own[name]))}
        rows.append({"client": len(rows)} | {name: round(value, 6) for name, value in told.items()})
    return rows


def draw_missing(rows: list[dict[str, Any]], found: dict[str, float]) -> Figure:
    """Draw how much quality is lost without each client, a panel a metric; it may be less than nothing.

    Args:
        rows: what `missing_rows` returned.
        found: metrics by name, without their stage.
    """
    from matplotlib.figure import Figure

    measures = [name for name in ("accuracy", "auroc") if name in rows[0]]
    figure = Figure(figsize=(5.5 * len(measures), 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        axis.bar([row["client"] for row in rows], [row[f"{name}_lost"] for row in rows], color="tab:blue")
        axis.axhline(0, color="grey", linewidth=1)
        axis.set(xlabel="client that is missing", ylabel=f"test {name} lost", xticks=range(len(rows)), title=f"of {found[name]:.3f} with all clients")
    return figure
