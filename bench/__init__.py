"""Benchmarks: every figure in the documents comes from a command here."""

from edge_verifier.engines.openmp import rest_soon

rest_soon()  # as in a verifier, and before a benchmark imports torch
