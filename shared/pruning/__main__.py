"""Pruning of a saved network: python -m shared.pruning report|apply MODEL_FOLDER --channels 0.3."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from shared.checkpoints import load_tensors, load_weights, weights_file, with_todays_names
from shared.data.files import blamed, read_json
from shared.pruning.apply import apply, verify
from shared.pruning.costs import Budget, measure_latency
from shared.pruning.groups import GroupIndex
from shared.pruning.masks import hold
from shared.pruning.plan import Plan
from shared.pruning.report import report
from shared.pruning.scores import Scores, geometric_median, magnitude, random
from shared.pruning.select import select
from shared.pruning.store import STRUCTURE, build_base, load, save
from shared.runs import atomic, claim_folder

_MEND = "save the network anew"
_DIFFUSERS_WEIGHTS, _TIMM_WEIGHTS = "diffusion_pytorch_model.safetensors", "model.safetensors"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if all went well, 1 if something is wrong with the files or the request."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shared.pruning", description="Structural pruning of a network that diffusers or timm has saved.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (("report", "say what pruning would do; nothing is written"), ("apply", "prune, and write the network to a new folder")):
        one = verbs.add_parser(verb, help=text, description=text)
        one.add_argument(
            "folder", type=Path, help="a diffusers pipeline or network, a timm folder (config.json and model.safetensors), or an earlier result"
        )
        budget = one.add_mutually_exclusive_group(required=True)
        for measure, what in {
            "channels": "channels",
            "parameters": "parameters",
            "flops": "flops",
            "latency": "time, as measured on this CPU,",
        }.items():
            budget.add_argument(f"--{measure}", type=float, metavar="SHARE", help=f"share of the {what} to remove, in [0, 1)")
        one.add_argument("--criterion", choices=("magnitude", "geometric_median", "random"), default="magnitude", help="scores that need no data")
        one.add_argument("--scope", choices=("global", "local", "isomorphic"), default="global", help="whether groups compete (default: global)")
        one.add_argument(
            "--norm", choices=("per_offset", "whole_group", "regroup"), default="per_offset", help="what becomes of group normalisations"
        )
        one.add_argument("--heads", choices=("within", "whole"), default="within", help="narrow the heads of attention, or remove whole ones")
        one.add_argument("--cap", type=float, default=0.5, help="hardest share that a group may lose (default: 0.5)")
        one.add_argument("--round-to", type=int, default=1, help="leave multiples of this many channels (default: 1)")
        one.add_argument("--protect", nargs="*", default=[], metavar="LAYER", help="layers or patterns whose outputs stay")
        one.add_argument("--input", nargs="*", default=[], metavar="NAME=SIZES", help="example inputs, as sample=1x3x32x32 or timestep=int:1")
        one.add_argument("--seed", type=int, default=0, help="of random scores (default: 0)")
        one.add_argument("--json", type=Path, metavar="FILE", help="write the report there too")
        if verb == "apply":
            one.add_argument("--out", type=Path, required=True, help="folder to write")
            one.add_argument("--mode", choices=("cut", "mask"), default="cut", help="cut: smaller tensors; mask: zeros, in the format of the input")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.verb == "apply":
        options.out = claim_folder(options.out, STRUCTURE, options.folder)
    model, base = load_model(options.folder)
    inputs = _parse_inputs(options.input) or example_inputs(model, base)
    try:
        index = GroupIndex.build(copy.deepcopy(model), inputs, options.protect)  # a copy, for networks that keep what they compute while traced
    except (RuntimeError, TypeError, ZeroDivisionError) as error:
        raise ValueError(f"the network cannot be called with these inputs ({str(error).splitlines()[0]}): describe them by --input") from error
    mode: Literal["cut", "mask"] = getattr(options, "mode", "cut")
    table = None if options.latency is None else measure_latency(index, model)
    budget = Budget(options.channels, options.parameters, options.flops, options.latency, table)
    settings = {"scope": options.scope, "norm": options.norm, "heads": options.heads, "cap": options.cap, "round_to": options.round_to}
    plan = select(index, _scores(options, index, model), budget, mode=mode, **settings)
    made = report(plan)
    print(made)
    if options.json:
        options.json.write_text(json.dumps(made.to_json(), indent=2) + "\n", encoding="utf-8")
    if options.verb == "apply":
        _write(model, base, plan, inputs, options)


def _scores(options: argparse.Namespace, index: GroupIndex, model: nn.Module) -> Scores:
    if options.criterion == "random":
        return random(index, options.seed)
    return magnitude(index, model) if options.criterion == "magnitude" else geometric_median(index, model)


def _write(model: nn.Module, base: dict[str, Any], plan: Plan, inputs: Any, options: argparse.Namespace) -> None:
    if plan.mode == "cut":
        difference = verify(model, plan, inputs)
        apply(model, plan)
        save(model, options.out, base)
        print(f"\nwritten to {options.out}; the pruned network differs from the masked one by {difference:.2g} at most")
        print(f"load it with: shared.pruning.store.load({str(options.out)!r})")
        return
    source = _network_folder(options.folder)
    if (source / STRUCTURE).is_file():
        raise ValueError(f"{source} is a result of pruning: --mode mask writes the formats of diffusers and timm only")
    from safetensors.torch import save_model

    weights = _weights_file(source)
    hold(model, plan)
    for name, tensor in with_todays_names(load_tensors(weights), model).items():  # in the precision that they were stored in
        owner, _, last = name.rpartition(".")
        held = getattr(model.get_submodule(owner), last)
        held.data = held.data.to(tensor.dtype)
    with atomic(options.out) as temporary:
        shutil.copytree(options.folder, temporary)
        save_model(model, str(temporary / weights.relative_to(options.folder)), metadata={"format": "pt"})
    print(f"\nwritten to {options.out}, which loads as {options.folder} does")


def _network_folder(folder: Path) -> Path:
    """Return the folder of the network itself: a pipeline's `unet`, or the folder as it is."""
    inner = folder / "unet"
    return inner if any((inner / name).is_file() for name in ("config.json", STRUCTURE)) else folder


