"""What comes before the Python of a README that leaves names to its reader, such as `images`, so that it runs."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping

from readme_inputs.commands import Command

SKETCHES: Mapping[str, str] = {
    "diff_cleanse": 'FOLDER, NEW_FOLDER = "FOLDER", "CLEANSED"',
    "drs": """import torch
from shared.backbones.resnets import CifarResNet

left, right = (CifarResNet(8, 10).eval() for _ in range(2))
images = torch.rand(2, 3, 32, 32)""",
    "dvae": """import torch

images, labels, indices = torch.rand(4, 3, 32, 32), torch.arange(4), torch.arange(4)""",
    "umed": """import torch

images, masks = torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8), torch.zeros(2, 64, 64, dtype=torch.long)
masks[:, 20:40, 20:40] = 1""",
    "moe_ffd": "import torch\n\nimages = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)",
    "forgery_nas": "import torch\n\nimages = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)",
    "rsknet": """import numpy as np
import soundfile

for name in ("a.wav", "b.wav"):
    soundfile.write(name, np.random.default_rng(len(name)).uniform(-0.5, 0.5, 48000), 16000)""",
    "tripinet": """import torch

images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
image = images[0]""",
    "hodinet": """import torch

images, depth = torch.rand(1, 3, 256, 256) * 255, torch.rand(1, 1, 256, 256)
mask = torch.zeros(1, 256, 256)
mask[:, 50:150, 50:150] = 1""",
    "comad": """import torch
from projects.comad.traysim import draw_tray

good, validation = (list(torch.stack([draw_tray(split, i, size=224).image for i in range(8)]).split(4)) for split in ("train", "validation"))
images = good[0]""",
}
"""By project: lines that define the names, and write the recordings, which its README leaves open."""

RUNS: Mapping[str, str] = {
    "runs/hodinet/RUN/checkpoints/best.ckpt": """import shutil
from pathlib import Path

trained = max(Path("runs/hodinet").glob("2*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime)
Path("runs/hodinet/RUN/checkpoints").mkdir(parents=True, exist_ok=True)
shutil.copyfile(trained, "runs/hodinet/RUN/checkpoints/best.ckpt")""",
    "runs/comad": """import shutil
from pathlib import Path

tested = max(Path("runs/comad").glob("*/artefacts/fit/scores.json"), key=lambda path: path.stat().st_mtime)
for name in (f"{category}-{seed}" for category in ("breakfast_box", "screw_bag") for seed in range(5)):
    shutil.copytree(tested.parent, Path("runs/comad", name, "artefacts/fit"), dirs_exist_ok=True)""",
}
"""By what Python of a README names of runs: lines that give the last run, or what it kept, that name."""


def open_names(code: str) -> set[str]:
    """Return the names that a piece of Python uses and does not define."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    imports = [alias for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    known = {name.id for name in names if isinstance(name.ctx, ast.Store)} | {one.asname or one.name.partition(".")[0] for one in imports}
    known |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)} | {
        node.arg for node in nodes if isinstance(node, ast.arg)
    }
    return {name.id for name in names if isinstance(name.ctx, ast.Load)} - known - set(dir(builtins))


def whole(command: Command) -> str:
    """Return a README's Python with what its reader would have written, or run, before it."""
    sketches = [SKETCHES.get(command.part, "")] if open_names(command.text) or "a.wav" in command.text else []
    sketches += [lines for folder, lines in RUNS.items() if f'"{folder}"' in command.text]
    return "\n".join([*sketches, command.text, ""])
