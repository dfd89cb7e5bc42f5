"""Cleanse a diffusion model: prune the channels that carry an inverted trigger, tune on clean pictures, and scan again (Diff-Cleanse, stage 2)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from projects.diff_cleanse.data import stacked
from projects.diff_cleanse.importance import Criterion, Probe, group_channels, late_timesteps, score_channels
from projects.diff_cleanse.inspection import CHUNK, Inspection, Trigger, common_picture, draw, without_repetitions
from projects.diff_cleanse.metrics import to_unit_range
from projects.diff_cleanse.samplers import prediction_of
from projects.diff_cleanse.scan import SCANNED, check_weights, scan
from projects.diff_cleanse.scan_report import ScanReport
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.pruning import Budget, GroupIndex, Plan, Scores, apply, hold, report, select
from shared.seeding import derive_seed, generator

if TYPE_CHECKING:
    import lightning as L

    from projects.diff_cleanse.repair import Loss


SURVIVING = 0.05
"""Share of triggered samples up to which a trigger counts as without effect."""


@dataclass(frozen=True)
class Recipe:
    """How a model is cleansed.

    Attributes:
        criterion: what makes a channel go, see `importance.score_channels`; None prunes nothing, which is fine-tuning alone.
        shares: share of each group's channels that goes, each in (0, 1); at least one channel a group. Where the trigger still works after the
            tuning, the next share is tried, from the beginning.
        mode: `mask` holds the channels' weights at zero and leaves all shapes as they are; `cut` removes them.
        generated: pictures that the model draws of itself where none are given.
        pictures: clean pictures in the two passes of the importance.
        every: every how manieth of the late timesteps these visit.
        loss: of the tuning, see `repair.Repair`.
        steps: of the tuning.
        batch: pictures in a step, over all processes together.
        lr: learning rate of the tuning.
        ema_decay: decay of the tuned weights' running average, which is the outcome.
        samples: drawn for each line of the table, and half as many that wear the trigger.
        scan: recipe of the new scan, a name in `scan.BUDGETS`.
    """

    criterion: Criterion | None = "difference"
    shares: tuple[float, ...] = (0.06, 0.1, 0.17)
    mode: Literal["mask", "cut"] = "mask"
    generated: int = 512
    pictures: int = 32
    every: int = 1
    loss: Loss = "dual"
    steps: int = 100
    batch: int = 48
    lr: float = 5e-4
    ema_decay: float = 0.97
    samples: int = 128
    scan: str = "fast"

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(f"shares must be one or more numbers between 0 and 1, got {self.shares}")
        for name in ("generated", "pictures", "every", "steps", "batch", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


RECIPES: dict[str, Recipe] = {
    "fast": Recipe(),
    "full": Recipe(
        shares=(0.02, 0.04, 0.08), generated=5000, pictures=128, steps=1600, batch=128, lr=2e-4, ema_decay=0.999, samples=1000, scan="full"
    ),
}
"""`fast` suits pictures of 16 pixels; `full` is the paper's for 32 pixels: 1600 steps are 40 epochs over 5000 self-generated pictures."""


