"""VAFL: vertical federated learning in which no client waits for another, simulated or in processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.vafl.data import VerticalRecords
from projects.vafl.module import VerticalFederation
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.vafl.accounting import Accounted
    from projects.vafl.fitting import Trained


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "launch", "serve", "join", "reproduce"})
    begins = frozenset({"privacy"})
    links = MappingProxyType({"data.shapes": "model.shapes", "data.classes": "model.classes"})
    files = frozenset({"data.root"})
    reads = frozenset({"path"})
    resumable = frozenset({"fit", "launch", "serve", "join", "reproduce"})
    follow_up = MappingProxyType({"fit": "test", "launch": "test", "test": "privacy"})

    def fit(self, model: VerticalFederation, datamodule: VerticalRecords, ckpt_path: str | None = None) -> Trained | None:  # type: ignore[override]
        """Train the federation in simulated time, or its centralised baseline.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        if model.protocol.algorithm == "centralised":
            super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
            return None
        from projects.vafl.fitting import simulate
        from shared.distributed import in_one_process

        in_one_process(self)
        return simulate(self, model, datamodule, ckpt_path)

    def launch(
        self,
        model: VerticalFederation,
        datamodule: VerticalRecords,
        transport: Literal["gloo", "tcp"] = "gloo",
        clock: Literal["wall", "virtual"] = "wall",
        port: int = 0,
        silence: float = 10.0,
    ) -> Trained:
        """Train in processes on this machine: a server and all clients, which wait as model.delays says.

        Args:
            model: supplied.
            datamodule: supplied.
            transport: gloo or tcp.
            clock: wall (whoever comes first is served first, in real seconds) or virtual (the order and the numbers of fit).
            port: that the server listens at; 0 is a free one.
            silence: seconds without a sign of life after which a client counts as gone; the others go on without it.
        """
        from projects.vafl.launching import launch
        from shared.distributed import in_one_process

        in_one_process(self)
        return launch(self, model, datamodule, transport, clock, port, silence)

    def serve(
        self,
        model: VerticalFederation,
        datamodule: VerticalRecords,
        host: str = "127.0.0.1",
        port: int = 29400,
        transport: Literal["gloo", "tcp"] = "gloo",
        clock: Literal["wall", "virtual"] = "wall",
        secret: str | None = None,
        silence: float = 10.0,
        patience: float = 600.0,
    ) -> Trained:
        """Be the server of a federation whose clients join from other processes or machines; it holds the labels only.

        Args:
            model: supplied.
            datamodule: supplied.
            host: address to listen at; 127.0.0.1 is reached from this machine only.
            port: to listen at.
            transport: gloo (both sides must reach each other) or tcp (clients must reach this port).
            clock: wall (whoever comes first is served first) or virtual (the order and the numbers of fit).
            secret: that clients must know to join; null takes that of the variable VAFL_SECRET, which others cannot read off the list of processes,
                or else everyone. Nothing is encrypted: use a tunnel between machines.
            silence: seconds without a sign of life after which a client counts as gone; the others go on without it.
            patience: seconds to wait for all clients to join, and for a client without which nothing can go on.
        """
        from projects.vafl.launching import serve
        from shared.distributed import in_one_process

        in_one_process(self)
        return serve(self, model, datamodule, host, port, transport, clock, secret, silence, patience)

    def join(
        self,
        model: VerticalFederation,
        datamodule: VerticalRecords,
        party: int,
        host: str = "127.0.0.1",
        port: int = 29400,
        transport: Literal["gloo", "tcp"] = "gloo",
        clock: Literal["wall", "virtual"] = "wall",
        secret: str | None = None,
        silence: float = 10.0,
        patience: float = 600.0,
    ) -> None:
        """Take part in a federation as one client, with one's own part of the records: `join 3 --run bank`.

        A client that was killed comes back with --resume; it keeps its net, and its noise is fresh.

        Args:
            model: supplied.
            datamodule: supplied.
            party: number of this client, from 0.
            host: address of the server.
            port: of the server.
            transport: the server's.
            clock: the server's; in virtual time the noise is the simulator's, and protects nothing.
            secret: the server's; null takes that of the variable VAFL_SECRET.
            silence: seconds without a sign of life after which the server counts as gone, and is sought anew.
            patience: seconds to seek the server.
        """
        from projects.vafl.launching import join
        from shared.distributed import in_one_process

        in_one_process(self)
        join(self, model, datamodule, party, host, port, transport, secret, silence, patience, clock)

    def privacy(
        self,
        model: VerticalFederation,
        datamodule: VerticalRecords,
        epsilon: float | None = None,
        releases: int | None = None,
    ) -> Accounted:
        """Account for what the latest training has released, or plan the noise for a target: mu and (epsilon, delta), per record, honestly.

        Args:
            model: supplied.
            datamodule: supplied.
            epsilon: target, at protection.delta: the noise that it takes is told.
            releases: planned releases of a record; null takes those of the training.
        """
        from projects.vafl.accounting import account
        from shared.distributed import in_one_process

        in_one_process(self)
        return account(self, model, datamodule, epsilon, releases)

    def test(self, model: VerticalFederation, datamodule: VerticalRecords, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Judge the trained nets by the test records: with all clients, with the noise of model.protection, and without each client in turn.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to use: last or a file; null is the run's last.
        """
        from projects.vafl.predicting import log_quality, with_all_nets

        super().test(with_all_nets(model, ckpt_path), datamodule=datamodule, verbose=False)
        log_quality(self)

    def predict(  # type: ignore[override]
        self, model: VerticalFederation, datamodule: VerticalRecords, path: str | None = None, ckpt_path: str | None = None
    ) -> None:
        """Classify new records, or the test records, with all parties' nets: `predict FOLDER`; writes classes and probabilities as a table.

        Args:
            model: supplied.
            datamodule: supplied.
            path: new records, without labels: of data.source parties a folder with party-0.csv, party-1.csv ... (of all parties, or of some),
                of table a CSV file; null is the test records.
            ckpt_path: checkpoint to use: last or a file; null is the run's last.
        """
        from projects.vafl.predicting import log_predictions, predict_unseen, with_all_nets
        from shared.distributed import in_one_process

        whole = with_all_nets(model, ckpt_path)
        if path is None:
            log_predictions(self, super().predict(whole, datamodule=datamodule), datamodule)
        else:
            in_one_process(self)
            predict_unseen(self, whole, datamodule, path)

    def reproduce(
        self,
        model: VerticalFederation,
        datamodule: VerticalRecords,
        table: Literal["all", "methods", "stragglers", "processes", "crash", "privacy", "control", "deep"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims over seeds on data that are at hand.

        Args:
            model: supplied.
            datamodule: supplied.
            table: methods (time to a target, each at its best step size), stragglers (one client five times slower), processes (the same in real
                seconds), crash (a client killed and back again), privacy (accuracy against mu), control (uploads, ages, orders, bytes), deep
                (convolutions, LSTMs, MLPs), or all.
            seeds: number of seeds; null is the customary number.
            jobs: computations at the same time, one thread each; null is one a core, or one where there is a GPU.
            quick: one seed, few seconds and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.vafl.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(VerticalFederation, VerticalRecords, Trainer, args)


if __name__ == "__main__":
    main()