def _weights_file(folder: Path) -> Path:
    return folder / _TIMM_WEIGHTS if (folder / _TIMM_WEIGHTS).is_file() else weights_file(folder)


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Read a saved network, and say what it is (see `store.describe`).

    Raises:
        FileNotFoundError: if the folder is of no known kind.
        ValueError: if files are damaged.
    """
    folder = _network_folder(folder)
    if (folder / STRUCTURE).is_file():
        return load(folder), read_json(folder / STRUCTURE, _MEND)["base"]
    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(
            f"{folder} holds no network: expected config.json with {_DIFFUSERS_WEIGHTS} (diffusers) or {_TIMM_WEIGHTS} (timm), "
            "a pipeline with unet/, or a result of pruning with structure.json"
        )
    weights = _weights_file(folder)
    content = read_json(config, _MEND)
    if not isinstance(content, dict):
        raise ValueError(f"{config} holds no settings by name: {_MEND}")
    if "_class_name" in content:
        settings = {name: value for name, value in content.items() if not name.startswith("_")}
        base = {"library": "diffusers", "class": content["_class_name"], "config": settings}
    elif "architecture" in content:
        with blamed(config, _MEND):
            given = {"num_classes": content.get("num_classes", 1000)} | content.get("model_args", {})
        base = {"library": "timm", "architecture": content["architecture"], "arguments": given, "pretrained_cfg": content.get("pretrained_cfg", {})}
    else:
        raise ValueError(f"{config} names neither a diffusers class (_class_name) nor a timm architecture")
    with blamed(config, _MEND):
        model = build_base(base)
    load_weights(model, weights)
    if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
        raise ValueError(f"{weights} holds weights that are not finite numbers ({broken[0]} first): there is nothing to prune by")
    return model.eval(), base


def example_inputs(model: nn.Module, base: dict[str, Any]) -> Any:
    """Make inputs for one example from a network's settings.

    Raises:
        ValueError: if they do not tell.
    """
    if base["library"] == "timm":
        size = base["arguments"].get("img_size") or base.get("pretrained_cfg", model.pretrained_cfg)["input_size"][1:]
        size = (size, size) if isinstance(size, int) else size
        return torch.randn(1, base["arguments"].get("in_chans", 3), *size)
    config = base["config"]
    side = config.get("sample_size")
    if side is None or "in_channels" not in config:
        raise ValueError(f"the settings of {base['class']} do not tell what it takes: give --input, such as --input sample=1x3x32x32 timestep=int:1")
    height, width = (side, side) if isinstance(side, int) else side
    inputs = {"sample": torch.randn(1, config["in_channels"], height, width)}
    if base["class"].startswith("UNet2D"):
        inputs["timestep"] = torch.tensor([1])
    if isinstance(config.get("cross_attention_dim"), int):
        inputs["encoder_hidden_states"] = torch.randn(1, 8, config["cross_attention_dim"])
    return inputs


def _parse_inputs(texts: Sequence[str]) -> dict[str, torch.Tensor]:
    inputs = {}
    for text in texts:
        name, _, sizes = text.partition("=")
        try:
            whole = sizes.startswith("int:")
            shape = [int(size) for size in sizes.removeprefix("int:").split("x")]
        except ValueError as error:
            raise ValueError(f"--input {text!r} is not of the form sample=1x3x32x32 or timestep=int:1") from error
        inputs[name] = torch.ones(shape, dtype=torch.int64) if whole else torch.randn(shape)
    return inputs


if __name__ == "__main__":
    sys.exit(main())
