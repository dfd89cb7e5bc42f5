"""VAFL beside straightforward code: the simulator's events, its growth, and the processes' messages.

uv run python tests/bench/bench_vafl.py [--parts simulator,sizes,bytes,messages,processes] [--rounds 5] [--quick]

simulator: server updates a second of process time on scikit-learn's digits (8 clients with a row of pixels each, softmax regression on the sum of 10
numbers a client, batches of 14), by what goes along with each batch, beside a straightforward version of Algorithm 1: a dictionary with a tensor for
each client and record, stacked record by record, and PyTorch's autograd and SGD in every event. Both play the same events; the largest difference of
their parameters is printed.
sizes: updates a second and peak memory by records and by clients, random blocks of 8 numbers a client, a tenth of the records with each batch.
bytes: what an update costs on the line, by upload policy and by bits of a number.
messages: how long a message takes to another process and back, by transport.
processes: a server and 8 clients on this machine without injected delays: updates a second.

Contestants run in turns after one round to warm up, and medians are printed: of the process's CPU time with one thread (`messages`, `processes`: of
the wall's clock, with all cores). Peak memory is VmHWM (Linux).
"""

import argparse
import multiprocessing
import statistics
import tempfile
import threading
import time
from pathlib import Path

import torch
from timing import record, table, timed
from torch import nn

from projects.vafl.bottoms import LinearBottom
from projects.vafl.data import VerticalRecords
from projects.vafl.federation import Setting
from projects.vafl.frames import Frame
from projects.vafl.heads import SumHead
from projects.vafl.joining import Listener, connect
from projects.vafl.model import VerticalModel
from projects.vafl.processes import play
from projects.vafl.serving import Plan
from projects.vafl.settings import Delays, Protocol
from projects.vafl.simulator import Simulator
from shared.seeding import generator

CLASSES = 10
LR, L2 = 2.0, 1e-3
POLICIES = ("batch", "extra:fraction=0.1", "all")


def digits():
    """Return the blocks of scikit-learn's digits, and their labels."""
    data = VerticalRecords()
    data.setup()
    return data.train.blocks, data.train.labels


def simulator_of(blocks, labels, uploads, batch=14, bits=32):
    model = VerticalModel([LinearBottom(block.shape[1], CLASSES) for block in blocks], SumHead([CLASSES] * len(blocks), CLASSES))
    setting = Setting(Protocol(uploads=uploads, message_bits=bits), Delays(), batch=batch, lr=LR, l2=L2)
    return Simulator(model, blocks, labels, setting)


class Straightforward:
    """Algorithm 1 as one writes it down: one tensor a client and record, and autograd in every event."""

    def __init__(self, blocks, labels):
        self.blocks, self.labels = blocks, labels
        self.nets = [nn.Linear(block.shape[1], CLASSES, bias=False) for block in blocks]
        for net in self.nets:
            nn.init.zeros_(net.weight)
        self.bias = nn.Parameter(torch.zeros(CLASSES))
        self.optimizers = [torch.optim.SGD(net.parameters(), lr=LR, weight_decay=L2) for net in self.nets]
        self.server = torch.optim.SGD([self.bias], lr=LR / len(blocks))
        with torch.no_grad():
            self.table = [{row: net(block[row]) for row in range(len(labels))} for net, block in zip(self.nets, blocks, strict=True)]

    def play(self, events):
        """Play events, each a client, the records of its batch, and the other records that it uploads, embedded when the cycle begins."""
        for client, batch, others in events:
            net, block = self.nets[client], self.blocks[client]
            with torch.no_grad():
                for row in others:
                    self.table[client][row] = net(block[row])
            mine = net(block[batch])  # with its graph, for the client's step
            for place, row in enumerate(batch):
                self.table[client][row] = mine[place].detach()
            leaves = [torch.stack([own[row] for row in batch]).requires_grad_() for own in self.table]
            loss = nn.functional.cross_entropy(torch.stack(leaves).sum(0) + self.bias, self.labels[batch])
            self.server.zero_grad()
            loss.backward()
            self.server.step()
            self.optimizers[client].zero_grad()
            mine.backward(leaves[client].grad)
            self.optimizers[client].step()


def events_of(simulator, count):
    """Return the first events of a simulation: each client, its batch and what else it uploads."""
    found = []

    def note(event):
        found.extend((client, cycles[client]) for client in event.clients)
        cycles[event.clients[0]] += 1

    cycles = [0] * len(simulator.clients)
    simulator.run(updates=count, watch=note)
    return [(client, *(rows.tolist() for rows in simulator.clients[client].selection.rows(cycle))) for client, cycle in found]


def bench_simulator(rounds, quick):
    blocks, labels = digits()
    count = 40 if quick else 400
    rows = []
    for policy in POLICIES:
        events = events_of(simulator_of(blocks, labels, policy), count)
        last = {}

        def ours(policy=policy, last=last):
            last["ours"] = simulator_of(blocks, labels, policy)
            last["ours"].begin()
            return timed(lambda: last["ours"].run(updates=count))[1]

        def plain(events=events, last=last):
            last["plain"] = Straightforward(blocks, labels)
            return timed(lambda: last["plain"].play(events))[1]

        times = {name: [] for name in ("ours", "plain")}
        for number in range((1 if quick else rounds) + 1):
            for name, job in (("ours", ours), ("plain", plain)):
                seconds = job()
                if number:
                    times[name].append(seconds)
        mine, theirs = (statistics.median(times[name]) for name in ("ours", "plain"))
        nets = zip(last["ours"].model.bottoms, last["plain"].nets, strict=True)
        reason = "a few dozen small operations of torch an update are left on both sides"
        setting, beside = f"digits, 8 clients, uploads {policy}", "a tensor a record, autograd an event"
        record("simulator", setting, count / mine, count / theirs, beside, unit="updates/s", target=5, reason=reason)
        difference = max(float((net.weight - other.weight).detach().abs().max()) for net, other in nets)
        rows.append([policy, f"{count / mine:.0f}", f"{count / theirs:.0f}", f"{theirs / mine:.1f}", f"{difference:.0e}"])
    table("uploads | ours, updates/s | straightforward | times as fast | largest difference of parameters", rows)


