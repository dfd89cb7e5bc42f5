"""What the verbs fit, calibrate, test and draw do around the loops of the Trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch.nn.utils.rnn import pad_sequence

from projects.rsknet.averaging import EpochAverage
from projects.rsknet.blocks import BranchGate
from projects.rsknet.charts import Similarities, draw_det, draw_scores
from projects.rsknet.espeak import espeak_world
from projects.rsknet.judging import SCORER, Judged, embed, fit_scorer, judge
from projects.rsknet.layouts import LAYOUTS
from projects.rsknet.leaks import remark_on_overlap
from projects.rsknet.model import RSKNet
from projects.rsknet.readout import draw_branches, utterance_weights
from projects.rsknet.remembered import VOXCELEB1, digests, known_to, refuse_known, with_network
from projects.rsknet.scoring import Scorer
from projects.rsknet.synthesis import write_world
from shared.data.selection import evenly_spaced
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.runs import atomic
from shared.seeding import derive_seed
from shared.trainer import at_best

if TYPE_CHECKING:
    from projects.rsknet.data import SpeakerData
    from projects.rsknet.module import SpeakerVerification
    from shared.cli import ProjectTrainer

COLUMNS = {
    "eer": "EER %",
    "min_dcf_01": "minDCF .01",
    "min_dcf_001": "minDCF .001",
    "cllr_before": "Cllr before",
    "cllr": "Cllr",
    "min_cllr": "min Cllr",
}
"""Measures that are printed, and their headings."""

LISTENED, LISTENED_SECONDS = 32, 5.0
"""Recordings, and seconds of each, that weights of branches are shown for."""


@dataclass(frozen=True)
class Tested:
    """What `fit`, `calibrate` and `test` return: a row a list and back-end, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def train(trainer: ProjectTrainer, module: SpeakerVerification, data: SpeakerData, ckpt_path: str | None) -> None:
    """Train, and leave the best epoch's weights in the module, or the average of the last ones."""
    trainer.callbacks.append(Similarities())  # type: ignore[attr-defined]
    if module.hparams.average:
        trainer.callbacks.append(EpochAverage(module.hparams.average))  # type: ignore[attr-defined]
    L.Trainer.fit(trainer, module, datamodule=data, ckpt_path=ckpt_path)
    at_best(trainer, module)


def loaded(module: SpeakerVerification, data: SpeakerData, ckpt_path: str | None, is_calibrated: bool) -> SpeakerVerification:
    """Load a checkpoint's weights to test with, or to calibrate.

    Raises:
        ValueError: if the network was trained on speakers whom it is to be tested or calibrated on, or on other features.
    """
    known = [] if ckpt_path is None else known_to(ckpt_path)
    refuse_known(known, data.tested_names, "speakers of the trial lists")
    if not data.overlap and not set(known).isdisjoint(digests(VOXCELEB1)):
        data.remarks = list(dict.fromkeys([*data.remarks, *(remark_on_overlap(one) for one in data.trials if one.name.startswith("SITW"))]))
    if is_calibrated:
        refuse_known(known, data.held_names, "speakers held out")
    return with_network(module, ckpt_path)


def calibrate(trainer: ProjectTrainer, module: SpeakerVerification, data: SpeakerData) -> Scorer:
    """Learn the back-ends and their calibration, and leave them in the run."""
    scorer = fit_scorer(trainer, module, data)
    if trainer.is_global_zero:
        scorer.save(trainer.run.path / SCORER)
    return scorer


def report_test(trainer: ProjectTrainer, module: SpeakerVerification, data: SpeakerData, scorer: Scorer, durations: Sequence[float] = ()) -> Tested:
    """Embed all files of the trial lists once for each duration, judge every list by every back-end, and write tables, scores and curves."""
    if min(durations, default=1.0) * 1000 < module.hparams.frame_length:
        raise ValueError(f"durations are seconds, of at least a frame of {module.hparams.frame_length:g} ms, not {list(durations)}")
    lists = data.trials
    for remark in data.remarks if trainer.is_global_zero else []:
        print(remark)
    if not lists:
        message = f"there are no trial lists in {data.root}: expected {LAYOUTS[data.source]}"
        if trainer.verb == "test":
            raise ValueError(message)
        print(f"{message}; nothing was tested")
        return Tested([], {})
    rows: list[dict[str, Any]] = []
    judged: list[Judged] = []
    for seconds in (None, *durations):
        found = embed(trainer, module, data.whole(data.test, seconds), data.test)
        for trials in lists:
            each = [judge(scorer, backend, found, trials) for backend in scorer.backends]
            length = "whole" if seconds is None else f"{seconds:g} s"
            rows += [{"list": one.trials.name, "trials": len(trials), "length": length, "backend": one.backend, **one.measures} for one in each]
            judged += each if seconds is None else []
        if seconds is None and trainer.is_global_zero:
            _log_branches(trainer, module, data)
    if trainer.is_global_zero:
        _write(trainer, rows, judged, scorer)
    first = {row["backend"]: row for row in rows if row["list"] == rows[0]["list"] and row["length"] == "whole"}
    summary = {"test/eer": round(first["cosine"]["eer"], 5), "test/min_dcf": round(first["cosine"]["min_dcf_01"], 4)}
    if "cosine_asnorm" in first:
        summary["test/eer_asnorm"] = round(first["cosine_asnorm"]["eer"], 5)
    if "cllr" in first["cosine"]:
        summary["test/cllr"] = round(first["cosine"]["cllr"], 4)
    for logger in trainer.loggers:
        logger.log_metrics(summary, trainer.global_step)
    return Tested(rows, summary)


