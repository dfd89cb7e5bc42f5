"""Coarse sequences for training and testing: drawn plumes, or files; the truth is read for tests alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader

from projects.s3rp.assembling import Reading
from projects.s3rp.physics import Boundary
from projects.s3rp.sets import Observations, Sequences, whole
from projects.s3rp.worlds import World, draw_plumes
from shared.data.base import DataModule
from shared.distributed import rank

SPLITS = ("train", "val", "test")
MANY = 2**30
"""Cells of all frames, on the grid of the truth, from which on drawing takes so long that it is announced."""


class PlumeData(DataModule):
    """Coarse frames and winds of transported scalars.

    Args:
        source: plumes (drawn), or files.
        root: folder with train.npz, val.npz and test.npz (or .h5, .zarr, .nc), as `simulate` writes; the truth, if known, in truth/test.npz.
        world: what is drawn; see the options below.
        train: drawn sequences to train on.
        val: drawn sequences to validate on.
        test: drawn sequences to test on.
        batch_size: sequences of a training step over all processes together.
        num_workers: not used: the sequences lie in memory.
        seed: seed of the order of sequences; drawn plumes have one of their own, world.seed.
        known_source: tells the network where drawn sources are; false to look for them.
        reading: how to read files that do not say everything themselves.

    Attributes:
        factor: r, fine cells along a side of a coarse one.
        boundary: of the domain.
    """

    sources = {  # noqa: RUF012 - Lightning's modules have no class variables that change
        "plumes": "drawn plumes in drawn winds",
        "files": "root/{train,val,test}.npz, .h5, .zarr or .nc, the truth in root/truth/",
    }

    def __init__(
        self,
        source: str = "plumes",
        root: str | None = None,
        world: World = World(),  # noqa: B008 - it cannot change
        train: int = 96,
        val: int = 16,
        test: int = 32,
        batch_size: int = 8,
        num_workers: int = 0,
        seed: int = 0,
        known_source: bool = True,
        reading: Reading = Reading(),  # noqa: B008 - it cannot change
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.reading = reading
        self.known_source = known_source
        self.world, self.counts = world, {"train": train, "val": val, "test": test}
        if (least := min(self.counts, key=lambda split: self.counts[split])) and self.counts[least] < 1:
            raise ValueError(f"data.{least} must be at least 1, got {self.counts[least]}")
        self._observations: dict[str, Observations] = {}
        self._truths: dict[str, Tensor | None] = {}

    # ---- what there is

    def observations(self, split: str) -> Observations:
        """Return what an instrument saw, read or drawn once; its physics takes as many time steps a frame as the split's winds need."""
        if split not in self._observations:
            self._load(split)
        return self._observations[split]

    def truth(self, split: str) -> Tensor | None:
        """Return the fine fields (B, T, H, W), None where nobody knows them. Only tests, and networks that are told the truth, ask."""
        if self.source == "files":
            if split not in self._truths:
                from projects.s3rp.layouts import find_truth

                self._truths[split] = find_truth(self.root, split, self.observations(split), self.reading)
        elif split not in self._truths:
            self._truths[split] = draw_plumes(self.world, self.counts[split], split).truth
        return self._truths[split]

    def _load(self, split: str) -> None:
        if self.source == "files":
            from projects.s3rp.layouts import read_split

            self._observations[split] = read_split(self.root, split, self.reading)
        else:
            count, world = self.counts[split], self.world
            if count * world.frames * (world.size * world.refine) ** 2 >= MANY and rank() == 0:
                print(
                    f"drawing {count} sequences ({split}) on the CPU, which takes long; the verb simulate writes them once",
                    flush=True,
                )
            self._observations[split] = draw_plumes(world, count, split, self.known_source).observations
        known = self._observations[split]
        self._observations[split] = replace(known, physics=known.physics.fixed(known.wind))
        self._check(split)

    def _check(self, split: str) -> None:
        """Refuse a split that does not go with the training's.

        Raises:
            ValueError: naming what differs.
        """
        first = next(iter(self._observations.values()))
        other = self._observations[split]
        for name, one, two in (("factor", first.factor, other.factor), ("boundary", first.physics.boundary, other.physics.boundary)):
            if one != two:
                raise ValueError(f"the {name} of {split} is {two}, that of {next(iter(self._observations))} is {one}: one network serves one {name}")

    @property
    def _any(self) -> Observations:
        return next(iter(self._observations.values())) if self._observations else self.observations(self._first_split)

    @property
    def _first_split(self) -> str:
        if self.source == "plumes":
            return "train"
        from projects.s3rp.layouts import split_file

        return next((split for split in SPLITS if split_file(self.root, split) is not None), "train")

    @property
    def factor(self) -> int:
        """R."""
        return self.world.factor if self.source == "plumes" else self._any.factor

    @property
    def boundary(self) -> Boundary:
        """Of the domain."""
        return self.world.boundary if self.source == "plumes" else self._any.physics.boundary

    # ---- loaders

    def prepare_data(self) -> None:
        if self.source == "files":
            folder = Path(self.root)
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder} is no folder: expected train.npz, val.npz and test.npz in it, as `simulate {folder}` writes them")

    def train_dataloader(self) -> DataLoader:
        return self.training_loader(Sequences(self.observations("train")), whole)

    def val_dataloader(self) -> DataLoader:
        return self.evaluation_loader(Sequences(self.observations("val")), whole)

    def test_dataloader(self) -> DataLoader:
        return self.evaluation_loader(Sequences(self.observations("test")), whole)