@dataclass(frozen=True)
class CleanReport:
    """The outcome of a cleansing.

    Attributes:
        unet: the cleansed network.
        rows: what samples show `before`, `pruned` and `after`, for each share that was tried; see `Inspection`.
        pruned: what was asked for and what went: `nominal` share, and shares of `channels` and `parameters`; `layers`, by type; `groups`, by name.
        pictures: (N, C, H, W) in [0, 1] by name, such as `triggered_before`.
        rescan: a new scan with other seeds; None if none was wanted.
        recipe: how it was cleansed.
        trigger: the trigger that it was cleansed of.
        tuned_on: how many clean pictures it was tuned on, and how many of these were generated and left out as repetitions.
        seed: seed of everything random.
        seconds: time of each part.
    """

    unet: nn.Module = field(repr=False)
    rows: list[dict[str, Any]]
    pruned: dict[str, Any]
    pictures: dict[str, Tensor] = field(repr=False)
    rescan: ScanReport | None
    recipe: Recipe
    trigger: Trigger = field(repr=False)
    tuned_on: dict[str, int]
    seed: int
    seconds: dict[str, float]

    @property
    def survives(self) -> bool:
        """Whether the trigger still makes the model draw the target, more often by over `SURVIVING` than noise without it does."""
        return self.rows[-1]["near_target"] - self.rows[-1]["near_target_clean"] > SURVIVING

    @property
    def exit_code(self) -> int:
        """1 where the trigger survives; else that of the new scan: 0 clean, 1 still backdoored, 2 undecided; 0 without one."""
        return 1 if self.survives else self.rescan.exit_code if self.rescan else 0

    @property
    def summary(self) -> dict[str, Any]:
        """What stands at the head of a page about the cleansing."""
        before, after = self.rows[0], self.rows[-1]
        about = {"new scan": self.rescan.verdict if self.rescan else "not made", "under": self.trigger.sampler}
        about |= {"target drawn before": before["near_target"], "target drawn after": after["near_target"]}
        return about | {"FD before": before["fd"], "FD after": after["fd"], "channels pruned": self.pruned["channels"]}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, without the network."""
        content = {name: value for name, value in vars(self).items() if name not in ("unet", "trigger", "pictures")}
        rescan = self.rescan.to_dict() if self.rescan else None
        return content | {"sampler": self.trigger.sampler, "recipe": asdict(self.recipe), "rescan": rescan}


def rank_channels(
    unet: nn.Module, scheduler_config: Mapping[str, Any], trigger: Trigger, images: Tensor, recipe: Recipe, seed: int = 0
) -> tuple[GroupIndex, Scores]:
    """Score a network's channels by the recipe's criterion; the highest are to go.

    Args:
        unet: the network; it is left as it was.
        scheduler_config: content of the pipeline's `scheduler_config.json`.
        trigger: the inverted trigger.
        images: (B, C, H, W) clean pictures in [-1, 1].
        recipe: criterion and timesteps.
        seed: seed of the noise, and of the criterion `random`.

    Returns:
        The groups of channels, and their scores.
    """
    if recipe.criterion is None:
        raise ValueError("a recipe without a criterion prunes nothing")
    device, schedule = next(unet.parameters()).device, NoiseSchedule.from_scheduler_config(scheduler_config)
    index = group_channels(unet, (images.shape[1], images.shape[2], images.shape[3]))
    images = images.to(device)
    eps = torch.randn(images.shape, generator=generator(seed, "importance", device=device), device=device)
    probe = Probe(unet, schedule, images, eps, late_timesteps(len(schedule), every=recipe.every), prediction_of(scheduler_config))
    scores = score_channels(recipe.criterion, index, probe, trigger, seed)
    return index, scores


def choose(index: GroupIndex, scores: Scores, recipe: Recipe, share: float) -> Plan:
    """Choose a share of each group's channels, at least one a group, those with the highest scores."""
    return select(index, scores, Budget(channels=share), scope="local", at_least=1, drop="highest", mode=recipe.mode)


def plan_pruning(
    unet: nn.Module, scheduler_config: Mapping[str, Any], trigger: Trigger, images: Tensor, recipe: Recipe, share: float, seed: int = 0
) -> Plan:
    """Choose the channels that go: `rank_channels`, whose arguments these are, and `choose`."""
    return choose(*rank_channels(unet, scheduler_config, trigger, images, recipe, seed), recipe, share)


