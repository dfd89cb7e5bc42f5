"""CAFE: does this vertical federated learning deployment leak its data, to whom, after how many rounds, and what does a defence cost?"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.cafe.data import FederatedRecords
from projects.cafe.middle import Solver
from projects.cafe.module import FederatedClassifier
from projects.cafe.recovery import Data
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.cafe.attacking import Attacked
    from projects.cafe.auditing import Audited
    from projects.cafe.defending import Defended

START = "start"


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    begins = frozenset({"attack", "defend", "audit"})
    links = MappingProxyType({"data.shapes": "model.shapes", "data.classes": "model.classes"})
    reads = frozenset({"schedule", "state"})
    files = frozenset({"model.bottom", "data.root"})
    repeated = frozenset({"defences"})
    resumable = frozenset({"attack", "defend", "reproduce"})
    follow_up = MappingProxyType({"fit": "test", "test": "attack", "attack": "defend"})

    def fit(self, model: FederatedClassifier, datamodule: FederatedRecords, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train the federated classifier by what its parties upload.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from: last, or a file; null begins anew.
        """
        from shared.distributed import in_one_process

        in_one_process(self)
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)

    def attack(
        self,
        model: FederatedClassifier,
        datamodule: FederatedRecords,
        method: Literal["cafe", "aligned", "dlg", "idlg", "inverting_gradients", "sapag", "batch_norm", "group"] = "cafe",
        state: str = START,
        schedule: str = "uniform",
        rounds: int | None = None,
        lr: float = 0.0,
        window: int | None = None,
        known_labels: bool = False,
        workers: int = 1,
        secure_sum: bool = False,
        adaptive: bool = False,
        solver: Solver = "closed_form",
        inversion: Data = "representation",
        steps: int | None = None,
        step_size: float | None = None,
        restarts: int = 1,
    ) -> Attacked:
        """Recover the records under attack from what the server sees, and write them beside the truth with their PSNR, or RMSE of a table.

        Args:
            model: supplied.
            datamodule: supplied.
            method: cafe; aligned (its ablation); or, on one round: dlg, idlg, inverting_gradients, sapag, batch_norm, group.
            state: which model is attacked: start (as training begins), best or last of the run, or a checkpoint's file.
            schedule: who makes each batch: uniform, epochs, malicious, or a file with the records of each round (CSV, JSON, NPY).
            rounds: recorded rounds, of cafe and aligned; null is a fifth more than there are records (malicious: as many).
            lr: with these, learning rate of Adam that trains the model meanwhile; 0 leaves it as it is.
            window: with these, number of last rounds that are used; null uses all.
            known_labels: tells the attacker the labels; else it recovers them.
            workers: of horizontal learning, with whole records each (data.parties=1); 1 is vertical learning.
            secure_sum: shows the server only the sum of the workers' gradients.
            adaptive: undoes fake gradients by their ranks first, with records of the attacker's own.
            solver: of cafe's steps I and II: closed_form, sgd_adam_nested or sgd_adam_single.
            inversion: cafe's step III: representation, or reference (round by round, with all terms).
            steps: of step III, or of the other methods; null is 150 (20000 with reference), or each method's own number.
            step_size: learning rate of step III; null is 0.05, or with reference 0.01 (colour: 0.02).
            restarts: runs of a method on one round, of which the one with the lowest objective counts.
        """
        from projects.cafe.attacking import attack, settings
        from shared.distributed import in_one_process

        in_one_process(self)
        watch = {"schedule": schedule, "rounds": rounds, "lr": lr, "window": window, "known_labels": known_labels, "workers": workers}
        cafe = {"solver": solver, "data": inversion, "steps": steps, "lr": step_size}
        campaign = settings(datamodule, method, watch | {"secure_sum": secure_sum}, cafe, restarts, adaptive)
        return attack(self, model, datamodule, campaign, state)

    def defend(
        self,
        model: FederatedClassifier,
        datamodule: FederatedRecords,
        defences: list[str] | None = None,
        rounds: int = 300,
        recorded: int | None = None,
        steps: int = 150,
        delta: float = 1e-5,
    ) -> Defended:
        """Weigh defences, with one seed: the accuracy that each leaves, what CAFE and an attacker who knows it recover, and one score of both.

        Args:
            model: supplied.
            datamodule: supplied.
            defences: each as model.defence is written, the option once for each; null is a choice of all kinds, and model.defence.
            rounds: of training, with model.lr and data.batch_size, for the accuracy.
            recorded: rounds that CAFE records (of noise the attacker who knows it records 3 times as many); null is a fifth more than records.
            steps: of CAFE's step III.
            delta: chance of breaking epsilon, which the PRV accountant finds for all uploads of all parties, every round counting fully (q = 1).
        """
        from projects.cafe.defending import defend
        from shared.distributed import in_one_process

        in_one_process(self)
        return defend(self, model, datamodule, defences, rounds, recorded, steps, delta)

    def audit(
        self,
        model: FederatedClassifier,
        datamodule: FederatedRecords,
        schedule: str = "uniform",
        rounds: int | None = None,
        lr: float | None = None,
        state: str = START,
        steps: int = 150,
        sample: int = 40,
    ) -> Audited:
        """Audit a deployment: which records leak, after how many rounds? Exit code 0 none found, 3 some leak, 4 undecided; errors exit with 1 or 2.

        Give your own net with --model.bottom file.py:function, your records or stand-ins with --data.source, your log of batches with --schedule.
        Undecided are records that the rounds settle, but that the attacks tried here did not bring back: a stronger one may. None found is no proof:
        CAFE and what single rounds show by themselves are tried, nothing else.

        Args:
            model: supplied.
            datamodule: supplied.
            schedule: who makes each batch: uniform, epochs, malicious, or a file with the records of each round (CSV, JSON, NPY).
            rounds: rounds of the deployment; null is all of the file, or a fifth more than there are records (malicious: as many).
            lr: learning rate of the deployment's Adam, which moves the model meanwhile; 0 lets it stand still, null is model.lr.
            state: which model the rounds begin with: start (as training begins), best or last of the run, or a checkpoint's file.
            steps: of step III, which shows how much of a record its representation gives away.
            sample: records at most that step III is tried on.
        """
        from projects.cafe.auditing import Deployment, audit
        from projects.cafe.trials import Effort
        from shared.distributed import in_one_process

        in_one_process(self)
        effort, lr = Effort(steps, sample, datamodule.seed), model.hparams.lr if lr is None else lr
        return audit(self, model, datamodule, Deployment(schedule, rounds, datamodule.batch_size, lr, state, effort, datamodule.seed))

    def predict(self, model: FederatedClassifier, datamodule: FederatedRecords, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Classify the test records with a trained model, and write the classes with their probabilities as a table.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to use: best, last or a file; null is the run's last.
        """
        from projects.cafe.predicting import log_predictions

        log_predictions(self, super().predict(model, datamodule=datamodule, ckpt_path=ckpt_path), datamodule)

    def reproduce(
        self,
        model: FederatedClassifier,
        datamodule: FederatedRecords,
        table: Literal["all", "attacks", "conditions", "steps", "tolerance", "defences", "modes", "sizes"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims over seeds on data that are at hand.

        Args:
            model: supplied.
            datamodule: supplied.
            table: attacks (CAFE beside its rivals), conditions (when it works), steps (closed form, descent, and each term), tolerance (a model that
                trains, noise), defences (what they cost), modes (tables, horizontal learning, other pictures), sizes (more records), or all.
            seeds: number of seeds; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, few records and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.cafe.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(FederatedClassifier, FederatedRecords, Trainer, args)


if __name__ == "__main__":
    main()
