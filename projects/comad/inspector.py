"""The inspector of one product: it cuts pictures into components, measures them, compares them with good pictures, and says what is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from projects.comad.components import to_levels
from projects.comad.crf import DenseCRF
from projects.comad.features import FeatureExtractor, NoFeatures, check_pictures
from projects.comad.fusion import Fusion
from projects.comad.judgement import FUSED, Judgement
from projects.comad.light import LightSegmenter
from projects.comad.measures import Measures
from projects.comad.metrology import Metrology
from projects.comad.naming import Finding, Violation, check_rules, name_anomalies, sentence
from projects.comad.patches import PatchMemory
from projects.comad.recipe import CANDIDATES, LOGICAL_PARTS, PATCHES, Recipe
from projects.comad.sampling import sample_tokens
from projects.comad.scoring import LogicalScorer, Scores, cluster_weights, weighing
from projects.comad.segmentation import segment
from projects.comad.store import load_state, save_state
from projects.comad.vocabulary import Metric, choose_k, fit_vocabulary, match_centres

LOOK = "no measure stands out: look at the anomaly map"
"""What is said of an alarm without a finding."""


@dataclass(frozen=True)
class Examined:
    """What is found in B pictures before it is judged.

    Attributes:
        levels: (B, K, H, W) uint8 heat maps, 128 for certainty.
        measures: of their components.
        scores: (B,) float64 by part.
        logical: the logical scores with what each component contributes.
        structural: (B, 1, H, W) anomaly maps of the patch memory; None without one.
    """

    levels: Tensor
    measures: Measures
    scores: dict[str, Tensor]
    logical: Scores
    structural: Tensor | None


@dataclass(frozen=True)
class Verdicts:
    """What is said of B pictures.

    Attributes:
        scores: (B,) float64, the fused ones.
        alarms: (B,) bool, whether they exceed the threshold.
        findings: by picture, the measures that stand out, the farthest first.
        broken: by picture, the rules that it breaks.
        texts: by picture, in words.
    """

    scores: Tensor
    alarms: Tensor
    findings: list[list[Finding]]
    broken: list[list[Violation]]
    texts: list[str]


class Inspector:
    """Learns a product from good pictures, and inspects others.

    `fit` does everything; `projects.comad.learning` does it step by step, over several processes.

    Args:
        features: maps pictures, (B, 3, H, W) uint8, to features.
        recipe: what is fitted, and how.
        judgement: how it is judged; None fuses ComAD's score with that of the patch memory, if there is one.
        structural: features of the patch memory; None takes the same.

    Raises:
        ValueError: if the judgement fuses scores that the recipe does not give.
    """

    def __init__(
        self, features: FeatureExtractor, recipe: Recipe | None = None, judgement: Judgement | None = None, structural: FeatureExtractor | None = None
    ) -> None:
        self.features, self.structural = features, structural
        self.recipe = recipe or Recipe()
        self.judgement = judgement or Judgement(tuple(part for part in FUSED if part in self.recipe.parts))
        self.metric: Metric = self.recipe.metric or features.metric
        self.crf = DenseCRF() if self.recipe.crf else None
        self.centres: Tensor | None = None
        """(K, C) of the vocabulary."""
        self.light: LightSegmenter | None = None
        """A network that gives heat maps instead of features, vocabulary and CRF."""
        self.metrology = Metrology(self.recipe.metrology)
        self._scorer: LogicalScorer | None = None
        self.memory = PatchMemory(**self.recipe.patches, seed=self.recipe.seed) if self.recipe.structural else None
        self._fusion: Fusion | None = None
        self.threshold = float("nan")
        self.map_level = float("nan")
        """Level of the fused map at which it stands for as much as a picture's scores at the threshold; one scale for all pictures' maps."""
        self.about: dict[str, Any] = {}
        """Plain values that are kept in the file, such as the product's name."""
        self._check_parts(self.judgement)

    # ---- learning

    def fit(self, training: Sequence[Tensor], validation: Iterable[Tensor]) -> Self:
        """Learn from good pictures in batches, (B, 3, H, W) uint8, whose features are held; validation pictures set scales and threshold.

        Raises:
            ValueError: if there are too few pictures, or no cluster is a component.
        """
        self.features.fit(training)
        if self.structural is not None:
            self.structural.fit(training)
        features = [self.features(images) for images in training]
        firsts = itertools.accumulate((len(images) for images in training), initial=0)
        self.learn_vocabulary(torch.cat([self.sample(own, first) for own, first in zip(features, firsts, strict=False)]))
        levels = torch.cat([self.segment(images, own) for images, own in zip(training, features, strict=True)])
        self.learn_components(levels, torch.cat(list(training)))
        self.judged_by(self.judgement)
        self.learn_patches(self.structural_features(images, own) for images, own in zip(training, features, strict=True))
        return self.calibrate(self.examine(images) for images in validation)

    def sample(self, features: Tensor, first: int) -> Tensor:
        """Return the tokens of pictures that the vocabulary is fitted to; `first` is the number of the first picture."""
        return sample_tokens(features, self.recipe.seed, self.recipe.fraction, first)

    def learn_vocabulary(self, tokens: Tensor) -> None:
        """Fit the vocabulary to (M, C) tokens of all training pictures; a chosen number of clusters is in the recipe from now on."""
        if self.recipe.choose is not None:
            self.recipe = replace(self.recipe, k=choose_k(tokens, CANDIDATES, self.recipe.seed, self.recipe.choose, self.metric))
        self.centres = fit_vocabulary(tokens, self.recipe.k, self.recipe.seed, self.recipe.restarts, self.metric)

    def number_like(self, earlier: Inspector) -> None:
        """Give components the numbers, names, weights and rules that they have in an earlier inspector of the product, by their centres.

        Clusters have other numbers after every fit. What this inspector's own judgement says goes first.

        Raises:
            ValueError: if the earlier one has other features, or another number of clusters.
        """
        own_centres, old_centres = self._vocabulary, earlier._vocabulary
        self.centres = own_centres[match_centres(old_centres, own_centres, self.metric)]
        own, old = self.judgement, earlier.judgement
        self.judgement = replace(own, weights=old.weights | own.weights, names=old.names | own.names, rules=own.rules or old.rules)

    def drop_absent(self) -> list[str]:
        """Drop names and rules, as `number_like` may have brought, of clusters that are no components, and say which."""
        own, there = self.judgement, self.metrology.components
        names = {k: name for k, name in own.names.items() if k in there}
        rules = tuple(rule for rule in own.rules if rule.component in there)
        self.judgement = replace(own, names=names, rules=rules)
        absent = [f"the name {own.names[k]}" for k in own.names if k not in names]
        absent += [f"a rule about {rule.measure} of {own.called(rule.component)}" for rule in own.rules if rule not in rules]
        return [f"{what} is dropped, for its cluster is no component any more" for what in absent]

    def learn_components(self, levels: Sequence[Tensor] | Tensor, images: Sequence[Tensor] | Tensor, keep: Tensor | None = None) -> None:
        """Fit metrology and the scorer to heat maps, (N, K, H, W), and their pictures; the filter finds components unless `keep` has them."""
        self._scorer = LogicalScorer(self.metrology.fit(levels, images, keep))

    def learn_patches(self, features: Iterable[Tensor]) -> None:
        """Fill the patch memory, if there is one, with features (B, C, h, w) of all training pictures."""
        if self.memory is not None:
            self.memory.fit(features)

    def calibrate(self, validation: Iterable[Examined]) -> Self:
        """Set scales and threshold by good validation pictures, which have been examined under the judgement's weights.

        Raises:
            ValueError: if there are none.
        """
        return self.calibrate_with(_joined([examined.scores for examined in validation]))

    def calibrate_with(self, scores: Mapping[str, Tensor]) -> Self:
        """Set scales and threshold by the scores, (N,) by part, of good validation pictures."""
        self._fusion = Fusion(self.judgement.fusion).fit({part: scores[part] for part in self.judgement.parts})
        self.threshold = float(torch.quantile(self.fuse(scores), self.judgement.quantile))
        heights = [scores[_mapped(part)] / scale for part, scale in self.fusion.scales().items()]  # as `maps` adds maps: scaled, not centred
        self.map_level = float(torch.quantile(torch.stack(heights).sum(0), self.judgement.quantile))
        return self

    def judged_by(self, judgement: Judgement) -> Self:
        """Judge otherwise from now on; the scales and the threshold stay those of the old judgement until `calibrate` is called.

        Raises:
            ValueError: if there is no such score, component or measure.
        """
        self._check_parts(judgement)
        cluster_weights(len(self._vocabulary), self.metrology.keep, judgement.weights, judgement.background)
        check_rules(self.scorer.training.take([0]), judgement.rules)
        if unknown := set(judgement.names) - set(self.metrology.components):
            raise ValueError(f"there is no component {min(unknown)} to name: components are {', '.join(map(str, self.metrology.components))}")
        self.judgement = judgement
        return self

    def _check_parts(self, judgement: Judgement) -> None:
        if unknown := [part for part in judgement.parts if part not in self.recipe.parts]:
            known = f"there are {', '.join(self.recipe.parts)}"
            raise ValueError(f"there is no score {unknown[0]!r} to fuse: {known}; leave it out of model.parts, or of --set parts=...")
        numbers = {*judgement.weights, *judgement.names, *(rule.component for rule in judgement.rules)}
        if self.recipe.choose is None and (beyond := [number for number in numbers if not 0 <= number < self.recipe.k]):
            raise ValueError(f"there is no component {beyond[0]}: clusters are numbered from 0 to {self.recipe.k - 1}")

    # ---- inspecting

    @property
    def _vocabulary(self) -> Tensor:
        if self.centres is None:
            raise ValueError("there is no vocabulary yet: fit the inspector to good pictures")
        return self.centres

    @property
    def scorer(self) -> LogicalScorer:
        """The logical scorer, with the measures of the training pictures.

        Raises:
            ValueError: if nothing was fitted.
        """
        if self._scorer is None:
            raise ValueError("the inspector knows no product yet: fit it to good pictures")
        return self._scorer

    @property
    def fusion(self) -> Fusion:
        """The scales of scores.

        Raises:
            ValueError: if they were not set.
        """
        if self._fusion is None:
            raise ValueError("scales and threshold are not known yet: calibrate the inspector with good validation pictures")
        return self._fusion

    @property
    def weights(self) -> Tensor | None:
        """(K,) weights of all clusters; None where all weigh 1."""
        weights = cluster_weights(len(self._vocabulary), self.metrology.keep, self.judgement.weights, self.judgement.background)
        return None if bool((weights == 1).all()) else weights

    def segment(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Segment pictures, (B, 3, H, W) uint8, into heat maps, (B, K, H, W) uint8 levels; features are computed unless given."""
        if self.light is not None:
            return self.light.levels(images)
        centres = self._vocabulary
        found = self.features(images) if features is None else features
        return to_levels(segment(found, images.to(found.device), centres, self.crf, self.metric))

    @property
    def uses_features(self) -> bool:
        """Whether features are needed: for components unless a light network gives them, or for a patch memory without features of its own."""
        return self.light is None or (self.memory is not None and self.structural is None)

    def structural_features(self, images: Tensor, features: Tensor | None = None) -> Tensor:
        """Return what the patch memory sees of pictures: features of its own, or those of the components, which are computed unless given."""
        if self.structural is not None:
            return self.structural(images)
        return self.features(images) if features is None else features

    def examine(self, images: Tensor) -> Examined:
        """Segment, measure and score pictures, (B, 3, H, W) uint8 of the size that was fitted; weights of components count already.

        Raises:
            ValueError: if nothing was fitted, or pictures have another shape, type or size.
        """
        self._check_size(images)
        features = self.features(images) if self.uses_features else None
        levels = self.segment(images, features)
        measures = self.metrology.measure(levels, images)
        weights = self.weights
        logical = self.scorer.score(measures, weights)
        scores, structural = dict(logical.parts), None
        if self.memory is not None:
            found = self.memory(self.structural_features(images, features), _size(images), None if weights is None else weighing(levels, weights))
            scores[PATCHES], structural = found.scores.double().cpu(), found.maps
        return Examined(levels, measures, scores, logical, structural)

    def fuse(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Fuse scores, (B,) by part, as the judgement says; (B,) float64."""
        return self.fusion({part: scores[part] for part in self.judgement.parts})

    def judge(self, examined: Examined) -> Verdicts:
        """Say what is wrong, and whether a picture alarms: its fused score exceeds the threshold."""
        scores = self.fuse(examined.scores)
        findings = name_anomalies(examined.measures, self.scorer.training, self.weights)
        broken = check_rules(examined.measures, self.judgement.rules, self.judgement.names)
        alarms, words = scores > self.threshold, []
        for found, rules, is_alarm in zip(findings, broken, alarms.tolist(), strict=True):
            first = LOOK if is_alarm and not found else sentence(found, self.judgement.names)
            words.append("; ".join([first, *(rule.text for rule in rules)]))
        return Verdicts(scores, alarms, findings, broken, words)

    def maps(self, examined: Examined) -> dict[str, Tensor]:
        """Return anomaly maps, (B, 1, H, W) float32 by fused part, and `fused`: their sum, each divided by the scale of its scores.

        `logical` and extensions show which components contribute; `global` and `number` have no map of their own, and show the same.
        """
        found, scales = {}, self.fusion.scales()
        for part in self.judgement.parts:
            if part == PATCHES and examined.structural is not None:
                found[part] = examined.structural.cpu()
            else:
                found[part] = self.scorer.localise(examined.measures, examined.logical, part=_mapped(part))
        return found | {"fused": torch.stack([found[part] / scales[part] for part in found]).sum(0)}

    def _check_size(self, images: Tensor) -> None:
        check_pictures(images)
        if _size(images) != self.scorer.training.size:
            raise ValueError(f"pictures have {_size(images)} pixels, those that were learnt {self.scorer.training.size}: bring them to that size")

    # ---- the file

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that were learnt."""
        return self.scorer.training.size

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that `from_state` takes."""
        return {
            "about": self.about,
            "features": self.features.state(),
            "structural": None if self.structural is None else self.structural.state(),
            "recipe": self.recipe.state(),
            "judgement": self.judgement.state(),
            "centres": self.centres,
            "light": None if self.light is None else self.light.state(),
            "metrology": self.metrology.state(),
            "scorer": self.scorer.state(),
            "memory": None if self.memory is None else self.memory.state(),
            "fusion": self.fusion.state(),
            "threshold": self.threshold,
            "map_level": self.map_level,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], features: FeatureExtractor, structural: FeatureExtractor | None = None) -> Inspector:
        """Rebuild what `state` was taken of; the features must be those that were fitted.

        Raises:
            ValueError: if they are others.
        """
        self = cls(features, Recipe.from_state(state["recipe"]), Judgement.from_state(state["judgement"]), structural)
        features.restore(state["features"])
        if structural is not None:
            structural.restore(state["structural"])
        self.about, self.centres, self.threshold = state["about"], state["centres"], state["threshold"]
        self.map_level = state["map_level"]
        self.light = None if state.get("light") is None else LightSegmenter.from_state(state["light"])
        self.metrology, self._scorer = Metrology.from_state(state["metrology"]), LogicalScorer.from_state(state["scorer"])
        self.memory = None if state["memory"] is None else PatchMemory.from_state(state["memory"])
        self._fusion = Fusion.from_state(state["fusion"])
        return self

    def save(self, path: str | Path) -> None:
        """Write one file, which holds no pictures, no weights of the features, and nothing that can execute code; see `load`."""
        save_state(self.state(), path)

    @classmethod
    def load(cls, path: str | Path, features: FeatureExtractor | None = None, structural: FeatureExtractor | None = None) -> Inspector:
        """Read what `save` wrote.

        Args:
            path: the file.
            features: those that were fitted; None for a light inspector, which needs none.
            structural: those of the patch memory, if it has its own.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or holds something else, or the features are others.
        """
        return cls.from_state(load_state(path), features or NoFeatures(), structural)


def _mapped(part: str) -> str:
    """Return the score whose contributions a part's anomaly map shows."""
    return "logical" if part in LOGICAL_PARTS else part


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]


def _joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    if not parts:
        raise ValueError("scales and threshold need good validation pictures, and there are none")
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
