"""The teacher as the student meets it: one frozen network that takes on the states of a route, one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from projects.rco.anchors import Route
from shared.checkpoints import describe_mismatch


class AnchorNet:
    """A frozen network in the state of an anchor, phi_t(.; W_t^e): no gradient, and its own stored norms.

    It is no `nn.Module`, so that its network is in no checkpoint, optimiser or exchange between processes of the module that owns it. The network
    stays in evaluation mode whatever `train` is called on. However many anchors a route has, at most two states are in memory: the present one and
    one that was read ahead.

    Args:
        net: the teacher's network; it is frozen, and its weights are replaced.
        route: its states.
    """

    def __init__(self, net: nn.Module, route: Route) -> None:
        self.net, self.route = net.requires_grad_(False).eval(), route
        self.epoch: int | None = None
        for part in net.modules():
            vars(part)["train"] = partial(_stay, part)
        self._pool: ThreadPoolExecutor | None = None
        self._ahead: tuple[int, Future[dict[str, Tensor]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_pool": None, "_ahead": None}  # threads are neither copied nor sent to other processes

    def at(self, epoch: int) -> nn.Module:
        """Put the network into the state after `epoch`, in place.

        Returns:
            The network.

        Raises:
            ValueError: if that state is not stored, is damaged, or does not fit the network, which then stays as it was.
            FileNotFoundError: if its file has gone.
        """
        if epoch != self.epoch:
            tensors, own = self._take(epoch), self.net.state_dict()
            self._compare(epoch, tensors)
            with torch.no_grad():
                for name, tensor in own.items():
                    tensor.copy_(tensors[name], non_blocking=True)
            self.epoch = epoch
        return self.net

    def check(self, epochs: Iterable[int]) -> None:
        """See, before hours of training, that the stored states after some epochs are whole and of this network; reads no weights.

        Raises:
            ValueError: if one is damaged, or does not fit.
        """
        for epoch in epochs:
            self._compare(epoch, self.route.shapes(epoch))

    def _compare(self, epoch: int, tensors: dict[str, Tensor]) -> None:
        if differences := describe_mismatch(self.net.state_dict(), tensors):
            raise ValueError(f"the state after epoch {epoch} in {self.route.folder} is of another network:\n{differences}")

    def prefetch(self, epoch: int) -> None:
        """Begin to read the state after `epoch` beside the training; a failure is told by `at`. A state read ahead before is forgotten."""
        if epoch == self.epoch or (self._ahead is not None and self._ahead[0] == epoch):
            return
        self._forget()
        self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="anchor")
        self._ahead = (epoch, self._pool.submit(self._read, epoch))

    def to(self, device: torch.device | str, memory_format: torch.memory_format | None = None) -> AnchorNet:
        """Move the network, and lay out its convolutions' weights, as `nn.Module.to` does."""
        self.net.to(device)
        if memory_format is not None:
            self.net.to(memory_format=memory_format)
        return self

    def close(self) -> None:
        """End the reading thread; the network stays usable."""
        self._forget()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _take(self, epoch: int) -> dict[str, Tensor]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == epoch:
            return ahead[1].result()
        if ahead is not None:
            ahead[1].cancel()
        return self._read(epoch)

    def _read(self, epoch: int) -> dict[str, Tensor]:
        tensors = self.route.tensors(epoch)
        if any(tensor.is_cuda for tensor in self.net.state_dict().values()):
            return {name: tensor.pin_memory() for name, tensor in tensors.items()}  # the copy then runs beside the computation
        return tensors

    def _forget(self) -> None:
        if self._ahead is not None:
            self._ahead[1].cancel()
            self._ahead = None


def _stay(part: nn.Module, mode: bool = True) -> nn.Module:
    """Stand in for `nn.Module.train` of a network that is not trained."""
    return part
