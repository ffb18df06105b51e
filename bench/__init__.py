"""Benchmarks beside peers, in one run on one machine: ``tileproof bench``."""
