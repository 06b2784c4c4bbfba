"""Micro-benchmarks: each prints its own limit, measured in the same run, beside what it measured."""

import sys

from ppo.io.console import print_any_text

print_any_text(sys.stdout, sys.stderr)  # each is run as a module, and prints signs that not every console has
