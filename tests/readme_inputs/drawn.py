"""Draws what a command of a README takes from its reader - FOLDER, DATA, a recording, weights - under the very name that the README has for it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from readme_inputs import pictures, records
from readme_inputs.commands import Command, simple_commands

Writer = Callable[[Path], None]


@dataclass(frozen=True)
class Input:
    """Something that a reader brings.

    Args:
        name: the word of the command that stands for it.
        write: draws it, given where.
        within: a text that the command has beside; else any command.
    """

    name: str
    write: Writer
    within: str = ""


INPUTS: Mapping[str, list[Input]] = {
    "root": [
        Input("FOLDER", pictures.cifar10),
        Input("DATA", pictures.cifar10),
        Input("MODEL_FOLDER", pictures.pipeline),
    ],
    "diff_cleanse": [
        Input("CKPT.pth", pictures.network_of_ddim),
        Input("FOLDER", pictures.pipeline),
        Input("runs/diff_cleanse/RUN/artefacts/scan/trigger.safetensors", pictures.last_artefact),
        Input("runs/diff_cleanse/RUN/artefacts/cleanse/pipeline", pictures.last_artefact),
    ],
    "drs": [
        Input("FOLDER", pictures.photographs),
        Input("TABLE.tsv", pictures.table_of_certificates),
        Input("DATA", pictures.cifar10),
        Input("left.pth.tar", pictures.branch),
        Input("right.pth.tar", pictures.branch),
        Input("resnet110.pth.tar", pictures.branch),
        Input("dncnn.pth.tar", pictures.denoiser),
    ],
    "dvae": [
        Input("FOLDER", pictures.classes),
        Input("DATA", pictures.cifar100, within="cifar100"),
        Input("POISON", pictures.poison100, within="cifar100"),
        Input("DATA", pictures.cifar10),
        Input("POISON", pictures.poison),
        Input("IMAGENET", pictures.imagenet),
    ],
    "umed": [Input("FOLDER", pictures.masked)],
    "moe_ffd": [
        Input("FOLDER", pictures.photographs),
        Input("DATA", pictures.benchmark, within="deepfakebench"),
        Input("DATA", pictures.forged_videos),
    ],
    "forgery_nas": [
        Input("FOLDER", pictures.photographs),
        Input("DATA", pictures.forged_videos),
        Input("GENOTYPE.json", pictures.genotype),
    ],
    "tripinet": [
        Input("FOLDER", pictures.photographs),
        Input("DATA", pictures.manipulated),
        Input("resnet50.safetensors", pictures.network),
        Input("MINE", pictures.manipulated_folder),
        Input("CHECK", pictures.manipulated_folder),
    ],
    "hodinet": [
        Input("PICTURE", pictures.colours),
        Input("DEPTH", pictures.depths),
        Input("DATA", pictures.depth_sets),
        Input("pvt_v2_b3.pth", pictures.network),
        Input("resnet101.safetensors", pictures.network),
        Input("MINE", pictures.own_depth_sets),
    ],
    "comad": [
        Input("FOLDER", pictures.tray_pictures),
        Input("line", pictures.tray_pictures),
        Input("KINDS", pictures.kinds_of_trays),
        Input("MINE", pictures.good_trays),
        Input("mvtec_loco_anomaly_detection", pictures.trays),
        Input("dino_vits8.pth", pictures.network),
    ],
    "cafe": [Input("net.py", records.net_of_a_party), Input("MNIST_FOLDER", records.mnist)],
    "vafl": [Input("MNIST_FOLDER", records.mnist)],
    "rsknet": [
        Input("DATA", records.voxceleb),
        Input("SITW", records.sitw),
        Input("MUSAN", records.musan),
        Input("RIRS_NOISES", records.rirs),
        Input("MINE", records.speakers),
        Input("BEST.ckpt", records.speaker_network),
        Input("runs/rsknet/NAME/checkpoints/best.ckpt", records.last_run),
        Input("A.wav", records.recording),
        Input("B.wav", records.recording),
    ],
    "rco": [
        Input("DIR", pictures.splits),
        Input("PICTURES", pictures.photographs),
        Input("CHECKPOINTS", pictures.checkpoints_of_a_teacher),
        Input("DATA", pictures.cifar100),
        Input("IMAGENET", pictures.imagenet),
        Input("FACES", pictures.faces),
    ],
    "s3rp": [Input("methane.nc", records.plume), Input("inbox", records.plumes), Input("FILE", records.plume)],
}
"""What each project's commands take from their readers; the first input fits that has the word's name."""


class Drawer:
    """Draws inputs into the folder in which commands run, when the first command comes that names them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._drawn: dict[str, tuple[str, Input]] = {}

    def prepare(self, command: Command) -> str:
        """Draw what a command takes; returns why that was not possible, or nothing."""
        for name in [name for name, (part, _) in self._drawn.items() if part != command.part]:
            self._remove(name)
        for wanted in inputs_of(command):
            if self._drawn.get(wanted.name) == (command.part, wanted):
                continue
            self._remove(wanted.name)
            try:
                wanted.write(self.folder / wanted.name)
            except Exception as error:  # the reason stands in the table
                return f"{wanted.name} could not be drawn: {type(error).__name__}: {error}"
            self._drawn[wanted.name] = command.part, wanted
        return ""

    def _remove(self, name: str) -> None:
        path = self.folder / name
        self._drawn.pop(name, None)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def inputs_of(command: Command) -> list[Input]:
    """Return the inputs that a command names."""
    known = INPUTS.get(command.part, [])
    found = [next((one for one in known if one.name == word and one.within in command.text), None) for word in words_of(command)]
    return list(dict.fromkeys(one for one in found if one))


def words_of(command: Command) -> Iterator[str]:
    """Yield the words of a command that may name a file: `net.py` of `net.py:build`, `inbox` of `inbox/`."""
    if command.kind == "python":
        yield from re.findall(r'"([\w./]+)"', command.text)
    else:
        for words in simple_commands(command.text):
            yield from (re.sub(r"(?<=\.py):\w+$", "", word.rpartition("=")[2]).strip("[]/") for word in words)