def _write(trainer: ProjectTrainer, rows: Sequence[dict[str, Any]], judged: Sequence[Judged], scorer: Scorer) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    log_table(trainer, "lists", [{name: row.get(name) for name in columns} for row in rows])
    shown = [{name: row[name] for name in ("list", "length", "backend")} | _shown(row) for row in rows]
    print(markdown(shown))
    if (row := rows[0]).get("far") is not None:
        print(
            f"the threshold that accepts 1 % of held-out impostors accepts {row['far']:.2%} of those of {row['list']}, and misses {row['miss']:.1%}"
        )
    for one in judged:
        name = f"{one.trials.name}_{one.backend}".replace(" ", "_")
        with atomic(artefact_folder(trainer) / f"scores_{name}.txt") as temporary:
            _write_scores(temporary, one)
    log_figure(trainer, "det", draw_det({f"{one.trials.name}, {one.backend}": one for one in judged}))
    log_figure(trainer, "scores", draw_scores(judged, scorer))


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {heading: 100 * row[name] if name == "eer" else row.get(name) for name, heading in COLUMNS.items()}


def _write_scores(path: Path, judged: Judged) -> None:
    """Write a line a trial: files of the model (joined by +), test file, score, calibrated ratio."""
    trials = judged.trials
    models = ["+".join(model) for model in trials.models]
    rows = zip(trials.enrol.tolist(), trials.test.tolist(), judged.scores.tolist(), judged.llrs.tolist(), strict=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(f"{models[enrol]} {trials.tests[test]} {score:.6f} {llr:.4f}\n" for enrol, test, score, llr in rows)


def _log_branches(trainer: ProjectTrainer, module: SpeakerVerification, data: SpeakerData) -> None:
    """Write how much weight the branches have in each stage, over some recordings of the lists."""
    if not any(isinstance(part, BranchGate) for part in module.net.modules()):
        return
    assert isinstance(module.net, RSKNet)
    chosen = evenly_spaced(len(data.test), LISTENED)
    recordings = [data.test.read(index, 0, min(data.test.samples(index), round(LISTENED_SECONDS * data.rate))) for index in chosen]
    lengths = torch.tensor([len(one) for one in recordings])
    module.to(trainer.strategy.root_device)
    features, frames = module.features(pad_sequence(recordings, batch_first=True).to(module.device), lengths.to(module.device))
    log_figure(trainer, "branches", draw_branches(utterance_weights(module.net, features, frames)))


@dataclass(frozen=True)
class Drawn:
    """What `draw` returns: the folder, and the figures that head the run's page."""

    folder: Path
    summary: dict[str, Any]


def draw(module: SpeakerVerification, data: SpeakerData, path: str, speakers: int, utterances: int, espeak: bool) -> Drawn:
    """Write drawn speakers as files, none of whom is one of `data` under another name, and print what to do with them."""
    folder, tested = Path(path).expanduser(), max(2, speakers // 3)
    if speakers < 4 or utterances < 2:
        raise ValueError(f"draw needs at least 4 speakers and 2 utterances of each, got {speakers} and {utterances}")
    sizes, seed = (speakers - tested, tested), derive_seed(data.seed, "draw")
    if espeak:
        espeak_world(folder, seed, sizes, utterances, rate=module.hparams.rate)
    else:
        write_world(folder, seed, sizes, utterances, data.length, module.hparams.rate)
    files = sorted(folder.rglob("*.wav"))
    print(f"{len(files)} recordings of {speakers} speakers in {shown_path(folder)}, and the trial list veri_test2.txt; compare two of them with")
    print(f"  lightning run projects/rsknet/cli.py verify {shown_path(files[0])} {shown_path(files[1])}")
    return Drawn(folder, {"draw/recordings": len(files)})
