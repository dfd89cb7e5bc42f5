"""How the features of a record are split over the parties of vertical federated learning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

ImageSplit = Literal["quarters", "rows", "columns"]


def split_image(images: Tensor, how: ImageSplit = "quarters", parties: int = 4) -> list[Tensor]:
    """ImageSplit images into one block a party.

    Args:
        images: (N, C, H, W).
        how: "quarters" is a grid of 2 x 2, where party 2i + j gets the rows i and the columns j; "rows" and "columns" are strips.
        parties: number of parties; quarters are always four.

    Returns:
        One (N, C, h, w) a party; where a side cannot be divided, the first blocks are larger by a pixel.

    Raises:
        ValueError: if `how` is unknown, if quarters are not of four parties, or if there are more blocks than pixels.
    """
    down, across = _grid(how, parties)
    height, width = images.shape[-2:]
    if height < down or width < across:
        raise ValueError(f"images of {height} x {width} pixels cannot be split into {down} x {across} blocks: take fewer parties or larger images")
    return [block for strip in images.tensor_split(down, dim=-2) for block in strip.tensor_split(across, dim=-1)]


def join_image(blocks: Sequence[Tensor], how: ImageSplit = "quarters") -> Tensor:
    """Put the blocks of `split_image` together again.

    Args:
        blocks: one (N, C, h, w) a party.
        how: as they were split.

    Returns:
        (N, C, H, W) images.

    Raises:
        ValueError: if `how` is unknown, or if quarters are not four.
    """
    _, across = _grid(how, len(blocks))
    strips = [torch.cat(list(blocks[start : start + across]), dim=-1) for start in range(0, len(blocks), across)]
    return torch.cat(strips, dim=-2)


def even_columns(features: int, parties: int) -> list[list[int]]:
    """Return neighbouring columns for each party, as even as possible.

    Raises:
        ValueError: if there are fewer columns than parties.
    """
    if not 0 < parties <= features:
        raise ValueError(f"{features} columns cannot be split over {parties} parties: each needs at least one")
    return [part.tolist() for part in torch.arange(features).tensor_split(parties)]


def split_table(table: Tensor, columns: Sequence[Sequence[int]]) -> list[Tensor]:
    """ImageSplit a table into one block a party.

    Args:
        table: (N, D).
        columns: the columns of each party; together each of the D once.

    Returns:
        One (N, D_m) a party.

    Raises:
        ValueError: if `columns` leaves one out or has one twice.
    """
    _check_columns(columns, table.shape[1])
    return [table[:, list(chosen)] for chosen in columns]


def join_table(blocks: Sequence[Tensor], columns: Sequence[Sequence[int]]) -> Tensor:
    """Put the blocks of `split_table` together again, one (N, D_m) a party -> (N, D).

    Raises:
        ValueError: if `columns` leaves one out or has one twice.
    """
    _check_columns(columns, sum(block.shape[1] for block in blocks))
    order = torch.tensor([column for chosen in columns for column in chosen])
    return torch.cat(list(blocks), dim=1)[:, order.argsort()]


def _grid(how: str, parties: int) -> tuple[int, int]:
    """Return how many blocks lie below and beside each other."""
    if how not in get_args(ImageSplit):
        raise ValueError(f"images cannot be split into {how!r}: choose one of {', '.join(get_args(ImageSplit))}")
    if how == "quarters" and parties != 4:
        raise ValueError(f"quarters are for 4 parties, not {parties}: choose rows or columns")
    if parties < 1:
        raise ValueError(f"there must be at least one party, got {parties}")
    return {"quarters": (2, 2), "rows": (parties, 1), "columns": (1, parties)}[how]


def _check_columns(columns: Sequence[Sequence[int]], features: int) -> None:
    found = [column for chosen in columns for column in chosen]
    twice = sorted({column for column in found if found.count(column) > 1})
    absent = sorted(set(range(features)) - set(found))
    beyond = sorted(set(found) - set(range(features)))
    wrong = [f"{name} {numbers}" for name, numbers in (("twice", twice), ("missing", absent), ("beyond the table", beyond)) if numbers]
    if wrong:
        raise ValueError(f"the parties' columns must hold each of the {features} columns once, but of them are {', '.join(wrong)}")
