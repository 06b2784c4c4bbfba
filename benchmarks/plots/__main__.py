"""``python -m benchmarks.plots``: see :mod:`benchmarks.plots.draw`."""

import sys

from benchmarks.plots.draw import main

sys.exit(main(sys.argv[1:]))
