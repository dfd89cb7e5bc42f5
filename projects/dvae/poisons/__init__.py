"""Attacks that make a training set unlearnable, by name.

pattern = make_pattern("lsp", dataset, classes=10, shape=(3, 32, 32), seed=0)
poisoned, is_poisoned = poison_dataset(pattern, dataset, rate=0.4)
"""

from projects.dvae.poisons.registry import ATTACKS, Attack, Pattern, choose, make_pattern, poison_dataset, tell

__all__ = ["ATTACKS", "Attack", "Pattern", "choose", "make_pattern", "poison_dataset", "tell"]