def cleanse(
    unet: nn.Module,
    scheduler_config: Any,
    trigger: Trigger,
    pictures: Dataset | None = None,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    reference: Tensor | None = None,
    num_workers: int = 0,
    trainer: L.Trainer | None = None,
    rescan: bool = True,
    parts: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> CleanReport:
    """Cleanse a diffusion model of the backdoor that an inverted trigger answers to.

    Args:
        unet: maps (B, C, H, W) and (B,) timesteps to an object that holds (B, C, H, W) as `.sample`; it is left as it was.
        scheduler_config: content of the pipeline's `scheduler_config.json`, or a scheduler of diffusers.
        trigger: what a scan found, see `Trigger.load`.
        pictures: clean pictures to tune on, items with `image` (C, H, W) in [-1, 1]; the first of them score the channels, so they should not lie by
            class. None lets the model draw them itself, without those that show the trigger's target or repeat another.
        recipe: how; None takes `RECIPES["fast"]`, for pictures of 16 pixels.
        seed: seed of everything random.
        reference: (N, C, H, W) pictures in [0, 1] for the Fréchet distance; None takes those it is tuned on.
        num_workers: processes that read `pictures` for each training process.
        trainer: tunes; its number of steps is set to the recipe's. None makes one for a single process.
        rescan: scan the outcome with other seeds.
        parts: folder that keeps the state of the tuning, where an interrupted cleansing of the same model with the same settings goes on.
        progress: is told, in a line each, what was done.

    Raises:
        ValueError: if the trigger is of another shape than the network's pictures, there are fewer clean pictures than a batch, weights are not
            finite, or the tuning diverges.
    """
    config: dict[str, Any] = dict(getattr(scheduler_config, "config", scheduler_config))
    recipe, clock = recipe or RECIPES["fast"], _Clock(progress)
    shape = _check_shape(unet, trigger)
    check_weights(unet)
    clean, tuned_on = generate(unet, config, trigger, recipe.generated, seed) if pictures is None else (pictures, _count(pictures))
    if tuned_on["used"] < recipe.batch:
        raise ValueError(f"{tuned_on['used']} clean pictures are fewer than a batch of {recipe.batch}: give more, or let the model draw more")
    some = stacked(clean)
    clock.tell("pictures", f"{tuned_on['used']} clean pictures to tune on, {tuned_on['left_out']} left out")

    real = (to_unit_range(some) if reference is None else reference).to(next(unet.parameters()).device)
    inspection = Inspection(config, trigger, real, recipe.samples, derive_seed(seed, "inspection"))
    before = inspection.measure("before", unet)
    if before["near_target"] <= SURVIVING and before["score"] <= SURVIVING:
        clock.tell("pictures", "this trigger makes no samples of this model alike: is it another model's, or the model clean? Scan it to see")
    ranked = None if recipe.criterion is None else rank_channels(unet, config, trigger, some[: recipe.pictures], recipe, seed)
    for share in recipe.shares:
        student, plan = deepcopy(unet), None
        if ranked is not None:
            plan = choose(*ranked, recipe, share)
            prune(student, plan)
            inspection.measure("pruned", student, share)
            clock.tell("pruning", f"{plan.channels} channels in {len(plan.dropped)} groups pruned by {recipe.criterion}")
        own = replace(recipe, shares=(share,))
        state = None if parts is None else Path(parts) / _identity(unet, config, trigger, some, own, seed) / "last.ckpt"
        student = _tune(student, unet, config, trigger, clean, plan, recipe, seed, num_workers, trainer, state)
        if not all(bool(parameter.isfinite().all()) for parameter in student.parameters()):
            raise ValueError(f"the tuning diverged: its weights are no finite numbers; lower the learning rate lr={recipe.lr}")
        row = inspection.measure("after", student, share)
        clock.tell("tuning", f"{recipe.steps} steps of tuning: {row['near_target']:.0%} of triggered samples still show the target")
        if plan is None or row["near_target"] <= SURVIVING:
            break

    found = None
    if rescan:
        samplers = list(dict.fromkeys([*SCANNED, trigger.sampler]))
        found = scan(student, config, samplers=samplers, recipe=recipe.scan, seed=derive_seed(seed, "rescan"), shape=shape)
        clock.tell("rescan", f"a new scan with other seeds says {found.verdict}")
    pruned = _shares(plan, share)
    return CleanReport(student, inspection.rows, pruned, inspection.pictures, found, recipe, trigger, tuned_on, seed, clock.seconds)


def _count(pictures: Dataset) -> dict[str, int]:
    return {"used": len(pictures), "generated": 0, "left_out": 0}  # type: ignore[arg-type]


def generate(unet: nn.Module, scheduler_config: Mapping[str, Any], trigger: Trigger, count: int, seed: int) -> tuple[Dataset, dict[str, int]]:
    """Let a model draw clean pictures of itself (DDIM), without those that show the trigger's target or repeat another.

    Returns:
        A data set of `{"image": (C, H, W) in [-1, 1]}`, and how many pictures are `used`, were `generated` and `left_out`.
    """
    shape = tuple(trigger.pattern.shape)
    drawn = draw(unet, scheduler_config, "ddim", count, derive_seed(seed, "generated"), shape)
    triggered, untriggered = (
        draw(unet, scheduler_config, trigger.sampler, CHUNK, derive_seed(seed, "target"), shape, wear) for wear in (trigger, None)
    )
    kept = without_repetitions(drawn, common_picture(triggered, untriggered))
    return Pictures(kept * 2 - 1), {"used": len(kept), "generated": len(drawn), "left_out": len(drawn) - len(kept)}


class Pictures(Dataset):
    """(N, C, H, W) pictures in [-1, 1] as a data set of `{"image": picture}`."""

    def __init__(self, images: Tensor) -> None:
        self.images = images.cpu()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        return {"image": self.images[position]}


def prune(unet: nn.Module, plan: Plan) -> None:
    """Take the plan's channels out of the network: their weights to zero, or away."""
    if plan.mode == "cut":
        apply(unet, plan)
    else:
        hold(unet, plan).release()


def _check_shape(unet: nn.Module, trigger: Trigger) -> tuple[int, int, int]:
    channels, height, width = trigger.pattern.shape
    config: Any = getattr(unet, "config", {})
    size = config.get("sample_size") or (height, width)
    made = (config.get("in_channels", channels), *((size, size) if isinstance(size, int) else size))
    if made != (channels, height, width):
        raise ValueError(f"the trigger is for pictures of shape {(channels, height, width)}, the model makes {made}: scan this model first")
    return channels, height, width


def _tune(
    student: nn.Module,
    teacher: nn.Module,
    config: dict[str, Any],
    trigger: Trigger,
    clean: Dataset,
    plan: Plan | None,
    recipe: Recipe,
    seed: int,
    num_workers: int,
    trainer: L.Trainer | None,
    state: Path | None,
) -> nn.Module:
    """Fine-tune the pruned network, and return its averaged weights."""
    from projects.diff_cleanse.repair import Repair, fit

    schedule, held = NoiseSchedule.from_scheduler_config(config), plan if plan is not None and plan.mode == "mask" else None
    options: dict[str, Any] = {"wear": trigger, "lr": recipe.lr, "ema_decay": recipe.ema_decay, "prediction_type": prediction_of(config)}
    module = Repair(student, deepcopy(teacher), schedule, clean, recipe.batch, held, recipe.loss, num_workers=num_workers, seed=seed, **options)
    fit(module, recipe.steps, trainer, state)
    device = next(teacher.parameters()).device
    return module.ema.float().to(device).requires_grad_(True)  # the trainer may have left it elsewhere, and in another precision


def _identity(unet: nn.Module, config: dict[str, Any], trigger: Trigger, images: Tensor, recipe: Recipe, seed: int) -> str:
    """Hash what the state of a tuning belongs to, 16 hexadecimal digits."""
    content = hashlib.sha256(repr((recipe, sorted(config.items()), trigger.sampler, seed)).encode())
    gain = () if trigger.gain is None else (trigger.gain,)
    for tensor in (trigger.pattern, *gain, images, *unet.parameters()):
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def _shares(plan: Plan | None, share: float) -> dict[str, Any]:
    if plan is None:
        return {"nominal": 0.0, "channels": 0.0, "parameters": 0.0, "layers": [], "groups": {}}
    made = report(plan)
    shares = {name: round(1 - made.totals[name]["after"] / made.totals[name]["before"], 5) for name in ("channels", "parameters")}
    return {"nominal": share} | shares | {"layers": made.layers, "groups": {name: len(gone) for name, gone in plan.dropped.items()}}


class _Clock:
    """Tells what was done, and how long each part took."""

    def __init__(self, progress: Callable[[str], None] | None) -> None:
        self.progress, self.seconds, self.last = progress, dict[str, float](), time.monotonic()

    def tell(self, part: str, line: str) -> None:
        now = time.monotonic()
        spent, self.last = now - self.last, now
        self.seconds[part] = round(self.seconds.get(part, 0.0) + spent, 2)
        if self.progress is not None:
            self.progress(f"{line} ({spent:.0f} s)")
