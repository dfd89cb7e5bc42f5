"""The verb `simulate`: drawn plumes as files of the layout, the truth apart, to look at, to copy and to train on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from projects.s3rp.animation import animate
from projects.s3rp.arrays import library_for
from projects.s3rp.layouts import write_observations, write_truth
from projects.s3rp.observing import filled, interpolate
from projects.s3rp.worlds import Plumes, draw_plumes
from shared.messages import Interval, shown_path
from shared.runs import atomic, claim_folder, write_json

if TYPE_CHECKING:
    from projects.s3rp.data import PlumeData
    from projects.s3rp.module import PlumeSuperResolution
    from shared.cli import ProjectTrainer

Format = Literal["npz", "h5", "zarr"]
"""Kinds of files that sequences are written as."""
MARK = "world.json"
"""File that tells what a folder's sequences were drawn from."""


@dataclass(frozen=True)
class Simulated:
    """What `simulate` returns: the folder, and the figures that head the run's page."""

    folder: Path
    summary: dict[str, Any]


def simulate(
    trainer: ProjectTrainer,
    module: PlumeSuperResolution,
    data: PlumeData,
    path: str,
    train: int | None = None,
    val: int | None = None,
    test: int | None = None,
    format: Format = "npz",  # noqa: A002 - it is the option's name
) -> Simulated:
    """Write drawn sequences as files of the layout, with a picture and a moving one; what an interrupted run has written is kept.

    Args:
        trainer: the trainer.
        module: not used.
        data: whose world is drawn.
        path: folder, absent or empty, or of an interrupted run of the same settings.
        train: sequences to train on; None takes the data's number, as for the other two.
        val: sequences to validate on.
        test: sequences to test on.
        format: npz, h5 or zarr.

    Raises:
        ValueError: if the folder holds something else, the format is unknown, or the data are files.
        OSError: if it cannot be written.
        ModuleNotFoundError: if the library for the format is absent.
    """
    if data.source != "plumes":
        raise ValueError(f"simulate draws plumes, and data.source is {data.source}: leave it out")
    if format not in get_args(Format):
        raise ValueError(f"no format {format!r}: choose among {', '.join(get_args(Format))}")
    counts = {split: data.counts[split] if given is None else given for split, given in {"train": train, "val": val, "test": test}.items()}
    if least := [split for split, count in counts.items() if count < 1]:
        raise ValueError(f"{least[0]} must be at least 1, got {counts[least[0]]}")
    library_for(Path(f"sequences.{format}"))
    settings = json.loads(json.dumps({"world": asdict(data.world), "counts": counts, "format": format}))
    folder = claim_folder(path, MARK)
    _claim(folder, settings, path)
    shown = _write(folder, data, counts, format)
    truth = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{sum(counts.values())} sequences in {shown_path(folder)} ({truth / 2**20:.1f} MB), the truth apart in truth/; look at example.png and")
    print("example.gif, then train on them with")
    print(f"  lightning run projects/s3rp/cli.py fit --data.source files --data.root {shlex.quote(shown_path(folder))}")
    return Simulated(folder, {"simulate/sequences": sum(counts.values()), "simulate/frames": shown})


def _claim(folder: Path, settings: dict[str, Any], path: str) -> None:
    """Write what is drawn into the folder, or see that it is what an interrupted run drew."""
    mark = folder / MARK
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) != settings:
        raise ValueError(f"{path} holds sequences of other settings (see its {MARK}): name another folder, or remove this one")
    write_json(mark, settings)


def _write(folder: Path, data: PlumeData, counts: dict[str, int], ending: str) -> int:
    """Write what is not there yet; returns the frames of a sequence."""
    for split, count in counts.items():
        files = folder / f"{split}.{ending}", folder / "truth" / f"{split}.{ending}"
        if all(file.exists() for file in files):
            print(f"  {files[0].name} is there already")
            continue
        print(f"  {files[0].name}: drawing {count} sequences", flush=True)
        drawn = draw_plumes(data.world, count, split, progress=_tell(f"{files[0].name}: {{}} of {count} are drawn"))
        write_observations(files[0], drawn.observations)
        write_truth(files[1], drawn.truth, drawn.source)
        print(f"  {files[0].name}: written", flush=True)
    _picture(folder, draw_plumes(data.world, 1, "test"))
    return data.world.frames


def _tell(text: str) -> Callable[[int], None]:
    """Return a function that prints a number in a text now and then."""
    progress = Interval()

    def tell(number: int) -> None:
        if progress.is_over():
            print(f"  {text.format(number)}", flush=True)

    return tell


def _picture(folder: Path, drawn: Plumes) -> None:
    """Draw the first test sequence."""
    from projects.s3rp.figures import draw_fields

    seen, truth = drawn.observations, drawn.truth[0]
    coarse, mask = seen.coarse[0], seen.mask[0]
    bicubic = interpolate(filled(coarse, mask, seen.physics.boundary), seen.factor, "bicubic", seen.physics.boundary)
    figure = draw_fields(coarse, {"bicubic": bicubic}, truth, None, mask, seen.wind.select(0), seen.unit, seen.names[0])
    with atomic(folder / "example.png") as temporary:
        figure.savefig(temporary, dpi=110, bbox_inches="tight")
    animate(folder / "example.gif", coarse, bicubic, None, truth, mask, None, seen.unit, "bicubic")
