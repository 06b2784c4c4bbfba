"""``python -m benchmarks.ablations``: see :mod:`benchmarks.ablations.run`."""

import os
import sys

import torch

from benchmarks.ablations.run import main

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
sys.exit(main(sys.argv[1:]))
