"""``python -m benchmarks.study``: see :mod:`benchmarks.study.run`."""

import os
import sys

import torch

from benchmarks.study.run import main

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
sys.exit(main(sys.argv[1:]))
