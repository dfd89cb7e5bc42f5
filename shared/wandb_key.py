"""Where a W&B API key stands, without importing wandb and without ever asking for one."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlparse


def wandb_key_source() -> str | None:
    """Say where a W&B API key stands, `WANDB_API_KEY` or `netrc`; None if there is none."""
    if os.environ.get("WANDB_API_KEY"):
        return "WANDB_API_KEY"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return "netrc" if netrc.netrc().authenticators(host) else None
    except (OSError, netrc.NetrcParseError):
        return None
