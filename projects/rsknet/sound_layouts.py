"""Noises and rooms that augment speech, as they lie on people's disks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from projects.rsknet.layouts import audio_files
from projects.rsknet.lists import check_there, read_text

ROOMS = ("smallroom", "mediumroom", "largeroom")
"""Folders of simulated rooms; recipes for speakers take the first two."""

_MUSAN: tuple[Literal["noise", "music", "speech"], ...] = ("noise", "music", "speech")


def musan(root: Path) -> dict[Literal["noise", "music", "speech"], list[Path]]:
    """List MUSAN's files, `musan/{noise,music,speech}/<source>/*.wav`, by kind.

    Raises:
        FileNotFoundError: if a kind is missing or empty.
    """
    home = root / "musan" if (root / "musan").is_dir() else root
    found = {kind: [Path(path) for path in audio_files(home / kind)] if (home / kind).is_dir() else [] for kind in _MUSAN}
    if empty := [kind for kind, files in found.items() if not files]:
        raise FileNotFoundError(f"no {' and no '.join(empty)} in {home}: expected musan/{{noise,music,speech}}/<source>/*.wav; correct the root")
    return found


def rirs(root: Path, rooms: Sequence[str] = ROOMS) -> list[Path]:
    """List impulse responses of simulated rooms, `RIRS_NOISES/simulated_rirs/smallroom/Room001/*.wav`, those in `rir_list` where there is one.

    Args:
        root: folder `RIRS_NOISES`, or the one above.
        rooms: of `ROOMS`; those that are not there are passed over.

    Raises:
        FileNotFoundError: if there are none, or files that a list names are missing.
    """
    home = (root / "RIRS_NOISES" if (root / "RIRS_NOISES").is_dir() else root) / "simulated_rirs"
    found: list[Path] = []
    for room in rooms:
        if (home / room / "rir_list").is_file():
            found += _rir_list(home / room / "rir_list", home)
        elif (home / room).is_dir():
            found += [Path(path) for path in audio_files(home / room)]
    if not found:
        tree = f"RIRS_NOISES/simulated_rirs/{{{','.join(rooms)}}}/Room*/*.wav"
        raise FileNotFoundError(f"no impulse responses in {root}: expected {tree}; correct the root")
    return found


def _rir_list(path: Path, home: Path) -> list[Path]:
    """Read lines that end in `RIRS_NOISES/simulated_rirs/<room>/.../*.wav`, below whatever folder."""
    names = [line.split()[-1].rpartition("simulated_rirs/")[2] for line in read_text(path).splitlines() if line.strip()]
    files = {name: home / name for name in names}
    check_there(files, path)
    return list(files.values())
