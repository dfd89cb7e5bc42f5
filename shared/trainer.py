"""What a project's Trainer tells the command line about its verbs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

import lightning as L

from shared.checkpoints import with_weights
from shared.runs import Run

_Module = TypeVar("_Module", bound=L.LightningModule)


class ProjectTrainer(L.Trainer):
    """Lightning's trainer with a project's verbs: each public method of a subclass is one, its signature the options, its docstring the help.

    What a verb returns may have an `exit_code`, which the process then ends with, and a `summary`, a dict that heads the run's page.
    """

    run: Run
    verb: str = "fit"
    makes_run: frozenset[str] = frozenset({"fit", "reproduce"})
    """Verbs that begin a run folder; the others work in the latest run, or the one that `--run` names."""
    begins: frozenset[str] = frozenset()
    """Verbs that work in a run like others, but begin one where there is none yet, or where they are given a configuration."""
    links: Mapping[str, str] = MappingProxyType({})
    """Options of the model that the data module tells, `{"data.classes": "model.classes"}`."""
    unlinked: frozenset[str] = frozenset()
    """Verbs that need no data: what these told the model is then read from the run's checkpoint, so that they may have gone."""
    outside: frozenset[str] = frozenset()
    """Options that name a model from outside: a verb that is given one begins a run folder too. `purify.path` means the option of that verb."""
    reads: frozenset[str] = frozenset()
    """Further options that name files or folders: a verb is done again when what lies there has changed."""
    changing: frozenset[str] = frozenset()
    """Verbs that change files which they find, and are done whenever they are asked for, however often they were before."""
    beside: frozenset[str] = frozenset()
    """Files of a run, such as `voices.safetensors`, that its verbs read as they lie there: a verb is done again when they have changed."""
    files: frozenset[str] = frozenset()
    """Settings such as `data.root` that may name a file, or a function in one as `file.py:function`: it counts with what lies in the file."""
    unnamed: Mapping[str, int] = MappingProxyType({})
    """Verbs of which more than the first option may be given without its name, and how many: `verify A B`."""
    repeated: frozenset[str] = frozenset()
    """Options that may be given several times: their values make one list."""
    independent: frozenset[str] = frozenset()
    """Verbs that take no settings of a run: a model by itself is judged, beside which a stranger's may lie, or something is drawn anew."""
    resumable: frozenset[str] = frozenset({"fit"})
    """Verbs that --resume goes on with."""
    follow_up: Mapping[str, str] = MappingProxyType({"fit": "test"})
    """The verb to suggest after a verb, with options; `{run}` and `{config}` stand for the run's name and its settings."""
    aliases: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType({})
    """Further words for a verb, `{"stress": ("robustness", ())}`, or for one under configurations, `{"attack": ("fit", ("tiny", "trojdiff"))}`, the
    last of which `attack NAME` replaces."""
    is_forced: bool = False
    """Whether --force asks to do again what is done."""
    save_every: int = 100
    """Training steps between two checkpoints to resume from."""


def at_best(trainer: ProjectTrainer, model: _Module) -> _Module:
    """Give a model that was just trained the weights of the run's best epoch, if there is one; in evaluation mode."""
    best = trainer.run.checkpoints / "best.ckpt"
    return with_weights(model, best if best.is_file() else None)
