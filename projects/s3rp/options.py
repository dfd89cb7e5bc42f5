"""Words and ranges of the module's options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from projects.s3rp.layers import Cell
from projects.s3rp.model import Grid
from projects.s3rp.physics import Boundary

Net = Literal["s3rp_d", "s3rp_r", "srcnn"]
Form = Literal["step", "residual"]
Divergence = Literal["mmd", "critic"]


def check_options(given: Mapping[str, Any]) -> None:
    """Refuse options that would fail in the middle of the work.

    Raises:
        ValueError: naming them.
    """
    words = {"net": Net, "boundary": Boundary, "cell": Cell, "grid": Grid, "physics": Form, "divergence": Divergence}
    for name, values in words.items():
        if given[name] not in get_args(values):
            raise ValueError(f"no model.{name} {given[name]!r}: choose among {', '.join(get_args(values))}")
    for name in ("channels", "latents", "members", "factor"):
        if given[name] < 1:
            raise ValueError(f"model.{name} must be at least 1, got {given[name]}")
    for name in (name for name in given if name.startswith("lambda_") or name in ("beta", "forecast", "propagation", "ahead")):
        if given[name] < 0:
            raise ValueError(f"model.{name} must be 0 or more, got {given[name]}")
    for name in ("projection", "curriculum"):
        if not 0 <= given[name] <= 1:
            raise ValueError(f"model.{name} lies between 0 and 1, got {given[name]}")
    for name in ("hide", "warm_up"):
        if not 0 <= given[name] < 1:
            raise ValueError(f"model.{name} is a part, at least 0 and below 1, got {given[name]}")
    if given["lr"] <= 0:
        raise ValueError(f"model.lr must be positive, got {given['lr']}")
    if given["net"] == "srcnn" and (given["forecast"] or not given["mask_channel"]):
        raise ValueError("a srcnn knows single frames: it takes neither model.forecast nor model.mask_channel")
    if not given["recurrent"] and (given["bidirectional"] or given["hybrid"]):
        raise ValueError("model.recurrent false makes every frame by itself: leave out model.bidirectional and model.hybrid")
    if given["forecast"] and not given["lambda_forecast"] and (given["net"] == "s3rp_r" or not (given["propagation"] or given["hybrid"])):
        raise ValueError("model.forecast is learnt from hidden frames here: set model.lambda_forecast above 0")
    if given["hybrid"] and given["learn_diffusivity"]:
        raise ValueError("a hybrid network corrects a solver whose D is known: leave out model.hybrid or model.learn_diffusivity")
    for name in ("find_source", "learn_diffusivity"):
        if given[name] and not given["lambda_physics"]:
            raise ValueError(f"model.{name} learns from the physics: set model.lambda_physics above 0")
    if given["net"] == "s3rp_r" and given["members"] < 2 and given["lambda_crps"] and (given["hide"] or given["forecast"] or given["ahead"]):
        raise ValueError("scores compare draws: set model.members to 2 or more, or model.lambda_crps to 0")
    if given["find_source"] and given["net"] != "s3rp_d":
        raise ValueError("model.find_source needs the net s3rp_d")
