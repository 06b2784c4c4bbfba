"""How fast this machine is at the few things that everything else is made of; what a prediction may be calibrated with.

Each rate is the best of a few tries, on as many threads as torch uses at the moment.
"""

from __future__ import annotations

import torch

from benchmarks.machine import timed

_SIDE = 2048  # of the matrices: large enough that a product is nothing but a product
_READ_NUMBERS = 2**26  # 256 MiB of float32: no cache holds them
_NEW_NUMBERS = 2**24  # 64 MiB: more than malloc ever keeps for itself, so it is new memory every time


def machine_rates() -> dict[str, float]:
    """Operations per second of a large matrix product in float32 and in bfloat16; bytes per second read from memory,
    and written to memory that the process had not touched before.
    """
    numbers = torch.ones(_READ_NUMBERS)
    return {
        "float32_operations_per_second": product_rate(torch.float32),
        "bfloat16_operations_per_second": product_rate(torch.bfloat16),
        "read_bytes_per_second": 4 * _READ_NUMBERS / min(timed(numbers.sum) for _ in range(5)),
        "new_bytes_per_second": 4 * _NEW_NUMBERS / min(timed(_write_new) for _ in range(5)),
    }


def product_rate(dtype: torch.dtype) -> float:
    """Operations per second of one large matrix product, best of five after one that is not counted."""
    left, right = (torch.randn(_SIDE, _SIDE, dtype=dtype) for _ in range(2))
    return 2 * _SIDE**3 / min(timed(lambda: left @ right) for _ in range(6))


def _write_new() -> None:
    torch.empty(_NEW_NUMBERS).fill_(1.0)
