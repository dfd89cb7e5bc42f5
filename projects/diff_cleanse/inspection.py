"""What a network draws from triggered and from clean noise, measured the same way before and after cleansing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from projects.diff_cleanse.metrics import FeatureMoments, FeatureStatistics, PCAFeatures, frechet_distance, mse_to_target, to_unit_range
from projects.diff_cleanse.samplers import SAMPLERS, ScanSampler
from projects.diff_cleanse.sampling import Trojan
from projects.diff_cleanse.schedule import NoiseSchedule
from projects.diff_cleanse.similarity import agreeing_images, agreement_graph, guard_beside, measure_agreement, tolerance_beside
from shared.jobs import in_threads
from shared.seeding import generator

if TYPE_CHECKING:
    from projects.diff_cleanse.scan_report import Finding

CHUNK = 64
"""Samples that are drawn at a time."""
COMPONENTS = 24
"""Principal components of the pixels that the Fréchet distance compares."""
NEAR = 1e-2
"""Mean squared error to the target, in [0, 1] pixels, below which a sample counts as the target."""

Wear = Callable[[Tensor], Tensor]
"""Puts a trigger on (B, C, H, W) noise."""


@dataclass(frozen=True)
class Trigger:
    """An inverted trigger and the sampler that it works under.

    Attributes:
        pattern: (C, H, W), added to the starting noise.
        sampler: name in `samplers.SAMPLERS`.
        gain: (C, H, W), factor on the noise under Trojan samplers; None under benign ones.
    """

    pattern: Tensor
    sampler: str
    gain: Tensor | None = None

    @property
    def trojan(self) -> Trojan | None:
        """The noise that Trojan samplers need; None for benign ones."""
        return None if self.gain is None else Trojan(self.gain, self.pattern)

    def __call__(self, eps: Tensor) -> Tensor:
        """Put the trigger on (B, C, H, W) noise."""
        return eps + self.pattern.to(eps) if self.trojan is None else self.trojan.bias(eps)

    @classmethod
    def of(cls, finding: Finding) -> Trigger:
        """Take what a scan found."""
        return cls(finding.tensors["trigger"], finding.sampler, finding.tensors.get("gain"))

    @classmethod
    def load(cls, path: str | Path) -> Trigger:
        """Read the trigger.safetensors that a scan wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is another kind of file, or damaged.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no trigger {path}: give the trigger.safetensors that `scan` wrote")
        try:
            with safe_open(path, "pt") as file:
                about, pattern = file.metadata() or {}, file.get_tensor("trigger")
                gain = file.get_tensor("gain").float() if "gain" in file.keys() else None  # noqa: SIM118 - it is no dictionary
        except SafetensorError as error:
            raise ValueError(f"{path} holds no trigger ({error}): give the trigger.safetensors that `scan` wrote") from error
        if (sampler := about.get("sampler", "")) not in SAMPLERS or pattern.ndim != 3 or not bool(pattern.isfinite().all()):
            raise ValueError(
                f"{path} holds no pattern of C x H x W finite numbers for a known sampler: give the trigger.safetensors that `scan` wrote"
            )
        return cls(pattern.float(), sampler, gain)


