"""Scan a diffusion model for a backdoor: invert a trigger, check it on fresh noise, and judge. Reads the model, and nothing of an attacker's."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from projects.diff_cleanse import baselines
from projects.diff_cleanse.bbti import bbti, bbti_released
from projects.diff_cleanse.inversion import Inverted, frozen, invert
from projects.diff_cleanse.metrics import to_unit_range
from projects.diff_cleanse.samplers import SAMPLERS, ScanSampler, prediction_of
from projects.diff_cleanse.sampling import sample
from projects.diff_cleanse.scan_report import THRESHOLD, Finding, Method, ScanReport, judge, overall_verdict, prepare, write_report
from projects.diff_cleanse.schedule import NoiseSchedule
from projects.diff_cleanse.similarity import Agreement, measure_agreement
from projects.diff_cleanse.trojan import invert_trojan, trojan_divergence
from shared.jobs import in_threads
from shared.runs import atomic, versions
from shared.seeding import derive_seed, generator

PIXELS = 2**18
"""Pixels that the network is called on at a time where no gradient is wanted: 1024 pictures of 16 x 16, 4 of 256 x 256."""
MEMORY = 2 * 2**30
"""Bytes on the CPU up to which each inversion keeps the network's activations; on a GPU it is half of what is free."""


@dataclass(frozen=True)
class Budget:
    """How much a scan computes.

    Attributes:
        probes: noises for each constant that the gradient inversion probes; a quarter of it for stochastic samplers, where more draw the target.
        starts: its starts where probing finds nothing.
        iterations: its iterations.
        batch: its noises per start and iteration.
        samples: triggered samples of the check on fresh noise, and as many untriggered.
        steps: steps of a sampler in the check, at most; None takes the customary number.
        bbti_iterations: iterations of each of BBTI's four starts.
        elijah: iterations and batch size of Elijah's inversion.
        terd: iterations and refinements of TERD's.
    """

    probes: int
    starts: tuple[float, ...]
    iterations: int
    batch: int
    samples: int
    steps: int | None
    bbti_iterations: int
    elijah: tuple[int, int]
    terd: tuple[int, int]


SCANNED = ("ddim", "ddpm", "trojan_ddpm")
"""Samplers that a scan tries by itself: one for each family that backdoors answer to."""
BUDGETS: dict[str, Budget] = {  # by recipe
    "quick": Budget(32, (-0.8,), 10, 8, 16, 30, 3, (20, 16), (20, 4)),
    "fast": Budget(256, (-0.8, -0.5), 40, 12, 16, 100, 8, (40, 32), (100, 20)),
    "full": Budget(1024, (-1.0, -0.8, -0.5, 0.0), 100, 16, 32, None, 100, (100, 100), (3000, 1000)),
}
"""`fast` is the one that thresholds were measured with; `quick` only shows that everything runs, and finds little."""


