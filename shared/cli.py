"""The command line of every project: one parser, one vocabulary, one run folder, and messages instead of tracebacks."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from shared.arguments import (
    SUPPLIED,
    as_list,
    extract,
    files_of,
    fingerprint_of,
    joined,
    named,
    outside_of,
    spell_out,
    switches_of,
    verbs_of,
    with_names,
)
from shared.callbacks import ResumePoint, Sizes, best_checkpoint, progress_bar
from shared.checkpoints import SafeCheckpointIO, describe_mismatch, is_at_its_end, load_checkpoint, other_settings
from shared.cluster import launched, stamp
from shared.distributed import rank
from shared.loggers import continue_logs, finish_loggers, make_loggers
from shared.messages import describe, say, shown_path, silence
from shared.runs import Run, find_run, new_run, remove, write_text
from shared.trainer import ProjectTrainer

OWN_SECTIONS = ("seed_everything", "trainer", "model", "data")


class Interrupted(Exception):  # noqa: N818 - it is no error
    """Training was stopped by Ctrl-C (exit code 130) or SIGTERM (143)."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def run(
    model: type[L.LightningModule],
    data: type[L.LightningDataModule],
    trainer: type[ProjectTrainer],
    args: Sequence[str] | None = None,
) -> ProjectCLI:
    """Run a project's command line.

    Args:
        model: the project's LightningModule; its file's folder holds `configs/`, and gives the project its name.
        data: the project's DataModule.
        trainer: the project's trainer with its verbs.
        args: the arguments; None takes those of the process.

    Returns:
        The command line after the verb has run, with `.trainer`, `.model`, `.datamodule`, `.run`, `.exit_code` and `.result` (what the verb
        returned).

    Raises:
        SystemExit: 2 for wrong usage; 1, after a message without traceback, for everything else that fails (`--debug` raises it instead);
            130 and 143 when stopped by Ctrl-C and SIGTERM; and, where `args` is None, the exit code of the verb's result if that is not 0.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in arguments
    os.environ.setdefault("MATPLOTLIBRC", str(Path(__file__).parent / "matplotlibrc"))
    silence()
    try:
        cli = ProjectCLI(model, data, trainer, [argument for argument in arguments if argument != "--debug"])
    except Interrupted as stop:
        say(str(stop))
        raise SystemExit(stop.code) from stop
    except KeyboardInterrupt as stop:
        raise SystemExit(130) from stop
    except Exception as error:
        if debug:
            raise
        say(f"error: {describe(error)}")
        raise SystemExit(1) from error
    if args is None:
        _leave(cli.exit_code)
    return cli


def _leave(code: int) -> None:
    """End the process with a verb's exit code. Where `lightning run` started several processes it is told the code, and ends with it itself."""
    is_started_by_lightning = "LOCAL_RANK" in os.environ and "LOCAL_WORLD_SIZE" not in os.environ and rank() > 0
    if file := os.environ.get("TOUCHSTONE_EXIT_CODE_FILE"):
        if os.environ.get("LOCAL_RANK") == "0":
            Path(file).write_text(str(code), encoding="utf-8")
    elif code and not is_started_by_lightning:  # a strategy takes the failure of a process that it started for a crash of all
        raise SystemExit(code)


