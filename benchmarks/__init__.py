"""Micro-benchmarks: each prints its own limit, measured in the same run, beside what it measured."""
