"""What a network costs: parameters, multiply-adds, and time on a CPU."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.flop_counter import FlopCounterMode

from projects.rsknet.model import parameters
from projects.rsknet.module import SpeakerVerification
from shared.seeding import generator

FRAMES = 200
"""Frames that multiply-adds are counted for, two seconds of a shift of 10 ms."""


@dataclass(frozen=True)
class Costs:
    """A row of a table of networks.

    Attributes:
        net: name of the network.
        parameters: its number of parameters.
        multiply_adds: for `FRAMES` frames, of convolutions and matrices.
        real_time_factor: seconds of computation in one thread for a second of sound, from waveform to embedding.
    """

    net: str
    parameters: int
    multiply_adds: int
    real_time_factor: float


def costs(name: str, bins: int = 80, seconds: float = 2.0, rounds: int = 5) -> Costs:
    """Measure a network of `model.NETS` with random weights at 16 kHz.

    Args:
        name: of the network.
        bins: F, mel bins.
        seconds: length of the recording whose embedding is timed.
        rounds: see `real_time_factor`.
    """
    module = SpeakerVerification(name, rate=16_000, bins=bins, frame_shift=10.0)
    settle(module.net, bins)
    return Costs(name, parameters(module.net), multiply_adds(module.net, bins), real_time_factor(module, seconds, rounds=rounds))


def multiply_adds(net: nn.Module, bins: int = 80, frames: int = FRAMES) -> int:
    """Count the multiplications of convolutions and matrices for one utterance; norms, activations and means are not counted.

    Args:
        net: maps (1, `bins`, `frames`) features to an embedding.
        bins: F.
        frames: T.
    """
    counter = FlopCounterMode(display=False)
    shadow = copy.deepcopy(net).to("meta").eval()  # shapes alone
    with counter, torch.no_grad():
        shadow(torch.empty(1, bins, frames, device="meta"))
    return counter.get_total_flops() // 2


def settle(net: nn.Module, bins: int = 80) -> None:
    """Give a network with random weights the statistics of noise in its batch norms, so that values keep their size.

    With the initial ones they shrink, most in a separable network.
    """
    noise = torch.randn(4, bins, FRAMES, generator=generator(0, "costs"))
    update_bn([noise], net)


def real_time_factor(module: SpeakerVerification, seconds: float, threads: int = 1, rounds: int = 5) -> float:
    """Return seconds of computation for a second of sound, from waveform to embedding on the device of the module: the median of `rounds` calls.

    Args:
        module: with trained weights, or see `settle`.
        seconds: length of the recording.
        threads: of torch.
        rounds: calls after one to warm up.
    """
    waveform = 0.1 * torch.randn(1, round(seconds * module.hparams.rate), generator=generator(0, "costs")).to(module.device)
    times = []
    with _threads(threads), torch.inference_mode():
        for _ in range(1 + rounds):
            began = time.perf_counter()
            module(waveform).cpu()
            times.append(time.perf_counter() - began)
    return statistics.median(times[1:]) / seconds


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
