"""Scores computed in each of several processes, for comparison with one process."""

import json
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from shared.pruning import Activations, BatchTaylor, GroupIndex, fisher


def loss_of(network, batch):
    return F.cross_entropy(network(batch[0]), batch[1])


def small_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def scores_of_rank(rank, world, index, averaged=False):
    """Score the small network from every `world`-th sample; `averaged` leaves the gradients that DistributedDataParallel would."""
    net = small_network()
    data, labels = torch.randn(24, 6), torch.randint(3, (24,))
    batches = [(data[rows], labels[rows]) for rows in (torch.arange(start, start + 8)[rank::world] for start in (0, 8, 16))]
    found = {}
    for form in ("square", "sum", "abs"):
        collector = BatchTaylor(index, net, form)
        for batch in batches:
            loss_of(net, batch).backward()
            for parameter in net.parameters() if averaged else ():
                dist.all_reduce(parameter.grad)
                parameter.grad /= world
            collector.step()
        found[form] = dict(collector.scores())
    with Activations(index, net, gradients=True) as seen:
        for images, targets in batches:
            F.cross_entropy(net(images), targets, reduction="sum").backward()
    found |= {"activation": dict(seen.activation()), "wanda": dict(seen.wanda()), "gates": dict(seen.taylor("abs"))}
    return found | {"fisher": fisher(net, loss_of, batches)}


def compare_with_one(rank, world, folder):
    """Fail unless the scores over all processes are those in `folder`/expected.pt."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    expected = torch.load(f"{folder}/expected.pt", weights_only=True)
    index = GroupIndex.from_json(json.loads(Path(folder, "index.json").read_text()))
    for averaged in (False, True):
        for name, scores in scores_of_rank(rank, world, index, averaged).items():
            for group, values in scores.items():
                torch.testing.assert_close(values, expected[name][group], rtol=1e-4, atol=1e-7, msg=lambda text: f"{name} of {group}: {text}")  # noqa: B023
    dist.destroy_process_group()
    threads = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in threads), f"the group outlives its end, and may abort the process at exit: {threads}"
