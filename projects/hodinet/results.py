"""The files that the verb `predict` writes for a picture, and what of them an earlier run left."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from projects.hodinet.fusion import Interaction
from projects.hodinet.gates import draw_gates
from projects.hodinet.pairs import Pair
from shared.pictures import laid_over, levels
from shared.runs import atomic, digest, write_json

Bits = Literal[8, 16]
"""Of maps in PNG files; the highest level is a probability of 1."""

SALIENT = 0.5
"""Probability above which a pixel counts as salient."""


class Judged(NamedTuple):
    """A picture with what was found.

    Attributes:
        image: (3, H, W) uint8.
        depth: (1, H, W) in [0, 1], near = 1.
        probability: (1, H, W) of being salient.
        stages: what the fusion computes at each stage; empty if nobody asks.
        found: see `projects.hodinet.prediction.describe`.
    """

    image: Tensor
    depth: Tensor
    probability: Tensor
    stages: list[Interaction]
    found: dict[str, Any]


@dataclass(frozen=True)
class Results:
    """The results of pictures in a folder, under the pictures' names.

    Attributes:
        folder: the folder.
        settings: all that results depend on, but the files that are judged.
        bits: of maps.
        cutout: probability above which a pixel is kept in the cut-out; None takes the map as its alpha.
        placement: of the fusion, for the figure of its gates.
    """

    folder: Path
    settings: str
    bits: Bits = 8
    cutout: float | None = None
    placement: str = ""

    def file(self, pair: Pair, ending: str) -> Path:
        """Return the file of a result; names keep the picture's ending, so that 1.png and 1.jpg are told apart."""
        return self.folder / f"{pair.given.name}{ending}"

    def key(self, pair: Pair) -> str:
        """Return 16 hexadecimal digits that change with the settings and with what the files hold."""
        files = [digest(path) for path in (pair.given.file, pair.depth) if path is not None]
        return hashlib.sha256(repr((self.settings, pair.invert, files)).encode()).hexdigest()[:16]

    def earlier(self, pair: Pair) -> dict[str, Any] | None:
        """Return what an earlier run found in a picture, if it wrote all of its files, of the same key; else None."""
        try:
            found = json.loads(self.file(pair, ".json").read_text(encoding="utf-8"))
            is_whole = all((self.file(pair, ".json").parent / name).is_file() for name in found["files"].values())
            return found if is_whole and found["key"] == self.key(pair) else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def write(self, pair: Pair, judged: Judged) -> dict[str, Any]:
        """Write map, cut-out, overlay, the gates if there are some and, last, `<name>.json`, whose content is returned.

        Raises:
            OSError: if a file cannot be written.
        """
        probability = judged.probability[0].numpy()
        with_alpha = torch.cat([judged.image, self._alpha(judged.probability)]).permute(1, 2, 0).numpy()
        files = {
            "map": self._save(pair, "-map.png", levels(probability, self.bits)),
            "cutout": self._save(pair, "-cutout.png", with_alpha),
            "overlay": self._save(pair, "-overlay.png", laid_over(judged.image, judged.probability, SALIENT).permute(1, 2, 0).numpy()),
        }
        if judged.stages:
            figure = draw_gates(judged.image, judged.depth, judged.stages, self.placement)
            files["gates"] = self._put(pair, "-gates.png", lambda path: figure.savefig(path, dpi=100, bbox_inches="tight"))
        content = {"file": pair.given.name} | judged.found | {"files": files, "key": self.key(pair)}
        write_json(self.file(pair, ".json"), content)
        return content

    def _alpha(self, probability: Tensor) -> Tensor:
        kept = probability if self.cutout is None else (probability > self.cutout).float()
        return torch.from_numpy(levels(kept.numpy(), 8))

    def _save(self, pair: Pair, ending: str, pixels: np.ndarray) -> str:
        from PIL import Image

        return self._put(pair, ending, lambda path: Image.fromarray(pixels).save(path, compress_level=1))

    def _put(self, pair: Pair, ending: str, write: Callable[[Path], object]) -> str:
        with atomic(self.file(pair, ending)) as temporary:
            write(temporary)
        return self.file(pair, ending).name
