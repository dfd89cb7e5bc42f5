"""Each project's own command for a few steps, on a CPU and on a GPU: the same losses, steps a second, and peak memory."""

import importlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from watch import SEEN

STEPS = ("--trainer.max_steps", "{steps}", "--trainer.log_every_n_steps", "1")
BRIEF = ("--trainer.limit_val_batches", "2", "--trainer.limit_test_batches", "2")


@dataclass(frozen=True)
class Fit:
    """A project's command.

    Attributes:
        options: beside those of all.
        is_noisy: whether noise is drawn on the device, where the same seed gives other numbers than on a CPU.
        has_bf16: whether it is trained in bfloat16 too.
        further: verbs with options that follow in the same run.
    """

    options: tuple[str, ...] = (*STEPS, *BRIEF)
    is_noisy: bool = False
    has_bf16: bool = False
    further: tuple[tuple[str, ...], ...] = ()


FITS = {
    "cafe": Fit(further=(("attack", "--data.count", "40", "--data.batch_size", "10", "--steps", "30"),)),
    "comad": Fit(("--data.length", "12", "--data.val_length", "8", "--data.test_length", "4")),
    "diff_cleanse": Fit((*STEPS, "--model.eval_samples", "64"), is_noisy=True, has_bf16=True),
    "drs": Fit(is_noisy=True, has_bf16=True, further=(("certify", "--draws", "1000", "--data.limit", "8"),)),
    "dvae": Fit(is_noisy=True, has_bf16=True),
    "forgery_nas": Fit((*STEPS, *BRIEF, "--data.length", "160"), has_bf16=True),
    "hodinet": Fit((*STEPS, *BRIEF, "--data.length", "64"), has_bf16=True),
    "moe_ffd": Fit((*STEPS, *BRIEF, "--data.length", "160"), has_bf16=True),
    "rco": Fit(("--trainer.max_epochs", "5", "--data.length", "320", "--data.test_length", "128"), has_bf16=True),
    "rsknet": Fit(STEPS, is_noisy=True, has_bf16=True),
    "s3rp": Fit((*STEPS, "--data.train", "16", "--data.val", "8", "--data.test", "8"), is_noisy=True),
    "tripinet": Fit((*STEPS, *BRIEF, "--data.length", "64"), has_bf16=True),
    "umed": Fit(has_bf16=True),
    "vafl": Fit((*STEPS, "--model.protocol.algorithm", "centralised")),
}


def run(name: str, verb: str, options: tuple[str, ...], device: str, precision: str, label: str) -> dict[str, Any]:
    """Run a verb of a project; returns its losses, or the numbers of its summary, its steps a second, its seconds and its peak in MiB."""
    main = importlib.import_module(f"projects.{name}.cli").main
    place = ["--trainer.accelerator", "gpu" if device == "cuda" else "cpu", "--trainer.devices", "1", "--trainer.precision", precision]
    SEEN["losses"].clear()
    SEEN["times"].clear()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    cli = main([verb, *options, *place, "--trainer.callbacks+=watch.Watch", "--run", label, "--force", "--debug"])
    took, times = time.perf_counter() - began, SEEN["times"]
    summary = getattr(cli.result, "summary", None) or {}
    told = {key: float(value) for key, value in summary.items() if isinstance(value, int | float) and "seconds" not in key}
    rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    return {"losses": list(SEEN["losses"]), "told": told, "rate": rate, "seconds": took, "peak": peak}


def compare(found: dict[str, Any], expected: dict[str, Any], is_loose: bool) -> tuple[bool, str]:
    """Return whether two runs agree, and their losses; of a verb that trains nothing, the numbers of its summary."""
    if not expected["losses"]:
        pairs = [(found["told"].get(key, math.nan), value) for key, value in expected["told"].items()]
        apart = max((abs(a - b) / max(1.0, abs(b)) for a, b in pairs), default=0.0)
        return apart <= 0.2, f"{len(pairs)} numbers of its summary at most {apart:.0e} apart"
    ours, theirs = found["losses"], expected["losses"]
    first, last = (abs(ours[place] - theirs[place]) / max(1e-6, abs(theirs[place])) for place in (0, -1))
    bounds = (0.35, 0.5) if is_loose else (0.02, 0.15)
    is_good = len(ours) == len(theirs) and all(map(math.isfinite, ours)) and first <= bounds[0] and last <= bounds[1]
    return is_good, f"loss {ours[0]:.4g} to {ours[-1]:.4g} in {len(ours)} steps (CPU {theirs[0]:.4g} to {theirs[-1]:.4g})"


def check(device: str, name: str, steps: int) -> Iterator[dict[str, Any]]:
    """Yield a row a verb and precision of a project; one that fails is a row with its error."""
    fit = FITS[name]
    for verb, *options in (("fit", *fit.options), *fit.further):
        given, expected = tuple(option.format(steps=steps) for option in options), None
        for precision in ("32-true", "bf16-mixed") if fit.has_bf16 and verb == "fit" else ("32-true",):
            try:
                expected = expected or run(name, verb, given, "cpu", "32-true", "gpu-check-cpu")
                found = run(name, verb, given, device, precision, f"gpu-check-{precision}")
                is_good, text = compare(found, expected, fit.is_noisy or precision != "32-true")
            except (Exception, SystemExit) as error:
                is_good, text, found = False, f"{type(error).__name__}: {error}".splitlines()[0][:200], {}
            text += f"; {found['rate']:.1f} steps/s (CPU {expected['rate']:.1f})" if found.get("rate") else ""
            text += f"; {found['seconds']:.0f} s in all" if found else ""
            text += f", peak {found['peak']:.0f} MiB" if found.get("peak") else ""
            yield {"part": "fits", "what": f"{name} {verb}", "setting": f"{device}, {precision}", "result": text, "is_good": is_good}
