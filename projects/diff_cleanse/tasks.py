"""The verbs besides training: measuring a diffusion model, and drawing samples from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from projects.diff_cleanse.data import labelled, stacked
from projects.diff_cleanse.inspection import COMPONENTS
from projects.diff_cleanse.metrics import (
    FeatureMoments,
    InceptionFeatures,
    PCAFeatures,
    attack_success_rate,
    frechet_distance,
    mse_to_target,
    ssim_to_target,
    to_unit_range,
)
from projects.diff_cleanse.module import find_pipeline
from projects.diff_cleanse.pictures import picture_grid
from projects.diff_cleanse.sampling import Prediction, Sampler, Trojan, Variance, sample_many
from shared.backbones.unets import load_pipeline
from shared.distributed import UnpaddedSampler, gather_objects, gather_rows
from shared.loggers import artefact_folder, log_figure, log_image, log_table
from shared.runs import remove

if TYPE_CHECKING:
    from diffusers import UNet2DModel

    from projects.diff_cleanse.data import DiffusionData
    from projects.diff_cleanse.module import DiffusionTraining
    from projects.diff_cleanse.schedule import AttackSchedule

ASR_THRESHOLDS = {"asr_1e-2": 1e-2, "asr_1e-3": 1e-3}
SHOWN = 64
CHUNK = 64
SettingSampler = Literal["ddim", "ddpm", "trojan_ddim", "trojan_ddpm"]


@dataclass(frozen=True)
class Subject:
    """A diffusion model to measure or sample: its network, its schedule under the attack to test for, and what the network predicts.

    Attributes:
        unet: (B, C, H, W) and (B,) timesteps to an object whose `.sample` is (B, C, H, W).
        schedule: the noise schedule.
        prediction_type: `epsilon`, `v_prediction` or `sample`.
        variance: noise of the ancestral sampler, `fixed_small` or `fixed_large`.
        trigger: (C, H, W) in [-1, 1].
        target: (C, H, W) in [-1, 1]; None if the attack leads to a class.
        trojan: noise of TrojDiff's samplers; None under other attacks.
    """

    unet: UNet2DModel
    schedule: AttackSchedule
    prediction_type: Prediction
    variance: Variance
    trigger: Tensor
    target: Tensor | None
    trojan: Trojan | None = None

    @classmethod
    def of(cls, model: DiffusionTraining, pipeline: str | Path | None = None) -> Subject:
        """Take the averaged network of `model`, or the one in a pipeline folder with the attack that `model` describes.

        Raises:
            FileNotFoundError, ValueError: if the folder cannot be read, or its pictures are of another size than `model`'s.
        """
        unet, config = (model.ema, model.scheduler_config) if pipeline is None else load_pipeline(find_pipeline(pipeline))
        model.check_size(unet, str(pipeline))
        variance: Any = config.get("variance_type") or "fixed_small"
        prediction: Any = config.get("prediction_type") or "epsilon"
        return cls(unet, model.attack_schedule(config), prediction, variance, model.trigger, model.target, model.trojan)

    def sampler(self, family: Sampler, is_triggered: bool) -> SettingSampler:
        """Return the sampler of this family that the attack is made for: TrojDiff's own from triggered noise, the benign one otherwise."""
        return cast(SettingSampler, f"trojan_{family}") if is_triggered and self.trojan is not None else family

    def draw(self, setting: Setting, numbers: range, seed: int) -> Tensor:
        """Draw the samples with these numbers, (N, C, H, W) in the network's range; sample i depends on (seed, i) and the setting alone.

        Raises:
            ValueError: if the setting names one of TrojDiff's samplers, and the attack is another.
        """
        if setting.is_trojan and self.trojan is None:
            raise ValueError(f"sampler {setting.sampler} belongs to TrojDiff: set model.attack to trojdiff, or take {setting.family}")
        options: dict[str, Any] = {"sampler": setting.family, "steps": setting.steps, "clip": setting.clip, "eta": setting.eta}
        options |= {"prediction_type": self.prediction_type, "variance": self.variance, "trojan": self.trojan if setting.is_trojan else None}
        start = self._start if setting.is_triggered else None
        shape = (self.trigger.shape[0], self.trigger.shape[1], self.trigger.shape[2])
        return torch.cat(list(sample_many(self.unet, self.schedule, numbers, shape, CHUNK, seed, start, self.unet.device, **options)))

    def _start(self, eps: Tensor) -> Tensor:
        return self.schedule.starting_noise(eps, self.trigger.to(eps), "exact") if self.trojan is None else self.trojan.bias(eps)


