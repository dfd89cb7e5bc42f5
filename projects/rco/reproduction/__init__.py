"""The tables of `reproduce`, by name."""

from projects.rco.reproduction import choices, pairings, parity

TABLES = {
    "parity": parity.TABLE,
    "settings": parity.SETTINGS,
    "anchors": choices.TABLE,
    "budgets": choices.BUDGET,
    "losses": pairings.TABLE,
    "digits": pairings.DIGIT,
}
