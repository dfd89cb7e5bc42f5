"""The tables of `reproduce`, by name."""

from projects.vafl.reproduction import control, crash, deep, methods, privacy, processes, stragglers

TABLES = {
    "methods": methods.TABLE,
    "stragglers": stragglers.TABLE,
    "processes": processes.TABLE,
    "crash": crash.TABLE,
    "privacy": privacy.TABLE,
    "control": control.TABLE,
    "deep": deep.TABLE,
}