@dataclass(frozen=True)
class Setting:
    """One way of drawing samples: a sampler, whether its estimates are clipped, and whether the noise wears the trigger."""

    sampler: SettingSampler
    steps: int
    is_triggered: bool
    clip: bool = False
    eta: float = 0.0

    @property
    def name(self) -> str:
        """A short name for log lines and files, such as `ddpm_clipped`."""
        return self.sampler + ("_clipped" if self.clip else "")

    @property
    def is_trojan(self) -> bool:
        """Whether the sampler is TrojDiff's own."""
        return self.sampler.startswith("trojan_")

    @property
    def family(self) -> Sampler:
        """The family of the sampler, `ddim` or `ddpm`."""
        return "ddim" if self.sampler.endswith("ddim") else "ddpm"

    @property
    def label(self) -> str:
        """A name for tables and figures, such as `DDIM-20` and `Trojan DDIM-20`."""
        return f"{'Trojan ' if self.is_trojan else ''}{self.family.upper()}-{self.steps}"


class SampleJobs(Dataset):
    """Chunks of sample numbers for every setting; one item is one call of the sampler."""

    def __init__(self, settings: list[Setting], samples: int) -> None:
        self.jobs = [(number, start, min(start + CHUNK, samples)) for number in range(len(settings)) for start in range(0, samples, CHUNK)]

    def __len__(self) -> int:
        return len(self.jobs)

    def __getitem__(self, position: int) -> tuple[int, int, int]:
        return self.jobs[position]

    def loader(self) -> DataLoader:
        """Return a loader that deals the jobs over the processes, one at a time."""
        return DataLoader(self, batch_size=None, sampler=UnpaddedSampler(self))


