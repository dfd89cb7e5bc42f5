"""One project a paper."""
