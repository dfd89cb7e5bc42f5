"""The tables of `reproduce`, by name."""

from projects.rco.reproduction import parity, settings

TABLES = {"parity": parity.TABLE, "settings": settings.TABLE}