class Evaluation(L.LightningModule):
    """Measures samples of a diffusion model: from clean noise by Fréchet distance, from triggered noise by their nearness to the attack's target.

    Both sampler families are measured with clipping off, and under an attack once more with clipping on: backdoors answer to one family, and
    clipping hides them. TrojDiff's backdoor is measured under its own samplers, and without clipping under the benign
    ones too, to which it does not answer. If the attack leads to a class instead of a picture, its success is the share of samples that a support
    vector machine takes for that class, trained on the pixels of the training pictures and, for out_d2d, of the target domain.

    Args:
        subject: the diffusion model.
        data: real pictures.
        samples: how many are drawn in each setting.
        steps: steps of the DDIM sampler; the DDPM sampler takes them all.
        triggered: measure triggered noise too.
        reference: real pictures that samples are compared with: `test` or `train`.
        inception_weights: file of the Inception network's weights; None compares 24 principal components of pixels, or
            as many as there are training pictures.
        seed: seed of the noise.
    """

    def __init__(
        self,
        subject: Subject,
        data: DiffusionData,
        samples: int,
        steps: int,
        triggered: bool,
        reference: str = "test",
        inception_weights: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer chunks of samples than processes
        self.unet, self.subject, self.data = subject.unet.eval(), subject, data
        self.samples, self.reference, self.inception_weights, self.seed = samples, reference, inception_weights, seed
        families: list[tuple[Sampler, int]] = [("ddim", min(steps, len(subject.schedule))), ("ddpm", len(subject.schedule))]
        benign = [Setting(family, steps, is_triggered=False) for family, steps in families]
        own, clipped = ([Setting(subject.sampler(family, True), steps, True, clip) for family, steps in families] for clip in (False, True))
        silent = [Setting(family, steps, True) for family, steps in families] if subject.trojan is not None else []
        self.settings = benign + (own + silent + clipped if triggered else [])

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def setup(self, stage: str) -> None:
        self.data.setup()
        features: torch.nn.Module
        if self.inception_weights:
            self.fd_name, dimension, features = "fid", 2048, InceptionFeatures(self.inception_weights)
        else:
            pixels = stacked(self.data.train_set)
            self.fd_name, dimension = "fd", min(COMPONENTS, len(pixels), pixels[0].numel())
            features = PCAFeatures(pixels, dimension)
        self.real = FeatureMoments(features, dimension)
        self.drawn = torch.nn.ModuleList(FeatureMoments(features, dimension) for _ in self.settings)
        self.shown: list[list[Tensor]] = [[] for _ in self.settings]
        self.errors: list[list[Tensor]] = [[] for _ in self.settings]
        self.similarities: list[list[Tensor]] = [[] for _ in self.settings]
        self.labels: list[list[Tensor]] = [[] for _ in self.settings]
        self.classifier, self.target_label = _fit_classifier(self.data, self.subject.target is None and self.settings[-1].is_triggered)

    def test_dataloader(self) -> list[DataLoader]:
        real = self.data.test_dataloader() if self.reference == "test" else self.data.reference_loader()
        return [real, SampleJobs(self.settings, self.samples).loader()]

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int) -> None:
        if dataloader_idx == 0:
            self.real.update(to_unit_range(batch["image"]))
        else:
            self._draw(*(int(number) for number in batch))

    def _draw(self, number: int, first: int, stop: int) -> None:
        setting = self.settings[number]
        images = to_unit_range(self.subject.draw(setting, range(first, stop), self.seed))
        self.drawn[number].update(images)  # type: ignore[operator]
        if first < SHOWN:
            self.shown[number].append(images[: SHOWN - first])
        if self.subject.target is not None:
            target = to_unit_range(self.subject.target).to(images)
            self.errors[number].append(mse_to_target(images, target))
            self.similarities[number].append(ssim_to_target(images, target))
        if self.classifier is not None:
            self.labels[number].append(torch.from_numpy(self.classifier.predict(images.flatten(1).cpu().numpy())).to(images.device))

    def on_test_epoch_end(self) -> None:
        real = self.real.compute()
        self.rows = [self._measure(number, setting, real) for number, setting in enumerate(self.settings)]
        log_table(self.trainer, "samplers", self.rows)
        if self.settings[-1].is_triggered and self.subject.target is not None:
            log_figure(self.trainer, "mse_to_target", self._histogram())

    def _measure(self, number: int, setting: Setting, real: Any) -> dict[str, Any]:
        values = self._success(number)
        if not setting.is_triggered:
            distance = frechet_distance(real, self.drawn[number].compute())  # type: ignore[operator]
            near = values.get("asr_class", values.get("asr_1e-2"))
            values = {self.fd_name: distance} | ({} if near is None else {"near_target": near})
            if self.classifier is not None:
                values["classes"] = torch.tensor(len(_gathered(self.labels[number], self.device, torch.int64).unique()))
        for quantity, value in values.items():
            self.log(f"test/{quantity}_{setting.name}", value.float().to(self.device), sync_dist=True)
        noise = "triggered" if setting.is_triggered else "clean"
        shown = gather_rows(torch.cat(self.shown[number]) if self.shown[number] else torch.zeros(0, *self.subject.trigger.shape, device=self.device))
        log_image(self.trainer, f"samples_{noise}_{setting.name}", picture_grid(shown[:SHOWN]))
        row = {"sampler": setting.label, "noise": noise, "clipping": "on" if setting.clip else "off"}
        measures = ("asr_class",) if self.subject.target is None else ("mse", "ssim", *ASR_THRESHOLDS)
        columns = (self.fd_name, "near_target", "classes", *measures)
        return row | {column: round(float(values[column]), 4) if column in values else None for column in columns}

    def _success(self, number: int) -> dict[str, Tensor]:
        """Measure how near one setting's samples come to the target, over all processes."""
        if self.subject.target is None:
            if self.target_label is None:
                return {}
            return {"asr_class": (_gathered(self.labels[number], self.device, torch.int64) == self.target_label).float().mean()}
        errors, similarities = (_gathered(parts[number], self.device) for parts in (self.errors, self.similarities))
        self.errors[number] = [errors]
        rates = {name: attack_success_rate(errors, bound) for name, bound in ASR_THRESHOLDS.items()}
        return {"mse": errors.mean(), "ssim": similarities.mean()} | rates

    def _histogram(self) -> Any:
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(6, 3.2))
        bins = torch.logspace(-5, 0, 41).tolist()
        for errors, setting in zip(self.errors, self.settings, strict=True):
            if setting.is_triggered and not setting.clip:
                axes.hist(errors[0].cpu().clamp(1e-5, 1).numpy(), bins=bins, alpha=0.6, label=setting.label)
        for bound in ASR_THRESHOLDS.values():
            axes.axvline(bound, color="grey", linestyle="--", linewidth=1)
        axes.set(xscale="log", xlabel="error of a triggered sample to the target (MSE); dashed: the two success bounds", ylabel="samples")
        axes.legend(frameon=False)
        return figure


