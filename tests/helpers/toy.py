"""A project of a few lines in a temporary folder, as CONTRIBUTING.md tells how to add one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

MODULE = '''
import lightning as L
import torch
from torchmetrics import MeanMetric


class Line(L.LightningModule):
    """Fits a line.

    Args:
        lr: learning rate.
        width: number of inputs.
        points: number of points; the data tell it.
    """

    monitor = ("val/loss", "min")

    def __init__(self, lr: float = 0.1, width: int = 1, points: int = 0) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(width, 1)
        self.val_loss = MeanMetric()

    def training_step(self, batch, batch_idx):
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.val_loss.update((self.layer(batch[0]) - batch[1]).square().mean())
        self.log("val/loss", self.val_loss)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", (self.layer(batch[0]) - batch[1]).square().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
'''
DATA = '''
import torch
from torch.utils.data import TensorDataset

from shared.data.base import DataModule


class Points(DataModule):
    """Points on a line.

    Args:
        source: line.
        root: not used.
        batch_size: points of a step.
        num_workers: reading processes.
        seed: seed of the points.
    """

    sources = {"line": "points on y = 2x + 1", "file": "a file points.pt in root"}

    def __init__(self, source: str = "line", root: str | None = None, batch_size: int = 8, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)

    @property
    def count(self) -> int:
        return 40

    def prepare_data(self):
        if self.source == "file" and not (self.root / "points.pt").is_file():
            raise FileNotFoundError(f"no points in {self.root}: expected {self.root}/points.pt")

    def setup(self, stage=None):
        x = torch.linspace(-1, 1, 40)[:, None]
        self.points = TensorDataset(x, 2 * x + 1)

    def train_dataloader(self):
        return self.training_loader(self.points)

    def val_dataloader(self):
        return self.evaluation_loader(self.points)

    test_dataloader = val_dataloader
'''
CLI = '''
from dataclasses import dataclass

from toy_paper.data import Points
from toy_paper.module import Line
from shared.cli import ProjectTrainer, run


@dataclass
class Verdict:
    exit_code: int
    summary: dict


class Trainer(ProjectTrainer):
    outside = frozenset({"model_file"})
    independent = frozenset({"judge"})
    resumable = frozenset({"fit", "judge"})
    begins = frozenset({"measure"})
    links = {"data.count": "model.points"}
    reads = frozenset({"how"})
    beside = frozenset({"notes.txt"})
    changing = frozenset({"slope"})
    files = frozenset({"data.root"})

    def slope(self, model: Line, datamodule: Points, ckpt_path: str | None = None, digits: int = 2) -> float:
        """Print the slope of a trained line.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; best, last or a file.
            digits: digits after the point.
        """
        trained = Line.load_from_checkpoint(ckpt_path)
        slope = round(trained.layer.weight.item(), digits)
        print(f"slope {slope}")
        return slope

    def judge(self, model: Line, datamodule: Points, model_file: str | None = None, code: int = 0) -> Verdict:
        """Judge a line, by itself.

        Args:
            model: supplied.
            datamodule: supplied.
            model_file: file of another line.
            code: the judgement.
        """
        if code == 130:
            (self.run.artefacts("judge")).mkdir(parents=True)
            (self.run.artefacts("judge") / "begun.txt").touch()
            raise KeyboardInterrupt
        return Verdict(code, {"verdict": "straight" if code == 0 else "crooked"})

    def measure(self, model: Line, datamodule: Points, scale: float = 1.0, how: str = "quickly") -> float:
        """Measure the line as training begins.

        Args:
            model: supplied.
            datamodule: supplied.
            scale: of the result.
            how: quickly, slowly, or a file.
        """
        return scale * model.hparams.points

    def explode(self, model: Line, datamodule: Points) -> None:
        """Fail as a bug would."""
        raise RuntimeError("a bug")


def main(args=None):
    return run(Line, Points, Trainer, args)


if __name__ == "__main__":
    main()
'''
CONFIG = """
# a toy
seed_everything: 0
trainer: {max_epochs: 4, devices: 1, accelerator: cpu, enable_model_summary: false}
model: {lr: 0.2}
data: {source: line, batch_size: 8, seed: "${seed_everything}"}
"""


def write_toy(folder: Path) -> ModuleType:
    """Write the project `toy_paper` below `folder`, put it on the path and return its cli module."""
    project = folder / "toy_paper"
    (project / "configs").mkdir(parents=True)
    for name, text in {"__init__.py": "", "module.py": MODULE, "data.py": DATA, "cli.py": CLI, "configs/tiny.yaml": CONFIG}.items():
        (project / name).write_text(text)
    (project / "configs" / "slow.yaml").write_text(CONFIG.replace("0.2", "0.01"))
    for name in [name for name in sys.modules if name.split(".")[0] == "toy_paper"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    return importlib.import_module("toy_paper.cli")
