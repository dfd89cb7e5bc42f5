"""What tests run as jobs in processes of their own; it imports little, for each process does."""

import os


def square(number):
    """The square of a number that is not negative, and the process that computed it."""
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number**2, os.getpid()


def rows_of(folder, setting, seed):
    """Make the row of a table, and count how often that is done."""
    with (folder / "calls").open("a") as file:
        file.write(f"{setting}{seed}\n")
    return [{"setting": setting, "seed": seed, "value": 10.0 * (setting == "b") + seed}]