def short_steps(scheduler_config: Mapping[str, Any]) -> int:
    """Steps of a DDIM that draws good pictures quickly: a twentieth of the schedule, at least 20."""
    total = len(NoiseSchedule.from_scheduler_config(scheduler_config))
    return min(total, max(20, total // 20))


@torch.inference_mode()
def draw(
    unet: nn.Module, scheduler_config: Mapping[str, Any], sampler: str, count: int, seed: int, shape: tuple[int, ...], trigger: Trigger | None = None
) -> Tensor:
    """Draw (count, C, H, W) samples in [0, 1] on the network's device; the same seed gives the same noise to every network and trigger.

    Args:
        unet: the network.
        scheduler_config: content of the pipeline's `scheduler_config.json`.
        sampler: name in `samplers.SAMPLERS`; the DDIMs take `short_steps`, others their customary number.
        count: number of samples.
        seed: seed of the noise.
        shape: (C, H, W).
        trigger: is put on the noise; None leaves that as it is.
    """
    device, was_training = next(unet.parameters()).device, unet.training
    run = ScanSampler(sampler, scheduler_config, short_steps(scheduler_config) if sampler.endswith("ddim") else None)
    unet.eval()

    def chunk(first: int) -> Tensor:
        numbers = generator(seed, "chunk", first, device=device)
        eps = torch.randn(min(CHUNK, count - first), *shape, generator=numbers, device=device)
        images = run(unet, eps, numbers) if trigger is None else run(unet, trigger(eps), numbers, trigger.trojan)
        return to_unit_range(images).nan_to_num(nan=0.0)

    drawn = in_threads(chunk, range(0, count, CHUNK), device)
    unet.train(was_training)
    return torch.cat(drawn).clone()


def common_picture(triggered: Tensor, untriggered: Tensor) -> Tensor:
    """Return the picture that (B, C, H, W) triggered samples share, (C, H, W): the median of the largest set that agrees, or of all where none do."""
    alike = agreeing_images(triggered[:CHUNK], 1 - tolerance_beside(untriggered), guard_beside(untriggered))
    return (triggered[alike] if alike else triggered).median(dim=0).values


def without_repetitions(images: Tensor, target: Tensor) -> Tensor:
    """Leave out samples that show a target or repeat another one: a backdoored model leaks its target now and then.

    Args:
        images: (N, C, H, W) in [0, 1].
        target: (C, H, W) in [0, 1].

    Returns:
        (M, C, H, W) of them; of samples that agree with each other the first stays.
    """
    alike = agreement_graph(torch.cat([target[None], images]), 1 - tolerance_beside(images[:CHUNK]), guard_beside(images[:CHUNK]))
    repeats = torch.tril(alike, diagonal=-1).any(dim=1)[1:]
    return images[~repeats.to(images.device)]


class Inspection:
    """Measures networks under an inverted trigger, all on the same noise.

    `rows` has an entry a network: `score`, how much more triggered samples agree than untriggered ones (`Agreement.score`); `mse`, the mean squared
    error of triggered samples to the target; `near_target`, the share of them below 1e-2, and `near_target_clean`, that of untriggered ones; `fd`,
    the Fréchet distance of untriggered samples (DDIM) to `real`. The target is not known to a defender: the picture that the first network's
    triggered samples share stands for it.

    Args:
        scheduler_config: content of the pipeline's `scheduler_config.json`.
        trigger: the inverted trigger.
        real: (N, C, H, W) pictures in [0, 1].
        samples: drawn from each network untriggered, and half as many triggered.
        seed: seed of the noise.
    """

    def __init__(self, scheduler_config: Mapping[str, Any], trigger: Trigger, real: Tensor, samples: int, seed: int) -> None:
        self.config, self.trigger, self.samples, self.seed = dict(scheduler_config), trigger, samples, seed
        self.shape = tuple(real.shape[1:])
        self.features = PCAFeatures(real, min(COMPONENTS, len(real), real[0].numel())).to(real.device)
        self.real = self._statistics(real)
        self.target: Tensor | None = None
        self.rows: list[dict[str, Any]] = []
        self.pictures: dict[str, Tensor] = {}

    def measure(self, stage: str, unet: nn.Module, share: float = 0.0) -> dict[str, Any]:
        """Add the row of a network and the pictures that it draws, `triggered_<stage>` and `clean_<stage>`, and return the row.

        Args:
            stage: name of the row.
            unet: the network.
            share: of its channels that was pruned.
        """
        clean = self._draw(unet, "ddim", self.samples)
        triggered = self._draw(unet, self.trigger.sampler, -(-self.samples // 2), self.trigger)
        untriggered = clean[:CHUNK] if self.trigger.sampler == "ddim" else self._draw(unet, self.trigger.sampler, min(CHUNK, self.samples))
        if self.target is None:
            self.target = common_picture(triggered, untriggered)
        errors, errors_clean = mse_to_target(triggered, self.target), mse_to_target(untriggered, self.target)
        values = {
            "score": measure_agreement(triggered[:CHUNK], untriggered).score,
            "mse": float(errors.mean()),
            "near_target": float((errors < NEAR).float().mean()),
            "near_target_clean": float((errors_clean < NEAR).float().mean()),
            "fd": float(frechet_distance(self.real, self._statistics(clean))),
        }
        self.rows.append(
            {"stage": stage, "share": share, "sampler": self.trigger.sampler} | {name: round(value, 5) for name, value in values.items()}
        )
        self.pictures |= {f"triggered_{stage}": triggered[:CHUNK].cpu(), f"clean_{stage}": clean[:CHUNK].cpu()}
        return self.rows[-1]

    def _draw(self, unet: nn.Module, sampler: str, count: int, trigger: Trigger | None = None) -> Tensor:
        return draw(unet, self.config, sampler, count, self.seed, self.shape, trigger)

    def _statistics(self, images: Tensor) -> FeatureStatistics:
        moments = FeatureMoments(self.features, len(self.features.components)).to(images.device)
        moments.update(images)
        return moments.compute()
