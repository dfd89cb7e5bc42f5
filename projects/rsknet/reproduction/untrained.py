"""What statistics of one scale and of several hold before anything is learnt: random networks, and discriminant analysis on them."""

from __future__ import annotations

from pathlib import Path

import torch

from projects.rsknet.metrics import eer
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.recordings import Recordings
from projects.rsknet.reproduction import worlds
from projects.rsknet.reproduction.worlds import World
from projects.rsknet.scoring import cosine
from shared.tables import Job, Rows, Table

STAGES = {"stage 1": [1], "stage 2": [2], "stage 3": [3], "all stages": [1, 2, 3]}
KEPT = 40
"""Directions that discriminant analysis keeps."""


@torch.no_grad()
def statistics(module: SpeakerVerification, recordings: Recordings) -> torch.Tensor:
    """Return what the embedding of each recording would be a linear map of, (N, D)."""
    waveforms = torch.stack([recordings.read(index) for index in range(len(recordings))])
    return torch.cat([module.net.statistics(module.features(part)[0]) for part in waveforms.split(100)])  # type: ignore[operator]


def measure(net: str, world: World, seed: int) -> Rows:
    """Return a row for each choice of stages of a random network."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    data = worlds.drawn(seed, world.speakers, world.tested)
    trials, rows = data.trials[0], []
    for name, scales in STAGES.items():
        module = SpeakerVerification(net, {"scales": scales}, seed=seed).eval()
        learnt, tested = statistics(module, data.train).double().numpy(), statistics(module, data.test).double().numpy()
        analysis = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto", n_components=min(KEPT, world.speakers - 1))
        found = torch.from_numpy(analysis.fit(learnt, data.train_speakers).transform(tested))
        at = {file: place for place, file in enumerate(data.test.names)}
        models = torch.stack([found[at[model[0]]] for model in trials.models])
        tests = torch.stack([found[at[file]] for file in trials.tests])
        rate = eer(cosine(models, tests, trials.enrol, trials.test), trials.is_target)
        rows.append({"statistics of": name, "seed": seed, "numbers": learnt.shape[1], "EER %": 100 * rate})
    return rows


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    return [Job("random", seed, measure, ("tiny_rsknet_mtsp", worlds.QUICK if quick else worlds.FULL)) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether statistics of all stages hold more than those of the last one."""
    rate = {row["statistics of"]: row["EER %"]["mean"] for row in summary}
    return {"all stages hold more than the last one": rate["all stages"] < rate["stage 3"]}


TABLE = Table(
    "pooling",
    "Statistics of several time scales hold speaker information that the last stage has lost, even in a random network.",
    ("statistics of",),
    jobs,
    expectations,
    seeds=5,
)
