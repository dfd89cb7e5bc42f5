"""The inspector under Lightning: its options, its file, and how test pictures are gone through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import lightning as L
import yaml
from torch import Tensor

from projects.comad.components import FilterName
from projects.comad.features import FeatureExtractor, Output, build_features
from projects.comad.fusion import How
from projects.comad.inspector import Inspector, Recipe
from projects.comad.judgement import FUSED, Judgement
from projects.comad.metrology import EXTENSIONS, MetrologySettings
from projects.comad.naming import Rule
from projects.comad.patches import Coreset
from projects.comad.spro import SaturatedOverlap, enlarged, tiff_path, write_tiff
from projects.comad.store import load_state
from projects.comad.vocabulary import Metric, Rating

if TYPE_CHECKING:
    from projects.comad.data import InspectionData

MODEL = "model.safetensors"
"""File of a run's inspector."""
SAME, NONE = "same", "none"
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
"""Of the trainer: networks may run in less than float32, and all else does not."""


class Judged(NamedTuple):
    """What a test picture was given: its place in the set, its scores by part and `fused`, whether it alarms, and why."""

    place: int
    scores: dict[str, float]
    alarm: bool
    rules: int
    text: str


class ComponentInspection(L.LightningModule):
    """Learns a product from good pictures: cuts it into components, measures these, and compares.

    Args:
        features: offline (colours and textures, no weights), or timm's name of a vision transformer, such as vit_small_patch8_224.dino.
        weights: local file of its weights; pretrained takes timm's own, from its cache or by download; null is random ones.
        output: what the transformer gives: tokens of its last block, or keys of its last attention.
        size: side that pictures are resized to for the transformer, or height and width, in pixels; null is 224.
        stride: with offline, pixels from one place of the grid to the next.
        k: clusters of the vocabulary; components are those of them that are no background.
        choose_k: chooses k among 3 to 12 by silhouette or stability; null takes k.
        fraction: part of each training picture's tokens that the vocabulary is fitted to.
        restarts: beginnings of its k-means.
        metric: compares tokens by cosine or euclidean; null is euclidean for offline, and cosine else.
        crf: sharpens components by the pictures' edges; without it each pixel belongs to one component.
        filter: which clusters are components: first asks the first training picture, vote asks twenty.
        certainty: that a component must have somewhere, from 0 to 1.
        extensions: measures beside area, colour and number: some of position, grid, shape and pair; null is all.
        split: parts pieces that touch, by a watershed.
        parts: scores that are fused: some of logical, global, number, patches and the extensions; null is logical and patches.
        fusion: sum, zscore, trimmed-z, max or rank.
        quantile: of the validation scores, above which a picture alarms.
        background: weight of what is no component; 0 silences dirt on the belt.
        component_weights: weights of components by number, as '{3: 0}' with the space; others weigh 1.
        rules: intervals, as 3:number:2:2 or 1:area::1.2 (component:measure:low:high).
        structural: features of the patch memory: same as the components', none for no memory, or a name as in features, also of timm's
            convolutional networks.
        structural_weights: local file of their weights.
        patches: patches that are kept at most.
        candidates: patches that they are chosen from.
        coreset: how they are chosen: greedy or random.
        like: file of an earlier inspector of the product, whose components keep their numbers, names, weights and rules.
        seed: of every random choice.

    Attributes:
        inspector: what is learnt.
        judged: test pictures that this process judged.
        overlaps: overlap of maps with defects, by map and group of pictures, of this process.
        maps_folder: where test writes maps as TIFF, if anywhere.
    """

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        features: str = "offline",
        weights: str | None = None,
        output: Output = "tokens",
        size: int | list[int] | None = None,
        stride: int = 2,
        k: int = 5,
        choose_k: Rating | None = None,
        fraction: float = 0.01,
        restarts: int = 10,
        metric: Metric | None = None,
        crf: bool = True,
        filter: FilterName = "first",  # noqa: A002 - the paper's word
        certainty: float = 0.5,
        extensions: list[str] | None = None,
        split: bool = False,
        parts: list[str] | None = None,
        fusion: How = "trimmed-z",
        quantile: float = 0.95,
        background: float = 1.0,
        component_weights: dict[int, float] | None = None,
        rules: list[str] | None = None,
        structural: str = SAME,
        structural_weights: str | None = None,
        patches: int = 5000,
        candidates: int = 100_000,
        coreset: Coreset = "greedy",
        like: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        given = self.hparams
        chosen = tuple(EXTENSIONS if extensions is None else extensions)
        metrology = MetrologySettings(filter=filter, extensions=chosen, seed=seed, certainty=certainty, split=split)
        memory = {"count": patches, "candidates": max(patches, candidates), "coreset": coreset}
        recipe = Recipe(k, fraction, restarts, metric, choose_k, crf, structural != NONE, seed, metrology, memory)
        fused = tuple(parts if parts is not None else [part for part in FUSED if part in recipe.parts])
        parsed = tuple(Rule.parse(rule) for rule in rules or ())
        judgement = Judgement(fused, fusion, quantile, background, dict(component_weights or {}), rules=parsed)
        side = 224 if size is None else size if isinstance(size, int) else (size[0], size[1])
        own = build_features(features, side, weights, output, stride, seed)
        other = None if structural in (SAME, NONE) else build_features(structural, side, structural_weights, "tokens", stride, given.seed)
        self.features: FeatureExtractor = own
        self.structural: FeatureExtractor | None = other
        self.inspector = Inspector(own, recipe, judgement, other)
        self.judged: list[Judged] = []
        self.overlaps: dict[tuple[str, str], SaturatedOverlap] = {}
        self.maps_folder: Path | None = None

    def load(self, path: str | Path) -> Self:
        """Take the inspector in a file with its features, recipe and judgement, whatever the options; weights of features are those of the options.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or holds something else, or the weights are others.
        """
        state = load_state(path)
        options, given = ("name", "output", "size", "stride"), self.hparams
        for role, weights in (("features", given.weights), ("structural", given.structural_weights)):
            kept = state[role] and {name: state[role][name] for name in options if name in state[role]}
            own: FeatureExtractor | None = getattr(self, role)
            if kept is None or own is None or kept != {name: value for name, value in own.state().items() if name in options}:
                setattr(self, role, kept and build_features(**kept, weights=weights, seed=given.seed))
        assert self.features is not None
        self.inspector = Inspector.from_state(state, self.features.to(self.device), self.structural)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Score pictures, (B, 3, H, W) uint8 -> (B,) float64; larger is more anomalous."""
        return self.inspector.judge(self.inspector.examine(images)).scores

    def on_test_start(self) -> None:
        self.judged, self.overlaps = [], {}

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        examined = self.inspector.examine(batch["image"])
        verdicts = self.inspector.judge(examined)
        places: list[int] = batch["index"].tolist()
        for row, place in enumerate(places):
            scores = {part: float(values[row]) for part, values in examined.scores.items()} | {"fused": float(verdicts.scores[row])}
            self.judged.append(Judged(place, scores, bool(verdicts.alarms[row]), len(verdicts.broken[row]), verdicts.texts[row]))
        self._compare(self.inspector.maps(examined), places)

    def _compare(self, maps: dict[str, Tensor], places: Sequence[int]) -> None:
        """Compare anomaly maps with the defects of their pictures, at the size of their files."""
        data: InspectionData = self.trainer.datamodule  # type: ignore[attr-defined]
        for row, place in enumerate(places):
            defects, size, group = data.test_set.defects(place), data.test_set.original_size(place), data.test_set.group(place)
            for name, values in maps.items():
                large = enlarged(values[row : row + 1], size)[0]
                if name == "fused" and self.maps_folder is not None:
                    kind, stem = data.test_set.name(place).split("/", 1)
                    write_tiff(large, tiff_path(self.maps_folder, data.name, kind, stem))
                if group == "good" or defects:
                    self.overlaps.setdefault((name, group), SaturatedOverlap()).update(large, defects)


def check_precision(precision: str | int) -> None:
    """Raise unless measures, and drawn trays, are what they are in float32.

    Raises:
        ValueError: if everything would run in another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"trainer.precision {precision} is for networks that are trained: take {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}")


def unused_options(module: ComponentInspection, config: Path) -> list[str]:
    """Say which options are others than those that a run's inspector was fitted with, which it keeps; files of weights may be others.

    Args:
        module: with its options.
        config: settings of the run, without what is null.
    """
    fitted = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("model") if config.is_file() else None
    if fitted is None:
        return []
    given = {name: value for name, value in module.hparams.items() if name not in ("weights", "structural_weights")}
    mend = "fit again, or change how it judges by inspect --set"
    return [
        f"note: model.{name} {value} does not count, for the model was fitted with {fitted.get(name)}: {mend}"
        for name, value in given.items()
        if value != fitted.get(name)
    ]
