"""Readers of the field's benchmarks, from files on this machine: what to forget, what to keep, what was never seen."""
