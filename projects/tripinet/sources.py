"""What a picture's name tells of the scenes and donors that it was made of: pictures that share one belong in one split."""

from __future__ import annotations

import re
from pathlib import Path

_CASIA = re.compile(r"(?:^|_)(ani|arc|art|cha|ind|nat|obj|pla|sec|txt)_?(\d{4,5})(?=[_.]|$)")
_CASIA_NAMES = ("Au_", "Tp_", "Sp_")
_COCO = re.compile(r"(?<!\d)(\d{12})(?!\d)|val2017_(\d+)")


def sources_of(image: Path) -> frozenset[str]:
    """Return the sources that a file's name tells; none if it tells nothing.

    `Tp_D_CRN_M_N_nat10130_ani00058_11865` of CASIA was made of `Au_nat_10130` and `Au_ani_00058`. Its first version numbers pictures by four digits,
    the second by five, so that the two never seem to share one: `leaks` compares their looks. Numbers of twelve digits, and those after `val2017_`,
    are COCO's.
    """
    if image.stem.startswith(_CASIA_NAMES):
        return frozenset(f"casia/{kind}{number}" for kind, number in _CASIA.findall(image.stem))
    return frozenset(f"coco/{int(long or short)}" for long, short in _COCO.findall(image.stem))
