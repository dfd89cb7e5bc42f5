"""Sides of a link in processes of their own."""

from __future__ import annotations

import time

from projects.vafl.joining import Listener, connect
from projects.vafl.links import Transport


def echo(transport: Transport, port: int) -> None:
    """Send every frame back until stopped."""
    with connect(transport, "127.0.0.1", port, 30) as link:
        while (frame := link.receive(60)).kind != "stop":
            link.send(frame)


def serve(transport: Transport, port: int) -> None:
    """Take one client and keep silent."""
    with Listener(transport, port=port) as listener, listener.accept(60):
        time.sleep(60)
