"""The server as a process: it answers whoever comes, goes on without whoever is gone, and takes back whoever returns."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from projects.vafl.attending import Attendance
from projects.vafl.client import Signal, Upload
from projects.vafl.delays import DelaySource
from projects.vafl.examining import Examination
from projects.vafl.federation import Setting
from projects.vafl.frames import Frame, FrameError
from projects.vafl.hub import Arrival, Hub
from projects.vafl.plans import Answer, Plan, Waiting
from projects.vafl.recording import Recorder, Trace
from projects.vafl.server import SANE, Diverged, Server
from projects.vafl.simulator import Event
from projects.vafl.terms import Terms, read_times, read_upload, signal_frame
from projects.vafl.uploads import ROW_BYTES

SAVES_EVERY = 10.0
"""Seconds between two checkpoints."""
CHECKS_EVERY = 0.1
"""Seconds between two looks at what may end the training."""
DEFERRED = 4
"""Uploads of a client at most that wait while embeddings are asked for; an honest one sends two."""


class ServerProcess:
    """Serves until its time is over.

    Args:
        hub: connections.
        server: the core.
        setting: what all have agreed on.
        terms: what clients must agree with.
        plan: how it goes about it.
        recorder: keeps the curve.
        trace: keeps the events.
        labels: of the test records.
        save: writes a checkpoint.
        check: is called several times a second between two steps; may raise what ends the training.

    Attributes:
        time: seconds of the training.
        attendance: who is there.
        longest_gap: longest real seconds between two steps.
        cycles: answered uploads of each client.
        busy: seconds that each client was at work or its messages on the way.
    """

    def __init__(
        self,
        hub: Hub,
        server: Server,
        setting: Setting,
        terms: Terms,
        plan: Plan,
        recorder: Recorder,
        trace: Trace,
        labels: Tensor,
        save: Callable[[dict[str, Any]], None] = lambda _: None,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.hub, self.server, self.setting, self.terms, self.plan = hub, server, setting, terms, plan
        self.recorder, self.trace, self.save, self.check = recorder, trace, save, check
        self.delays = DelaySource(setting.delays, terms.clients, setting.seed)
        self.group = setting.protocol.group(terms.clients)
        self.time, self.longest_gap = 0.0, 0.0
        self.cycles, self.busy = [0] * terms.clients, [0.0] * terms.clients
        self.is_started = False
        self.examination = Examination(recorder, labels, server.head.widths)
        self._is_virtual, self._is_sync = plan.clock == "virtual", setting.protocol.algorithm == "sync"
        self.attendance = Attendance(hub, server, terms, {"clock": plan.clock}, not setting.protocol.fills_table)
        self.attendance.on_loss = self._forget
        self._pool: dict[int, Waiting] = {}
        self._ahead: list[Waiting] = []  # embeddings that are still on their way in virtual time
        self._later: deque[Arrival] = deque()
        self._judging: Future[Any] | None = None
        self._answered: dict[int, Answer] = {}
        self._up, self._down = 0, 0
        self._up_before, self._down_before = 0, 0
        self._began = self._last_step = self._saved = self._checked = time.monotonic()
        self._worker, self._jobs = ThreadPoolExecutor(1, "aside"), list[Future[Any]]()

    # ---- the whole

    def run(self) -> None:
        """Wait for all clients, serve them, judge the outcome, and let them go."""
        if self._has_ended():  # in an earlier process, after which some clients may still want to be let go
            self._gather(self.plan.silence)
            self.is_started = True
        else:
            self._gather()
            self._train()
        end = self.time if self.plan.seconds is None else min(self.time, self.plan.seconds)
        if self.examination.missing is not None or end > self.examination.moment or not self.examination.count:  # else it had ended before
            self._examine(end)
        self.dismiss()

    def _train(self) -> None:
        """Serve from the beginning, or from where an earlier process ended, until the training is over."""
        if self.examination.count == 0 and not self._is_virtual:
            self._examine(0.0)
        self.is_started, self._began = True, time.monotonic() - self.time
        self._last_step = self._saved = time.monotonic()
        self.attendance.begin()
        for number in sorted(self.attendance.ready):
            self._start(number)
        while not self._is_over():
            self._serve()

    @property
    def lost(self) -> int:
        """How often a client was lost."""
        return self.attendance.lost

    def dismiss(self) -> None:
        """Send all clients home, and write a checkpoint."""
        self.attendance.see_off(self.plan.silence)
        self.close()

    def close(self) -> None:
        """Write a last checkpoint, if the training has begun, and end the work that is done aside."""
        if self.is_started:
            self._keep()
        self._worker.shutdown(wait=True)
        for job in self._jobs:
            job.result()

    def _serve(self) -> None:
        """Take what has come, and take a step if enough wait."""
        if not self._is_virtual:
            self.time = time.monotonic() - self._began
            self._examine_in_passing()
        if (group := self._next_group()) is not None:
            if self._is_virtual:
                self._examine_before(group)
                if self._is_over():
                    return
            self._step(group)
        elif (arrival := self._next(min(CHECKS_EVERY, self._until_examination()))) is not None:
            self._take(arrival)
        self._look_around()

    def _look_around(self) -> None:
        now = time.monotonic()
        if now - self._checked >= CHECKS_EVERY:
            self._checked = now
            self.check()
        if now - self._saved >= SAVES_EVERY:
            self._saved = now
            self._keep()

    def _has_ended(self) -> bool:
        """Say whether all updates or seconds are used up."""
        is_done = self.plan.updates is not None and self.server.updates >= self.plan.updates
        return is_done or (self.plan.seconds is not None and self.time >= self.plan.seconds)

    def _is_over(self) -> bool:
        if self._has_ended() or self.attendance.going_on < (self.group if self._is_virtual else 1):
            return True
        self.attendance.check_deserted(self.plan.patience)
        return False

    def _next(self, timeout: float) -> Arrival | None:
        return self._later.popleft() if self._later else self.hub.next(timeout)

    def _aside(self, job: Callable[[], Any]) -> Future[Any]:
        """Do something beside serving, after what was put aside before; errors of earlier work are raised."""
        own = self._worker.submit(job)
        self._jobs.append(own)
        while self._jobs and (self._is_virtual or self._jobs[0].done()):
            self._jobs.pop(0).result()
        return own

    def _forget(self, number: int) -> None:
        self._pool.pop(number, None)

    # ---- joining

    def _gather(self, seconds: float | None = None) -> None:
        """Wait until every client is there and the table is filled, or so long; where a training goes on, nobody is waited for long."""
        begun = time.monotonic()
        goes_on = self.server.updates > 0 and not self._is_virtual
        while missing := self.attendance.missing:
            if (arrival := self._next(CHECKS_EVERY)) is not None:
                self._take(arrival)
            self.check()
            waited = time.monotonic() - begun
            if (goes_on and self.attendance.ready and waited > self.plan.silence) or (seconds is not None and waited > seconds):
                return
            if waited > self.plan.patience:
                names = ", ".join(map(str, missing))
                raise ConnectionError(f"client {names} has not joined within {self.plan.patience:g} s: start it, or give more --patience")

    def _start(self, number: int) -> None:
        """Let a client begin, in synchronous training with the present round; one whose last answer was lost gets that first."""
        fields: dict[str, Any] = {"seconds": self.time}
        if self._is_sync and self._answer_again(number, self.attendance.pending[number]) is None:
            fields["cycle"] = self.server.updates
        self.hub.send(number, Frame("start", fields))

    def _answer_again(self, number: int, cycle: int) -> Frame | None:
        """Return the answer to a cycle that has been answered already."""
        kept, peer = self._answered.get(number), self.hub.peers.get(number)
        if kept is None or peer is None or (kept.incarnation, kept.cycle) != (peer.incarnation, cycle):
            return None
        return self._framed(kept)

    def _framed(self, answer: Answer) -> Frame:
        frame = signal_frame(answer.signal, answer.cycle, answer.start)
        if self._is_sync:
            frame.fields["next"] = self.server.updates
        return frame

    # ---- messages

    def _take(self, arrival: Arrival) -> None:
        """Deal with what has come."""
        peer, frame = arrival.peer, arrival.frame
        if frame is None:
            self.attendance.lose(peer, arrival.reason)
        elif frame.kind == "hello" and peer.number is None:
            self.attendance.admit(peer, frame.fields)
        elif peer.number is None or self.hub.peers.get(peer.number) is not peer:
            peer.end()
        else:
            try:
                self._hear(peer.number, frame, arrival.time)
            except FrameError as error:
                self.attendance.refuse(peer, str(error))
                self.attendance.lose(peer, "its message cannot be used")

    def _hear(self, number: int, frame: Frame, moment: float) -> None:
        if frame.kind == "ready":
            self.attendance.ready.add(number)
            if self.is_started:
                self._start(number)
        elif frame.kind == "bye":
            self.attendance.note_farewell(number, frame)
        elif frame.kind == "evaluated":
            self.examination.note(number, frame)
        elif frame.kind in ("upload", "refreshed"):
            upload = read_upload(frame, number, self.server.records, self.server.head.widths[number], self.setting.batch)
            if len(upload.query):
                self._await_answer(number, frame, upload, moment)
            elif self._is_virtual and upload.cycle >= 0:
                start, arrival = read_times(frame, number)
                self._ahead = [waiting for waiting in self._ahead if waiting.number != number]
                self._ahead.append(Waiting(arrival, number, start, upload))
            else:
                self._up += upload.size
                self.server.store(upload)
                self.attendance.is_filled[number] |= frame.kind == "upload" and upload.cycle < 0  # without those whose budget is spent
        else:
            raise FrameError(f"client {number} sent {frame.kind!r}, which a server does not expect")

    def _await_answer(self, number: int, frame: Frame, upload: Upload, moment: float) -> None:
        """Let an upload wait for its answer; where it was answered already and the answer was lost, send that again."""
        start, arrival = read_times(frame, number)
        if (again := self._answer_again(number, upload.cycle)) is not None:
            self.hub.send(number, again)
            return
        if not self._is_virtual:
            arrival = max(0.0, moment - self._began)
        self._pool[number] = Waiting(arrival, number, min(start, arrival), upload, self.hub.peers[number].incarnation)

    # ---- steps

    def _store_ahead(self, moment: float, number: float) -> None:
        """In virtual time, take the embeddings that have come before a client's message at some moment."""
        for waiting in sorted(self._ahead, key=lambda waiting: waiting.turn):
            if waiting.turn <= (moment, number):
                self._ahead.remove(waiting)
                self._up += waiting.upload.size
                self.server.store(waiting.upload)

    def _next_group(self) -> list[Waiting] | None:
        """Return those whom the next step answers, or None if it must wait."""
        if self._is_virtual:
            needed, enough = self.group, max(self.group, self.attendance.going_on)
        else:
            needed = enough = max(1, min(self.group, len(self.attendance.active)))
        if len(self._pool) < enough:
            return None
        return sorted(self._pool.values(), key=lambda waiting: waiting.turn)[:needed]

    def _step(self, group: list[Waiting]) -> None:
        """Take one step of the core, and answer."""
        chosen = sorted(group, key=lambda waiting: waiting.number)
        for waiting in chosen:
            del self._pool[waiting.number]
        uploads = [waiting.upload for waiting in chosen]
        self._store_ahead(*max(waiting.turn for waiting in chosen))
        begins = max(self.time, *(waiting.arrival for waiting in chosen)) if self._is_virtual else self.time
        seconds = self._refresh(uploads)
        try:
            signals = self.server.step(uploads, checks=True)
        except Diverged as error:
            self._expel(error, chosen)
            return
        if self._is_virtual:
            self.time = begins + seconds + self.setting.delays.server
        self.longest_gap = max(self.longest_gap, time.monotonic() - self._last_step)
        self._last_step = time.monotonic()
        for waiting, signal in zip(chosen, signals, strict=True):
            self._answer(waiting, signal)
        numbers, arrivals, starts = zip(*[(waiting.number, waiting.arrival, waiting.start) for waiting in chosen], strict=True)
        event = Event(self.time, numbers, arrivals, starts, float(self.server.loss), max(signal.age for signal in signals))
        self.recorder.watch(event)
        self.trace.watch(event, self.server.updates)

    def _expel(self, error: Diverged, chosen: list[Waiting]) -> None:
        """Refuse a client whose embeddings would spoil the net, and let the others of the group wait on."""
        if error.size <= SANE:
            raise ValueError(f"{error}, and so no client's alone: lower model.lr or model.server_lr, or give model.protection.clip") from error
        self.server.forget_large(error.client)
        if (peer := self.hub.peers.get(error.client)) is not None:
            self.attendance.refuse(peer, f"{error}; lower model.lr")
            self.attendance.lose(peer, "its embeddings are too large")
        self._pool |= {waiting.number: waiting for waiting in chosen if waiting.number in self.hub.peers and waiting.number not in self._pool}

    def _answer(self, waiting: Waiting, signal: Signal) -> None:
        number, travel = waiting.number, self.setting.delays.down + self.delays.transfer(signal.size)
        answer = self._answered[number] = Answer(waiting.incarnation, waiting.upload.cycle, self.time + travel, signal)
        self.hub.send(number, self._framed(answer))
        self._up, self._down = self._up + waiting.upload.size, self._down + signal.size
        self.cycles[number] += 1
        self.busy[number] += waiting.arrival - waiting.start + travel

    def _refresh(self, uploads: list[Upload]) -> float:
        """Ask for embeddings that are too old, and wait for those who are there; returns the simulated seconds that it takes."""
        there = self.attendance.ready & set(self.hub.peers)
        asked = {number: rows for number, rows in self.server.overdue(uploads).items() if number in there}
        for number, rows in asked.items():
            self.hub.send(number, Frame("refresh", {}, {"rows": torch.from_numpy(rows).int()}))
        seconds, deadline = 0.0, time.monotonic() + self.plan.silence
        while asked and time.monotonic() < deadline:
            arrival = self.hub.next(0.05)
            if arrival is not None and arrival.frame is not None and arrival.frame.kind == "refreshed" and arrival.peer.number in asked:
                before, rows = self._up, asked.pop(arrival.peer.number)
                self._take(arrival)
                if self._up > before:  # its budget may be spent
                    self._down += len(rows) * ROW_BYTES
                    seconds = max(seconds, self.delays.round_trip(len(rows) * ROW_BYTES, self._up - before))
            elif arrival is not None:
                self._take_or_defer(arrival)
                asked = {number: rows for number, rows in asked.items() if number in self.hub.peers}
        for number in asked:
            self.attendance.lose(self.hub.peers[number], f"it was asked for embeddings, and sent none within {self.plan.silence:g} s")
        return seconds

    def _take_or_defer(self, arrival: Arrival) -> None:
        """Deal with what has come in the middle of a step, which no other embeddings must change."""
        is_member = arrival.peer.number is not None and self.hub.peers.get(arrival.peer.number) is arrival.peer
        if arrival.frame is None or not is_member or arrival.frame.kind not in ("upload", "refreshed"):
            self._take(arrival)
        elif sum(other.peer is arrival.peer for other in self._later) >= DEFERRED:
            self.attendance.lose(arrival.peer, "it sends more than it may")
        else:
            self._later.append(arrival)

    # ---- evaluations

    def _until_examination(self) -> float:
        """Return the seconds until something is to be done though nothing comes."""
        if self._is_virtual:
            return CHECKS_EVERY
        moments = [self.examination.due(self.plan.every), *([] if self.plan.seconds is None else [self.plan.seconds])]
        return max(0.001, min(moments) - self.time)

    def _examine_in_passing(self) -> None:
        """Ask for embeddings of the test records when it is time, and judge them when all are there, or the next evaluation is due."""
        missing = self.examination.missing
        is_due = self.time >= self.examination.due(self.plan.every)
        if missing is not None and (is_due or not missing & set(self.hub.peers)):
            self._judging = self._aside(self.examination.conclude(self.server, *self.traffic))
        elif missing is None and is_due and self._judging is not None and not self._judging.done():
            self.examination.skip(self.time)
        elif missing is None and is_due:
            self._ask(self.time)

    def _examine_before(self, group: list[Waiting]) -> None:
        """In virtual time, make all evaluations that lie before the next step."""
        begins = max(self.time, *(waiting.arrival for waiting in group))
        end = float("inf") if self.plan.seconds is None else self.plan.seconds
        while begins > (moment := min(self.examination.due(self.plan.every), end)) or self.examination.count == 0:
            self._store_ahead(moment, float("inf") if moment else -1)
            if moment == end:
                self.time = end
                return
            self._examine(moment)

    def _examine(self, moment: float) -> None:
        """Ask for embeddings of the test records, and wait for those who are there."""
        self._ask(moment)
        deadline = time.monotonic() + self.plan.silence
        while (self.examination.missing or set()) & set(self.hub.peers) and time.monotonic() < deadline:
            if (arrival := self._next(0.05)) is not None:
                self._take(arrival)
        self._aside(self.examination.conclude(self.server, *self.traffic))

    def _ask(self, moment: float) -> None:
        numbers = self.attendance.ready & set(self.hub.peers)
        frame = self.examination.ask(moment, numbers)
        for number in numbers:
            self.hub.send(number, frame)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes up and down so far: what messages say in virtual time, as the simulator counts, else all that went over the wire."""
        if self._is_virtual:
            return self._up, self._down
        up, down = self.hub.traffic
        return self._up_before + up, self._down_before + down

    # ---- going on

    def _keep(self) -> None:
        """Write a checkpoint aside."""
        state = self.state()
        self._aside(lambda: self.save(state | {"curve": list(self.recorder.curve)}))  # with what was put aside before

    def state(self) -> dict[str, Any]:
        """Return what it takes to go on, but for the curve."""
        up, down = self.traffic
        own = {"time": self.time, "up": up, "down": down, "cycles": list(self.cycles), "busy": list(self.busy), "lost": self.attendance.lost}
        own |= {"longest_gap": self.longest_gap}
        answered = {str(number): vars(answer) | {"signal": vars(answer.signal)} for number, answer in self._answered.items()}
        kept = {"server": self.server.state(), "examination": self.examination.state(), "trace": self.trace.state()}
        return (
            own
            | kept
            | {"is_filled": list(self.attendance.is_filled), "answered": answered, "events": [vars(event) for event in self.recorder.events]}
        )

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; clients come back by themselves."""
        self.time, self.cycles, self.busy = state["time"], list(state["cycles"]), list(state["busy"])
        self.attendance.lost, self.longest_gap = state["lost"], state["longest_gap"]
        self._up, self._down = state["up"], state["down"]
        self._up_before, self._down_before = state["up"], state["down"]
        self.attendance.is_filled = list(state["is_filled"])
        self._answered = {int(number): Answer(**kept | {"signal": Signal(**kept["signal"])}) for number, kept in state["answered"].items()}
        self.server.load_state(state["server"])
        self.examination.load_state(state["examination"])
        self.recorder.restore(state["curve"], state["events"])
        self.trace.load_state(state["trace"])