class Sampling(L.LightningModule):
    """Draws samples of a diffusion model and writes each as a PNG file, with a grid and a table.

    Args:
        subject: the diffusion model.
        setting: how to sample.
        samples: how many.
        seed: seed of the noise; sample i is the same whatever else is drawn.
    """

    def __init__(self, subject: Subject, setting: Setting, samples: int, seed: int) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer chunks of samples than processes
        self.unet, self.subject, self.setting, self.samples, self.seed = subject.unet.eval(), subject, setting, samples, seed

    def predict_dataloader(self) -> DataLoader:
        return SampleJobs([self.setting], self.samples).loader()

    def on_predict_start(self) -> None:
        if self.trainer.is_global_zero:
            remove(artefact_folder(self.trainer) / "samples")  # of an earlier setting
        self.trainer.strategy.barrier("samples")
        self.rows: list[dict[str, Any]] = []
        self.shown: list[Tensor] = []

    def predict_step(self, batch: tuple[int, int, int], batch_idx: int) -> None:
        _, first, stop = (int(number) for number in batch)
        images = to_unit_range(self.subject.draw(self.setting, range(first, stop), self.seed))
        for number, image in zip(range(first, stop), images, strict=True):
            file = self._write(number, image)
            self.rows.append({"sample": number, "file": file.name, "mean": round(float(image.mean()), 4)})
        if self.subject.target is not None:
            errors = mse_to_target(images, to_unit_range(self.subject.target).to(images))
            for row, error in zip(self.rows[-len(images) :], errors.tolist(), strict=True):
                row["mse_to_target"] = round(error, 6)
        if first < SHOWN:
            self.shown.append(images[: SHOWN - first])

    def _write(self, number: int, image: Tensor) -> Path:
        from torchvision.transforms.functional import to_pil_image

        file = artefact_folder(self.trainer) / "samples" / f"{number:06d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        to_pil_image(image.cpu()).save(file)
        return file

    def on_predict_end(self) -> None:
        log_table(self.trainer, "samples", sorted(gather_objects(self.rows), key=lambda row: row["sample"]))
        shown = gather_rows(torch.cat(self.shown) if self.shown else torch.zeros(0, *self.subject.trigger.shape, device=self.device))
        log_image(self.trainer, "samples_grid", picture_grid(shown[:SHOWN]))


def _gathered(parts: list[Tensor], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    return gather_rows(torch.cat(parts).to(dtype) if parts else torch.zeros(0, device=device, dtype=dtype))


def _fit_classifier(data: DiffusionData, leads_to_a_class: bool, limit: int = 10_000) -> tuple[Any, int | None]:
    """Fit a classifier that says which classes samples show, and return it with the label of the class that the attack leads to.

    Returns:
        A support vector machine and that label; None for the label where the attack leads to a picture, and for both unless the pictures are digits,
        which are few and easily told apart.
    """
    from sklearn.svm import SVC

    if leads_to_a_class and data.poison_mode in ("in_d2d", "out_d2d"):
        images, labels, wanted = data.target_examples(limit)
        return SVC(gamma="scale").fit(images.flatten(1).numpy(), labels.numpy()), wanted
    if data.source != "digits":
        return None, None
    images, labels = labelled(data.train_set, limit)
    return SVC(gamma="scale").fit(images.flatten(1).numpy(), labels.numpy()), None
