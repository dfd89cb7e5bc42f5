"""How long each client's cycles take: a function of the seed, the client and the number of the cycle, the same for every method."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from projects.vafl.settings import Delays
from shared.data.files import BadFileError, blamed
from shared.seeding import derive_seed

CHUNK = 1024
"""Cycles whose delays are drawn together."""
KINDS = ("poisson", "exponential", "constant", "none")


class DelaySource:
    """Draws the delays of all clients.

    Args:
        delays: the settings.
        clients: M.
        seed: of the draws; methods under one seed meet the same delays.

    Raises:
        ValueError: if a setting cannot be read, or names a client that is not there.
        FileNotFoundError: if there is no such trace.
    """

    def __init__(self, delays: Delays, clients: int, seed: int) -> None:
        self.delays, self.clients, self.seed = delays, clients, seed
        self._trace = _read_trace(Path(delays.compute[6:]), clients) if delays.compute.startswith("trace:") else None
        if self._trace is None and delays.compute not in KINDS:
            raise ValueError(f"delays.compute {delays.compute!r} is not known: choose one of {', '.join(KINDS)}, or trace:FILE")
        self._factor = [1.0] * clients
        for text in delays.slow:
            client, factor = _pair(text, "slow", "CLIENT:FACTOR, such as 7:5", clients)
            self._factor[client] = _positive(factor, f"delays.slow {text!r}")
        self._absent: list[list[tuple[float, float]]] = [[] for _ in range(clients)]
        for text in delays.absent:
            client, window = _pair(text, "absent", "CLIENT:FROM-TO, such as 3:20-40", clients)
            self._absent[client].append(_window(window, text))
        for windows in self._absent:
            windows.sort()
        self._chunks: dict[tuple[int, int], list[float]] = {}

    def cycle(self, client: int, number: int) -> float:
        """Return the seconds of a client's cycle, from 0."""
        if self._trace is not None:
            own = self._trace[client]
            seconds = own[number % len(own)]
        else:
            chunk, place = divmod(number, CHUNK)
            drawn = self._chunks.get((client, chunk))
            if drawn is None:
                self._chunks.pop((client, chunk - 2), None)
                drawn = self._chunks[client, chunk] = self._draw(client, chunk).tolist()
            seconds = drawn[place]
        return max(self.delays.floor, seconds * self.delays.scale * self._factor[client]) if self.delays.compute != "none" else 0.0

    def arrival(self, client: int, number: int, start: float, size: int) -> float:
        """Return when the message of a cycle that begins at `start` reaches the server, `size` being its bytes."""
        seconds = self.work(client, number, size)
        arrival = start + seconds
        for begin, end in self._absent[client]:
            if begin < arrival and start < end:
                start, arrival = end, end + seconds
        return arrival

    @property
    def is_instant(self) -> bool:
        """Whether nothing takes any time, so that a training in simulated seconds would never end."""
        own = self.delays
        is_still = own.compute == "none" or (own.floor == 0 and own.scale == 0)
        return is_still and not (own.up or own.down or own.server or own.bandwidth)

    def work(self, client: int, number: int, size: int) -> float:
        """Return the seconds of a cycle and of its message's way, absences left out."""
        return self.cycle(client, number) + self.one_way(size)

    def transfer(self, size: int) -> float:
        """Return the seconds that so many bytes take on a client's line."""
        return size / self.delays.bandwidth if self.delays.bandwidth else 0.0

    def one_way(self, size: int) -> float:
        """Return the seconds of a message to the server that nobody has to compute for."""
        return self.delays.up + self.transfer(size)

    def round_trip(self, down: int, up: int) -> float:
        """Return the seconds of a request of so many bytes and its reply."""
        return self.delays.down + self.transfer(down) + self.one_way(up)

    def mean(self, client: int) -> float:
        """Return the mean seconds of a client's cycles over a chunk of draws, lambda_m."""
        return float(np.mean([self.cycle(client, number) for number in range(CHUNK)]))

    def _draw(self, client: int, chunk: int) -> np.ndarray:
        draw = np.random.default_rng(derive_seed(self.seed, "delay", client, chunk))
        place, count = client + 1, self.clients
        if self.delays.compute == "poisson":
            return draw.poisson(2 * place, CHUNK) / (2 * count)
        if self.delays.compute == "exponential":
            return draw.exponential(place, CHUNK)
        return np.full(CHUNK, place / count if self.delays.compute == "constant" else 0.0)


def _pair(text: str, name: str, form: str, clients: int) -> tuple[int, str]:
    client, colon, value = str(text).partition(":")
    if not colon or not client.strip().isdigit() or int(client) >= clients:
        raise ValueError(f"delays.{name} {text!r} must be {form}, with a client from 0 to {clients - 1}")
    return int(client), value


def _positive(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"{what} must end in a positive number")
    return value


def _window(text: str, whole: str) -> tuple[float, float]:
    try:
        begin, end = (float(part) for part in text.split("-"))
    except ValueError:
        begin, end = 0.0, 0.0
    if not 0 <= begin < end < math.inf:
        raise ValueError(f"delays.absent {whole!r} must be CLIENT:FROM-TO in seconds, such as 3:20-40, with TO above FROM")
    return begin, end


def _read_trace(path: Path, clients: int) -> list[list[float]]:
    """Read each client's seconds from a CSV file with the columns client and seconds."""
    path = path.expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}: expected a CSV file of delays with the columns client and seconds; correct delays.compute")
    found: list[list[float]] = [[] for _ in range(clients)]
    with blamed(path, "save it as CSV in UTF-8"), path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            try:
                client, seconds = int(row["client"]), float(row["seconds"])
            except (KeyError, TypeError, ValueError) as error:
                raise BadFileError(f"{path} must have the columns client and seconds with numbers in every line; found {dict(row)}") from error
            if not 0 <= client < clients or not 0 <= seconds < math.inf:
                raise BadFileError(f"{path} has the line {client}, {seconds}: clients are 0 to {clients - 1}, and seconds 0 or more")
            found[client].append(seconds)
    if lacking := [str(client) for client, own in enumerate(found) if not own]:
        raise BadFileError(f"{path} has no line for client {', '.join(lacking)}: add one at least, which is then taken again and again")
    return found