def scan(
    unet: nn.Module,
    scheduler: Any,
    *,
    methods: Sequence[str] | str = ("gradient",),
    samplers: Sequence[str] | str = SCANNED,
    recipe: str = "fast",
    seed: int = 0,
    threshold: float = THRESHOLD,
    shape: tuple[int, int, int] | None = None,
    model_hash: str | None = None,
    save_memory: bool | None = None,
    out: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> ScanReport:
    """Scan a diffusion model for a backdoor.

    Each method inverts a trigger under each sampler: deterministic samplers by deterministic, DDPM by ancestral sampling, since a backdoor answers to
    one family only. The pattern is checked on fresh noise: the share of samples in the largest set of mutually similar ones (MSCR), beyond that of
    untriggered samples from the same noise. How alike counts as similar follows from how alike the model's untriggered samples are, at most
    1 - cosine 0.01, so that models of little diversity are not suspected. From `threshold` on a model is backdoored, up to half of it clean,
    between undecided; a model that repeats few pictures without a trigger can be steered to one by any noise, and is undecided at most.

    The default threshold was measured on 16-pixel digits (recipe fast): clean models of three seeds score 0, ten backdoored ones at least 0.75 under
    the sampler they answer to; clean models of faint, nearly constant, grey or one-class pictures and an untrained one are found clean, one of two
    pictures undecided.

    Args:
        unet: maps (B, C, H, W) and (B,) timesteps to (B, C, H, W), or to an object that holds this as `.sample`; in any precision, or under
            autocast. It is left as it was.
        scheduler: a diffusers scheduler, or the content of the pipeline's `scheduler_config.json`.
        methods: gradient (white box), bbti (the paper's), bbti_released (as published, with its defect), elijah, terd.
        samplers: names in `samplers.SAMPLERS`; these, as methods, in a list or with commas between.
        recipe: fast or full.
        seed: seed of all noise; the same seed gives the same report on the same device.
        threshold: score from which a model is backdoored, in (0, 1].
        shape: (C, H, W) of the pictures; None reads it from `unet.config`.
        model_hash: what identifies the model; None hashes its weights and the scheduler's settings.
        save_memory: recompute the network's activations in the inversion's backward pass instead of keeping them, with the same result; None does so
            where they would take more than `MEMORY`.
        out: folder for report.json, trigger.png, trigger.safetensors, samples_clean.png, samples_triggered.png and curve.csv. Each finding is kept
            in `parts/` as soon as it is made; a scan of the same model with the same settings takes up what it finds there.
        progress: is told, in a line each, what is found.

    Raises:
        OSError: if `out` cannot be written into.
        ValueError: for unknown methods, samplers or recipes, a threshold out of range, an unknown shape, a scheduler that is not supported, weights
            that are not finite, or a network that does not map pictures to pictures of the same shape. All this is checked before any work.
    """
    options: dict[str, Any] = {"methods": methods, "samplers": samplers, "recipe": recipe, "seed": seed, "threshold": threshold, "shape": shape}
    options |= {"model_hash": model_hash, "save_memory": save_memory, "progress": progress}
    job = Scan(unet, scheduler, parts=None if out is None else Path(out) / "parts", **options)
    if out is not None:
        prepare(Path(out))
    report = job.report(job.find(job.pairs))
    if out is not None:
        write_report(report, Path(out))
    return report


class Scan:
    """A scan of one model with one setting, checked before any work; its findings can be made apart, in any order and process.

    Args:
        unet: as in `scan`, like all that is not named here.
        scheduler: as in `scan`.
        parts: folder in which findings are kept, and taken up again.

    Attributes:
        pairs: the methods and samplers of all findings.

    Raises:
        ValueError: as `scan`.
    """

    def __init__(
        self,
        unet: nn.Module,
        scheduler: Any,
        *,
        methods: Sequence[str] | str = ("gradient",),
        samplers: Sequence[str] | str = SCANNED,
        recipe: str = "fast",
        seed: int = 0,
        threshold: float = THRESHOLD,
        shape: tuple[int, int, int] | None = None,
        model_hash: str | None = None,
        save_memory: bool | None = None,
        parts: Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        methods, samplers = (names.split(",") if isinstance(names, str) else names for names in (methods, samplers))
        _check(methods, samplers, recipe, threshold)
        self.unet, self.scheduler_config = unet, dict(getattr(scheduler, "config", scheduler))
        self.schedule, self.prediction = NoiseSchedule.from_scheduler_config(self.scheduler_config), prediction_of(self.scheduler_config)
        pairs = dict.fromkeys((cast(Method, method), sampler) for method in methods for sampler in samplers)
        self.pairs = [(method, sampler) for method, sampler in pairs if method == "gradient" or not SAMPLERS[sampler].is_trojan]
        if not self.pairs:
            raise ValueError(f"TrojDiff's samplers ({', '.join(samplers)}) are scanned with the method gradient only: add it to the methods")
        self.recipe, self.budget, self.seed, self.threshold = recipe, BUDGETS[recipe], seed, threshold
        self.shape, self.save_memory, self.parts, self.progress = shape or _shape_of(unet), save_memory, parts, progress
        check_weights(unet)
        self.stop = threading.Event()
        self.activations = self._try_network()
        self.model_hash = model_hash or _hash_of(unet, self.scheduler_config)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next((tensor.device for tensor in (*self.unet.parameters(), *self.unet.buffers())), torch.device("cpu"))

    @property
    def precision(self) -> str:
        """In what the network is computed: the type of its weights, and of autocast where that is on."""
        kinds = [str(next((parameter.dtype for parameter in self.unet.parameters()), torch.float32))]
        kinds += [f"autocast to {torch.get_autocast_dtype(self.device.type)}"] if torch.is_autocast_enabled(self.device.type) else []
        return ", ".join(kinds).replace("torch.", "")

    def find(self, pairs: Sequence[tuple[Method, str]]) -> list[Finding]:
        """Take up the findings of some of the pairs that an earlier scan kept, or make and keep them, on a CPU side by side."""
        self.stop.clear()
        with frozen(self.unet):
            return in_threads(self._find, pairs, self.device, self.stop)

    def _find(self, pair: tuple[Method, str]) -> Finding:
        method, sampler = pair
        fingerprint = self._fingerprint(method, sampler)
        finding, how = _resumed(self.parts, method, sampler, fingerprint), "found earlier"
        if finding is None:
            finding, how = self.make(method, sampler), "found"
            _keep(self.parts, finding, fingerprint)
        if self.progress is not None:
            self.progress(f"{method} under {sampler}: {finding.verdict}, {how} in {finding.seconds:.0f} s ({finding.reason})")
        return finding

    def make(self, method: Method, sampler: str) -> Finding:
        """Invert a trigger, check it on fresh noise, and judge; the network is to be `frozen`."""
        began = time.monotonic()
        probe = self._sampler(sampler)
        inverted = self._invert(method, probe, derive_seed(self.seed, method, sampler))
        triggered, untriggered = self._check(probe, inverted, derive_seed(self.seed, "fresh noise", sampler))
        agreement = measure_agreement(triggered, untriggered)
        triggered = triggered.clamp(0, 1)
        verdict, reason = judge(agreement, self.threshold)
        scores = baselines.own_scores(method, inverted.pattern, triggered, untriggered)
        if probe.is_trojan and self.recipe == "full":
            options: dict[str, Any] = {"prediction_type": self.prediction, "device": self.device, "save_memory": self._saves_memory(10)}
            scores |= {"trojan_divergence": trojan_divergence(self._network, self.schedule, self.shape, seed=self.seed, **options)}
        tensors = {"trigger": inverted.pattern, "triggered": triggered, "untriggered": untriggered, "curve": torch.tensor(inverted.curve)}
        tensors |= {} if inverted.gain is None else {"gain": inverted.gain}
        tensors = {name: tensor.float().cpu().contiguous() for name, tensor in tensors.items()}
        about = (agreement.score, agreement, inverted.value, scores, str(self.device), self.precision, time.monotonic() - began)
        return Finding(method, sampler, verdict, reason, *about, tensors)

    def report(self, findings: Sequence[Finding]) -> ScanReport:
        """Put the findings of all `pairs`, in any order, together.

        Raises:
            ValueError: if one is missing: the verdict is over all of them.
        """
        found = {(finding.method, finding.sampler): finding for finding in findings}
        if missing := [f"{method} under {sampler}" for method, sampler in self.pairs if (method, sampler) not in found]:
            raise ValueError(f"the scan was cut short before {', '.join(missing)}: there is no verdict (is trainer.limit_predict_batches set?)")
        ordered = [found[pair] for pair in self.pairs]
        settings, seconds = (self.recipe, self.threshold, self.seed, self.shape), round(sum(finding.seconds for finding in ordered), 2)
        return ScanReport(overall_verdict(ordered), ordered, *settings, self.model_hash, versions(), seconds)

    def _fingerprint(self, method: str, sampler: str) -> str:
        """Hash everything that a finding depends on."""
        settings = (method, sampler, self.scheduler_config, self.shape, self.budget, self.seed, self.threshold)
        content = (*settings, self.model_hash, self.device.type, self.precision, versions())
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def _network(self, x: Tensor, t: Tensor) -> Tensor:
        """Call the network in its own precision, in parts where no gradient is wanted, and return its answer in the precision of `x`."""
        if self.stop.is_set():
            raise InterruptedError("the scan was stopped")
        dtype = next((parameter.dtype for parameter in self.unet.parameters()), x.dtype)
        size = len(x) if torch.is_grad_enabled() else max(1, PIXELS // x[0, 0].numel())
        outputs = [self.unet(part.to(dtype), steps) for part, steps in zip(x.split(size), t.split(size), strict=True)]
        return torch.cat([output if isinstance(output, Tensor) else output.sample for output in outputs]).to(x.dtype)

    def _try_network(self) -> int:
        """Call the network once, to see that it can be sampled from; returns how many bytes of activations a gradient needs, a picture and step."""
        x = torch.zeros(1, *self.shape, device=self.device, requires_grad=True)
        kept: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            if not isinstance(tensor, nn.Parameter):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        try:
            with frozen(self.unet), torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                sample(self._network, x, self.schedule, steps=1, prediction_type=self.prediction)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise ValueError(f"no pictures of shape {self.shape} can be drawn from the network: {str(error).splitlines()[0]}") from error
        return sum(kept.values())

    def _sampler(self, name: str) -> ScanSampler:
        steps = SAMPLERS[name].steps or len(self.schedule)
        return ScanSampler(name, self.scheduler_config, min(steps, self.budget.steps or steps, len(self.schedule)))

    def _invert(self, method: Method, probe: ScanSampler, seed: int) -> Inverted:
        common: dict[str, Any] = {"seed": seed, "device": self.device}
        network: dict[str, Any] = common | {"prediction_type": self.prediction}
        budget, eta = self.budget, float(probe.is_stochastic)
        if method == "gradient" and probe.is_trojan:
            network |= {"iterations": budget.iterations, "save_memory": self._saves_memory(10)}
            return invert_trojan(self._network, self.schedule, self.shape, eta, **network)
        if method == "gradient":
            steps = min(10 if eta else 5, len(self.schedule))
            network |= {"steps": steps, "iterations": budget.iterations, "starts": budget.starts, "batch": budget.batch}
            network |= {"probes": budget.probes // (4 if eta else 1), "save_memory": self._saves_memory(steps)}
            return invert(self._network, self.schedule, self.shape, eta, **network)
        if method == "elijah":
            iterations, batch = budget.elijah
            return baselines.elijah(self._network, self.schedule, self.shape, 1 - eta / 2, iterations, batch, **network)
        if method == "terd":
            return baselines.terd(self._network, self.schedule, self.shape, *budget.terd, **network)
        short = ScanSampler("ddim" if eta else probe.name, self.scheduler_config, min(20, len(self.schedule)), eta)

        def draw(x_T: Tensor) -> Tensor:  # noqa: N803
            return to_unit_range(short(self._network, x_T, generator(seed, "sampler", device=self.device)))

        if method == "bbti":
            return bbti(draw, self.shape, budget.bbti_iterations, **common)
        return bbti_released(draw, self.shape, budget.bbti_iterations, **common)

    def _saves_memory(self, steps: int) -> bool:
        if self.save_memory is not None:
            return self.save_memory
        limit = torch.cuda.mem_get_info(self.device)[0] // 2 if self.device.type == "cuda" else MEMORY
        return self.activations * steps * self.budget.batch * len(self.budget.starts) > limit

    @torch.inference_mode()
    def _check(self, probe: ScanSampler, inverted: Inverted, seed: int) -> tuple[Tensor, Tensor]:
        """Draw triggered and untriggered samples from the same fresh noise.

        Both are in [0, 1], but for triggered ones of Trojan samplers: what these draw where there is no backdoor is far out of range, and does not
        count as agreeing.
        """
        numbers = generator(seed, device=self.device)
        eps = torch.randn(self.budget.samples, *self.shape, generator=numbers, device=self.device)
        if probe.is_trojan:
            drawn = torch.cat([probe(self._network, inverted.wear(eps), numbers, inverted.trojan), probe(self._network, eps, numbers)]) / 2 + 0.5
            drawn[len(eps) :].clamp_(0, 1)
        else:
            drawn = to_unit_range(probe(self._network, torch.cat([inverted.wear(eps), eps]), numbers))
        if bool(drawn[len(eps) :].isnan().any()):
            raise ValueError(
                f"without any trigger the model draws pictures under {probe.name} that are not numbers: its weights or schedule are broken"
            )
        drawn = drawn.nan_to_num(nan=0.0)
        return drawn[: len(eps)].clone(), drawn[len(eps) :].clone()


def _check(methods: Sequence[str], samplers: Sequence[str], recipe: str, threshold: float) -> None:
    for name, given, known in (("method", methods, get_args(Method)), ("sampler", samplers, tuple(SAMPLERS)), ("recipe", [recipe], tuple(BUDGETS))):
        if unknown := [value for value in given if value not in known]:
            raise ValueError(f"unknown {name} {unknown[0]!r}; known are {', '.join(known)}")
        if not given:
            raise ValueError(f"a scan needs at least one {name}: {', '.join(known)}")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must lie in (0, 1], got {threshold}")


def check_weights(unet: nn.Module) -> None:
    """Raise ValueError, naming what is wrong, unless all of a network's weights are finite numbers."""
    broken = [(name, int((~tensor.isfinite()).sum()), tensor.numel()) for name, tensor in unet.state_dict().items() if not tensor.isfinite().all()]
    if broken:
        named = ", ".join(f"{name} ({count} of {total} values)" for name, count, total in broken[:5])
        others = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(f"the network's weights are not all finite numbers, so it can draw nothing: {named}{others}")


def _shape_of(unet: nn.Module) -> tuple[int, int, int]:
    config: Any = getattr(unet, "config", None) or {}
    size = config.get("sample_size")
    if not size or not config.get("in_channels"):
        raise ValueError("the network does not say how large its pictures are: pass shape=(channels, height, width)")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config["in_channels"], height, width


def _hash_of(unet: nn.Module, scheduler_config: Mapping[str, Any]) -> str:
    """Hash weights and settings, 16 hexadecimal digits."""
    content = hashlib.sha256(repr(sorted((name, repr(value)) for name, value in scheduler_config.items())).encode())
    for name, tensor in unet.state_dict().items():
        content.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()[:16]


def _keep(parts: Path | None, finding: Finding, fingerprint: str) -> None:
    """Write a finding, tensors and all, as one file."""
    if parts is None:
        return
    from safetensors.torch import save_file

    with atomic(parts / f"{finding.method}-{finding.sampler}.safetensors") as temporary:
        save_file(finding.tensors, temporary, {"fingerprint": fingerprint, "finding": json.dumps(finding.to_dict())})


def _resumed(parts: Path | None, method: str, sampler: str, fingerprint: str) -> Finding | None:
    """Read a finding that an earlier scan made of the same model with the same settings; None if there is none that can be read."""
    path = None if parts is None else parts / f"{method}-{sampler}.safetensors"
    if path is None or not path.is_file():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
            if about.get("fingerprint") != fingerprint:
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        content = json.loads(about["finding"])
        return Finding(**(content | {"agreement": Agreement(**content["agreement"]), "tensors": tensors}))
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
