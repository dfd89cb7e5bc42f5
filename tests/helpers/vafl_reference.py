"""Algorithms 1 and 2 of VAFL as they stand: dictionaries, autograd, one record at a time, and ages by equation 3."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch.nn import functional as F

from projects.vafl.federation import Setting
from projects.vafl.module import build_model
from projects.vafl.settings import Delays, Protection, Protocol
from projects.vafl.simulator import Simulator
from projects.vafl.uploads import Selection, UploadPolicy

FEATURES = (3, 4, 5)


def drawn(records=40, features=FEATURES, classes=3):
    """Return blocks and labels that a linear model can learn."""
    draw = torch.Generator().manual_seed(7)
    blocks = [torch.randn(records, width, generator=draw) for width in features]
    weights = torch.randn(sum(features), classes, generator=draw)
    return blocks, (torch.cat(blocks, 1) @ weights).argmax(1)


def simulator(
    net="linear",
    blocks=None,
    labels=None,
    batch=4,
    lr=0.3,
    server_lr=None,
    l2=0.0,
    step_rule="constant",
    seed=3,
    delays=None,
    protection=None,
    **protocol,
):
    """Return a simulator of a small federation, on drawn records unless some are given."""
    if blocks is None:
        blocks, labels = drawn()
    protection = Protection(**(protection or {}))
    hidden = [6] if net == "mlp" else None
    shapes = [list(block.shape[1:]) for block in blocks]
    model = build_model(shapes, int(labels.max()) + 1, net, None, hidden, "auto", None, protection.clip, seed)
    setting = Setting(Protocol(**protocol), Delays(**(delays or {})), protection, batch, lr, server_lr, step_rule, l2, seed)
    return Simulator(model, blocks, labels, setting)


def played(federation, updates, seconds=float("inf")):
    """Run a simulator; returns its events."""
    events = []
    federation.run(seconds, updates, events.append)
    return events


def selections(federation):
    """Return each client's stream of rows, as functions of the cycle."""
    own, widths, records = federation.setting, federation.server.head.widths, federation.server.records
    policy, bits = UploadPolicy.parse(own.protocol.uploads), own.protocol.message_bits
    return [
        Selection(policy, records, own.batch, width * bits // 8 + 4, own.seed, client, own.protocol.is_shared).rows
        for client, width in enumerate(widths)
    ]


class Reference:
    """A federation that takes the clients in the order in which it is told.

    Attributes:
        used: for each answered message, the ages of the others' embeddings behind it.
    """

    def __init__(self, model, blocks, labels, rows, lr, server_lr, l2=0.0, order="upload_first", initial="all"):
        self.model, self.blocks, self.labels, self.rows = copy.deepcopy(model), blocks, labels, rows
        self.lr, self.server_lr, self.l2, self.order = lr, server_lr, l2, order
        self.clients, self.records = range(len(blocks)), range(len(labels))
        self.cycles, self.used = [0 for _ in self.clients], []
        widths = model.head.widths
        self.table = [torch.zeros(len(labels), width) for width in widths]
        self.age = {(m, n): 0 for m in self.clients for n in self.records}
        for m in self.clients:
            if initial == "all":
                self.upload(m, self.records)
            if order == "query_first":
                self.upload(m, self.selected(m))

    def selected(self, m):
        return np.concatenate(self.rows[m](self.cycles[m])).tolist()

    def embed(self, m, rows):
        return self.model.bottoms[m](self.blocks[m][list(rows)])

    def upload(self, m, rows):
        with torch.no_grad():
            self.table[m][list(rows)] = self.embed(m, rows)
        self.age.update({(m, n): 0 for n in rows})

    def query(self, m, batch):
        """Return the gradients for client m's embeddings and for theta_0 (equation 2)."""
        leaves = [self.table[j][batch].requires_grad_() for j in self.clients]
        loss = F.cross_entropy(self.model.head(torch.cat(leaves, 1)), self.labels[batch])
        self.used.append([self.age[j, n] for j in self.clients if j != m for n in batch])
        own, *head = torch.autograd.grad(loss, [leaves[m], *self.model.head.parameters()])
        return own, head

    def step(self, clients):
        """Take one update of the server, with one client (Algorithm 1) or several (Algorithm 2)."""
        batches = {m: self.rows[m](self.cycles[m])[0].tolist() for m in clients}
        if self.order == "upload_first":
            for m in clients:
                self.upload(m, self.selected(m))
        answers = {m: self.query(m, batches[m]) for m in clients}
        for m in clients:
            parameters = list(self.model.bottoms[m].parameters())
            self.descend(parameters, torch.autograd.grad(self.embed(m, batches[m]), parameters, answers[m][0]), self.lr, self.l2)
            self.cycles[m] += 1
        heads = zip(*(head for _, head in answers.values()), strict=True)
        self.descend(self.model.head.parameters(), [torch.stack(some).mean(0) for some in heads], self.server_lr, 0.0)
        for key in self.age:  # equation 3: what came in this step is 1 in the next
            self.age[key] += 1
        if self.order == "query_first":
            for m in clients:
                self.upload(m, self.selected(m))

    @staticmethod
    def descend(parameters, gradients, lr, l2):
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter -= lr * (gradient + l2 * parameter)
