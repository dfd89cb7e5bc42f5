"""Diff-Cleanse: identifying and mitigating backdoor attacks in diffusion models (arXiv 2407.21316)."""