def peak(queue, records, clients):
    """Tell a simulator's updates a second and its peak memory."""
    torch.set_num_threads(1)
    chance = generator(0, "bench")
    blocks = [torch.randn(records, 8, generator=chance) for _ in range(clients)]
    labels = torch.randint(CLASSES, (records,), generator=chance)
    simulator = simulator_of(blocks, labels, "extra:fraction=0.1", batch=max(1, records // 100))
    simulator.begin()
    before = memory("VmRSS")
    count = 300
    queue.put((count / timed(lambda: simulator.run(updates=count))[1], memory("VmHWM") - before, simulator.server.table.nbytes / 2**20))


def memory(field):
    """Return a line of the process's status in MiB: VmRSS, what it holds, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def bench_sizes(rounds, quick):
    context, rows = multiprocessing.get_context("spawn"), []
    for records, clients in [(1437, 8)] if quick else [(1437, 8), (14_370, 8), (143_700, 8), (14_370, 32)]:
        queue = context.Queue()
        process = context.Process(target=peak, args=(queue, records, clients))
        process.start()
        rate, more, size = queue.get()
        process.join()
        rows.append([str(records), str(clients), str(records // 100 + records // 10), f"{rate:.0f}", f"{size:.0f}", f"{more:.0f}"])
    table("records | clients | embeddings an update | updates/s | table, MiB | peak MiB more while running", rows)


def bench_bytes(rounds, quick):
    blocks, labels = digits()
    rows = []
    for policy in (*POLICIES, "oldest:bytes=2000"):
        for bits in (32, 16):
            simulator = simulator_of(blocks, labels, policy, bits=bits)
            simulator.begin()
            before = simulator.costs.up
            simulator.run(updates=50 if quick else 1000)
            updates = simulator.server.updates
            rows.append([policy, str(bits), f"{(simulator.costs.up - before) / updates:.0f}", f"{simulator.costs.down / updates:.0f}"])
    table("uploads | bits | bytes up an update | bytes down", rows)


TRANSPORTS = ("gloo", "tcp")
SIZES = (64, 6_000, 1_000_000)


def echo(transport, port, rounds, queue):
    """Be the client that sends messages and waits for each to come back; tells the median microseconds by size."""
    torch.set_num_threads(1)
    with connect(transport, "127.0.0.1", port) as link:
        found = []
        for size in SIZES:
            frame, times = Frame("upload", {}, {"embeddings": torch.zeros(size // 4)}), []
            for _ in range(rounds):
                began = time.perf_counter()
                link.send(frame)
                link.receive(10.0)
                times.append(time.perf_counter() - began)
            found.append(1e6 * statistics.median(times))
        queue.put(found)


def answer(link, count):
    for _ in range(count):
        link.send(link.receive(60.0))


def bench_messages(rounds, quick):
    context, rows, count = multiprocessing.get_context("spawn"), [], 20 if quick else 300
    for transport in TRANSPORTS:
        queue = context.Queue()
        with Listener(transport) as listener:
            process = context.Process(target=echo, args=(transport, listener.port, count, queue))
            process.start()
            link = listener.accept(120.0)
            thread = threading.Thread(target=answer, args=(link, count * len(SIZES)))
            thread.start()
            times = queue.get()
            thread.join()
            process.join()
        rows.append([transport, *(f"{micros:.0f}" for micros in times), f"{2 * SIZES[-1] / times[-1]:.0f}"])
    table("transport | 64 bytes, us | 6 kB, us | 1 MB, us | MB/s at 1 MB", rows)


def bench_processes(rounds, quick):
    data, rows = VerticalRecords(), []
    data.setup()
    for transport in TRANSPORTS:
        for uploads in ("batch",) if quick else ("batch", "extra:fraction=0.1"):
            model = VerticalModel([LinearBottom(8, CLASSES) for _ in range(8)], SumHead([CLASSES] * 8, CLASSES))
            setting = Setting(Protocol(uploads=uploads), Delays("none"), lr=LR, l2=L2)
            plan = Plan(None, 200 if quick else 4000, every=1e6, patience=120.0)
            with tempfile.TemporaryDirectory() as folder:
                served = play(setting, model, data.train, data.test, plan, Path(folder), transport)
            up, down = served.traffic
            first = 8 * 1437 * 44  # the table is filled before
            updates = served.server.updates
            rows.append([transport, uploads, f"{updates / served.time:.0f}", f"{(up - first) / updates:.0f}", f"{down / updates:.0f}"])
    table("transport | uploads | updates/s, 8 clients | bytes on the wire up an update | down", rows)


BENCHES = {"simulator": bench_simulator, "sizes": bench_sizes, "bytes": bench_bytes, "messages": bench_messages, "processes": bench_processes}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(BENCHES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for part in options.parts.split(","):
        print(f"\n{part}")
        BENCHES[part](options.rounds, options.quick)


if __name__ == "__main__":
    main()
