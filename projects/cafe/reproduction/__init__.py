"""The tables of `reproduce`, by name."""

from projects.cafe.reproduction import attacks, conditions, defences, modes, sizes, steps, tolerance

TABLES = {
    "attacks": attacks.TABLE,
    "conditions": conditions.TABLE,
    "steps": steps.TABLE,
    "tolerance": tolerance.TABLE,
    "defences": defences.TABLE,
    "modes": modes.TABLE,
    "sizes": sizes.TABLE,
}
