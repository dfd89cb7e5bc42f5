"""The tables of `reproduce`, by name."""

from projects.rco.reproduction import choices, pairings, parity, tiles

TABLES = {
    "parity": parity.TABLE,
    "settings": parity.SETTINGS,
    "anchors": choices.TABLE,
    "budgets": choices.BUDGET,
    "losses": pairings.TABLE,
    "tiles": tiles.TABLE,
    "digits": pairings.DIGIT,
}