class ProjectCLI(LightningCLI):
    """LightningCLI with short names for configurations, project verbs, a run folder and loggers."""

    def __init__(self, model: type[L.LightningModule], data: type[L.LightningDataModule], trainer: type[ProjectTrainer], args: Sequence[str]) -> None:
        self.folder = Path(inspect.getfile(model)).resolve().parent
        self.project = self.folder.name
        self.result: Any = None
        self.exit_code = 0
        self._is_new = False
        self._trainer_type = trainer
        self.verbs = verbs_of(trainer)
        set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
        arguments = self._complete(list(args))
        self.command = [str(self.folder / "cli.py"), *args]
        argv, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns when arguments stand there too
        try:
            super().__init__(
                model_class=model,
                datamodule_class=data,
                trainer_class=trainer,
                save_config_callback=None,
                seed_everything_default=0,
                parser_kwargs={
                    "parser_mode": "omegaconf+",
                    "prog": f"lightning run projects/{self.project}/cli.py",
                    "description": inspect.getdoc(sys.modules[trainer.__module__]) or self.project,
                },
                args=arguments,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,
            )
        finally:
            sys.argv = argv

    # ---- parsing

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        return dict.fromkeys(self.verbs, SUPPLIED)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        kwargs.setdefault("parser_mode", "omegaconf+")
        return super().init_parser(**kwargs)

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        if subcommand != self.chosen:  # the others are only listed: their options are not worth a second of start-up each
            return super().init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        parser.usage = f"lightning run projects/{self.project}/cli.py {subcommand} [options]"
        order = {"": 0, "model": 1, "data": 2, "trainer": 3}  # in --help: the verb's own options first, Lightning's many last
        groups = cast(list[Any], parser._action_groups)
        groups.sort(key=lambda group: order.get(next((a.dest for a in group._group_actions), "").partition(".")[0], 0))
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run", type=str | None, default=None, help="name of the run folder (default: the time for fit, the latest run for other verbs)"
        )
        parser.add_argument("--wandb", type=str, default="auto", help="W&B: auto (online with an API key, else offline), online, offline or disabled")
        parser.add_argument("--force", action="store_true", help="do again what is done: replace the run of that name, repeat a finished verb")
        parser.add_argument(
            "--resume", action="store_true", help="go on with what was interrupted: fit from its last checkpoint, other verbs from what they kept"
        )
        parser.add_argument("--save_every", type=int, default=100, help="training steps between two checkpoints to resume from")
        links = self._trainer_type.links
        if self.chosen in self._trainer_type.unlinked and not self._is_configured and (weights := self._learnt()):
            known = load_checkpoint(weights)["hyper_parameters"]
            parser.set_defaults({target: known[target.partition(".")[2]] for target in links.values()})
            return
        for source, target in links.items():
            parser.link_arguments(source, target, apply_on="instantiate")

    def _learnt(self) -> Path | None:
        """Return the checkpoint that tells what the data told the model of the verb's run; None where there is none yet."""
        if (run := self._existing_run()) is None:
            return None
        if given := self._given["ckpt_path"]:
            return run.checkpoint(given)
        return next((path for name in ("last", "best") if (path := run.checkpoints / f"{name}.ckpt").is_file()), None)

    def _complete(self, arguments: list[str]) -> list[str]:
        """Expand what users may leave out: the configuration, and the name of a verb's first option."""
        arguments = self._without_alias(arguments)
        position = next((i for i, argument in enumerate(arguments) if argument in self.verbs), None)
        self.chosen = None if position is None else arguments[position]
        if position is None or self.chosen is None:
            return arguments
        options = with_names(self._trainer_type, self.chosen, arguments[position + 1 :], self._trainer_type.unnamed.get(self.chosen, 1))
        options = spell_out(options, switches_of(self._trainer_type, self.chosen))
        options = joined(options, self._trainer_type.repeated)
        self._outside = outside_of(self._trainer_type.outside, self.chosen)
        options, configs = extract(options, "-c", "--config")
        self._given = {name: next(reversed(extract(options, f"--{name}")[1]), None) for name in ("run", "ckpt_path", *self._outside)}
        self._resume = "--resume" in options
        self._is_configured = bool(configs)
        if self.chosen not in self._trainer_type.independent and (self.chosen not in self._trainer_type.makes_run or self._resume):
            configs = configs or self._run_config()
        paths = [self._config_path(config) for config in configs or ["tiny"]]
        return [*arguments[:position], self.chosen, *(part for path in paths for part in ("--config", str(path))), *options]

    def _without_alias(self, arguments: list[str]) -> list[str]:
        if not arguments or arguments[0] not in self._trainer_type.aliases:
            return arguments
        verb, configs = self._trainer_type.aliases[arguments[0]]
        if configs and len(arguments) > 1 and not arguments[1].startswith("-"):
            configs, arguments = (*configs[:-1], arguments[1]), arguments[1:]
        return [verb, *(part for config in configs for part in ("--config", config)), *arguments[1:]]

    def _run_config(self) -> list[str]:
        """Return the settings of the run that the verb works in, or of the run that a model from outside belongs to."""
        outside = [Path(value) for name in self._outside if (value := self._given[name])]
        candidates = [path.parent / "config.yaml" for path in outside] if outside else [run.config_file for run in [self._existing_run()] if run]
        return [str(path) for path in candidates if path.is_file()]

    def _existing_run(self) -> Run | None:
        checkpoint = self._given["ckpt_path"]
        if checkpoint and Path(checkpoint).parent.name == "checkpoints" and self._given["run"] is None:
            run = Run(Path(checkpoint).resolve().parent.parent)
            project = run.manifest().get("project")
            if project == self.project:
                return run
            if project and (run.path / "manifest.json").is_file():
                raise ValueError(f"{checkpoint} is of a run of {project}: give --ckpt_path the weights of a run of {self.project}")
        named, may_be_absent = self._given["run"], self.chosen in self._trainer_type.begins
        if self._resume or (named is not None and not may_be_absent):
            return find_run(self.project, named)
        try:
            return find_run(self.project, named)
        except FileNotFoundError:
            return None

    def _starts_run(self, verb: str) -> bool:
        """Say whether a verb begins a run folder."""
        trainer = self._trainer_type
        if self._resume:
            return False
        if verb in trainer.begins:
            return self._is_configured or self._existing_run() is None
        return verb in trainer.makes_run or any(self._given[name] for name in self._outside)

    def _config_path(self, name: str) -> Path:
        """Resolve a path, or the name of a file in the project's `configs/`."""
        path, own = Path(name).expanduser(), self.folder / "configs" / f"{name}.yaml"
        if path.is_file() or own.is_file():
            return path.resolve() if path.is_file() else own
        known = ", ".join(sorted(file.stem for file in own.parent.glob("*.yaml")))
        raise FileNotFoundError(f"no configuration {name!r}: give a YAML file, or one of the project's own: {known}")

    def _parse_ckpt_path(self) -> None:
        """Leave the settings as parsed: the run's config.yaml and the flags decide, not what a checkpoint remembers."""

    # ---- the run

    def before_instantiate_classes(self) -> None:
        verb, config = self.config.subcommand, self.config[self.config.subcommand]
        self.run = self._choose_run(verb, config)
        self._asked = {name: config.trainer[name] for name in ("devices", "num_nodes", "accelerator")}
        if counts := launched():
            config.trainer.devices, config.trainer.num_nodes = counts
        if accelerator := os.environ.get("TOUCHSTONE_ACCELERATOR"):
            config.trainer.accelerator = accelerator

    def _choose_run(self, verb: str, config: Any) -> Run:
        if self._resume and any(self._given[name] for name in self._outside) and not config.run:
            raise ValueError("--resume with a model from outside goes on in a run of its own: name that with --run NAME")
        if not self._starts_run(verb):
            return self._existing_run() or find_run(self.project)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1 or "LOCAL_RANK" in os.environ
        name = config.run or stamp() or (several and os.environ.get("TOUCHSTONE_PARENT_RUN"))
        if several and not name:
            raise ValueError("several processes need one name for their run folder: give it with --run NAME")
        run = new_run(self.project, name or None)
        os.environ["TOUCHSTONE_PARENT_RUN"] = run.name  # for the processes that a Lightning strategy may start from this one
        self._is_new = True
        if rank() == 0 and run.path.exists():
            if not config.force:
                raise ValueError(
                    f"the run {self.project}/{run.name} exists: choose another --run, go on with it by --resume, or replace it by --force"
                )
            remove(run.path)
        return run

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        verb = str(self.subcommand)
        given = self._get(self.config_init, "trainer")
        options: dict[str, Any] = {"default_root_dir": str(self.run.path), "plugins": [*as_list(given.get("plugins")), SafeCheckpointIO()]}
        if given.get("logger") in (None, True):
            options["logger"] = make_loggers(self.run, verb, self._get(self.config, "wandb"))
        callbacks = as_list(given.get("callbacks"))
        if verb == "fit" and given.get("enable_checkpointing") is not False:
            callbacks.append(ResumePoint(self.run.checkpoints, self._get(self.config, "save_every")))
            if monitor := getattr(self.model, "monitor", None):
                callbacks.append(best_checkpoint(self.run.checkpoints, *monitor))
        if given.get("enable_model_summary") is None:
            options["enable_model_summary"] = False
            callbacks.append(Sizes())
        if given.get("enable_progress_bar") is not False:
            bar = progress_bar()
            callbacks.append(bar)
            options["enable_progress_bar"] = isinstance(bar, ProgressBar)  # else Lightning adds a bar of its own
        trainer = super().instantiate_trainer(**options, callbacks=callbacks, **kwargs)
        assert isinstance(trainer, ProjectTrainer)
        if getattr(self.model, "find_unused_parameters", False) and isinstance(trainer.strategy, DDPStrategy):
            trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)  # as the strategy ddp_find_unused_parameters_true does
        trainer.run, trainer.verb, trainer.is_forced = self.run, verb, bool(self._get(self.config, "force"))
        trainer.save_every = self._get(self.config, "save_every")
        return trainer

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if "ckpt_path" in kwargs and not any(kwargs.get(name) for name in self._outside):
            kwargs["ckpt_path"] = self._checkpoint(subcommand, kwargs["ckpt_path"])
        return kwargs

    def _checkpoint(self, verb: str, given: str | None) -> str | None:
        """Find the weights that a verb works on; a verb other than fit never runs on random ones."""
        if verb == "fit" and not (given or self._resume):
            return None
        default = "best" if verb != "fit" and (self.run.checkpoints / "best.ckpt").is_file() else "last"
        path = self.run.checkpoint(given or default)
        checkpoint = load_checkpoint(path)
        if differences := describe_mismatch(self.model.state_dict(), checkpoint["state_dict"]):
            raise ValueError(f"the checkpoint {path} does not fit the model that the settings describe:\n{differences}")
        if verb == "fit":
            if given and not self._resume and is_at_its_end(checkpoint, self.trainer):
                raise ValueError(f"the training in {path} is over: to train on, set trainer.max_epochs or trainer.max_steps higher than it was")
            continue_logs(self.trainer, int(checkpoint["global_step"]))
        elif (others := other_settings(self.model.hparams, checkpoint.get("hyper_parameters", {}))) and rank() == 0:
            say(f"note: the weights in {shown_path(path)} were trained with other settings than those here: {others}")
        return str(path)

    def _run_subcommand(self, subcommand: str) -> None:
        sys.argv = list(self.command)  # with which a strategy starts further processes
        kwargs = self._prepare_subcommand_kwargs(subcommand)
        settings = self._settings()
        inputs = self._inputs(kwargs) | files_of(settings, self._trainer_type.files)
        options = {name: value for name, value in kwargs.items() if name not in ("model", "datamodule", *inputs)}
        fingerprint = fingerprint_of(settings, options, inputs)
        may_repeat = subcommand not in {"fit"} | self._trainer_type.changing
        if may_repeat and self.run.is_done(subcommand, fingerprint) and not self._get(self.config, "force"):
            self._repeat(subcommand, fingerprint)
        elif rank() > 0:
            self._execute(subcommand, kwargs)
        else:
            self._record(subcommand, kwargs, settings, inputs, fingerprint)
            self._conclude(subcommand)

    def _repeat(self, verb: str, fingerprint: str) -> None:
        """Say that a verb was done already, and end as it did then."""
        *_, stage = (stage for stage in self.run.manifest()["stages"] if (stage["status"], stage.get("fingerprint")) == ("done", fingerprint))
        self.exit_code = stage.get("exit_code", 0)
        ending = f", with exit code {self.exit_code}" if self.exit_code else ""
        if rank() == 0:
            print(f"{verb} was done already with these settings and weights{ending}: {shown_path(self.run.path)} (--force does it again)")

    def _inputs(self, kwargs: dict[str, Any]) -> dict[str, Path]:
        """Return the files and folders that a verb works on: those it was given, and the run's weights unless it was given others.

        What is not there is left out: an option that may name a file may also be a plain word.
        """
        names = ("ckpt_path", *sorted(self._outside | self._trainer_type.reads))
        files = {name: [path for value in as_list(kwargs[name]) for path in named(value)] for name in names if kwargs.get(name)}
        pairs = [(name, number, file) for name, each in files.items() for number, file in enumerate(each)]
        given = {name if not number else f"{name}-{number}": file for name, number, file in pairs if file.exists()}
        own = {"weights": self.run.checkpoints / "last.ckpt", "pipeline": self.run.path / "pipeline", "model": self.run.path / "model.safetensors"}
        beside = {name: self.run.path / name for name in sorted(self._trainer_type.beside)} | ({} if "ckpt_path" in given else own)
        return given | {name: path for name, path in beside.items() if path.exists()}

    def _record(self, verb: str, kwargs: dict[str, Any], settings: dict[str, Any], inputs: dict[str, Path], fingerprint: str) -> None:
        """Carry out a verb on the first process, and write down in the run folder what it was and how it went."""
        file = self.run.config_file if self._is_new else self.run.path / verb / "config.yaml"
        if not self._resume:
            write_text(file, f"# settings of: {verb} of {self.project}\n" + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
        pointer = self.run.path.parent / "latest"
        latest = pointer.read_text(encoding="utf-8") if pointer.is_file() else None
        device, seed = str(self.trainer.strategy.root_device), settings["seed_everything"]
        is_latest = verb == "fit" or (self._is_new and verb in self._trainer_type.begins)
        try:
            with self.run.stage(verb, self.command, device, seed, inputs, latest=is_latest) as record:
                record["fingerprint"] = fingerprint
                self._execute(verb, kwargs)
                metrics = {name: round(float(value), 6) for name, value in self.trainer.callback_metrics.items() if value.numel() == 1}
                record |= {"summary": metrics | getattr(self.result, "summary", {}), "exit_code": self.exit_code}
        except Exception:
            if self._is_new:
                self.run.discard_if_empty(latest)
            raise

    def _execute(self, verb: str, kwargs: dict[str, Any]) -> None:
        try:
            self.result = getattr(self.trainer, verb)(**kwargs)
            self.exit_code = int(getattr(self.result, "exit_code", 0))
        except SystemExit as stop:  # Lightning leaves with code 1 on Ctrl-C, after it has closed its loops
            if self.trainer.state.status == TrainerStatus.INTERRUPTED:
                raise self._interrupted(verb, 143 if isinstance(stop, SIGTERMException) else 130) from stop
            raise
        except KeyboardInterrupt as stop:  # outside of Lightning's loops
            raise self._interrupted(verb, 130) from stop
        except BaseException as stop:
            if self.trainer.received_sigterm:
                raise self._interrupted(verb, 143) from stop
            raise
        finally:
            finish_loggers(self.trainer, getattr(self.result, "summary", {}))

    def _interrupted(self, verb: str, code: int) -> Interrupted:
        where = f"stopped; what was done lies in {shown_path(self.run.path)}"
        if verb == "fit" and (self.run.checkpoints / "last.ckpt").is_file():
            where += f"\ngo on with: lightning run projects/{self.project}/cli.py fit --resume --run {self.run.name}"
        elif self._resumes_by_itself(verb) and any(self.run.artefacts(verb).rglob("*")):
            options = [option for option in extract(self.command[1:], "--run")[0] if option != "--resume"]
            where += f"\ngo on with: lightning run projects/{self.project}/cli.py {shlex.join(options)} --resume --run {self.run.name}"
        return Interrupted(where, code)

    def _resumes_by_itself(self, verb: str) -> bool:
        """Tell whether a verb goes on from what it kept, rather than from a checkpoint of Lightning's."""
        return verb in self._trainer_type.resumable and (verb != "fit" or "ckpt_path" not in inspect.signature(self._trainer_type.fit).parameters)

    def _settings(self) -> dict[str, Any]:
        """Return the verb's merged settings as plain values: seed, trainer, model and data; unset trainer options are left out."""
        # null is a setting too: left out, it would be read back as the default
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_unset=False, skip_link_targets=False, format="yaml"))[self.subcommand]
        settings = {section: dumped[section] for section in OWN_SECTIONS}
        settings["trainer"] |= self._asked  # not what a launcher made of it: the run is to be readable without one
        settings["trainer"] = {name: value for name, value in settings["trainer"].items() if value is not None}
        return settings

    def _conclude(self, verb: str) -> None:
        from shared.report import build_report

        build_report(self.run.path)
        print(f"{verb} is done: results in {shown_path(self.run.path)}, to be looked at in {shown_path(self.run.path / 'report.html')}")
        if following := self._trainer_type.follow_up.get(verb):
            following = following.format(run=self.run.name, config=shown_path(self.run.config_file))
            print(f"next: lightning run projects/{self.project}/cli.py {following}")
