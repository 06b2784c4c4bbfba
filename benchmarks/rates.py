"""How fast this machine is at the basic operations of a step, for predictions of the cost model.

Each rate is the best of a few tries, on as many threads as torch uses at the moment, or on an accelerator.
"""

from __future__ import annotations

import mmap

import torch
import torch.nn.functional as F

from benchmarks.machine import CPU, timed

_SIDE = 2048  # of the matrices: so large that overheads do not count
_READ_NUMBERS = 2**26  # 256 MiB of float32: no cache holds them
_NEW_BYTES = 2**26


def machine_rates(
    layer: tuple[int, int, int], attention: tuple[int, int, int, int], device: torch.device = CPU
) -> dict[str, float]:
    """Operations and bytes per second, by name.

    Operations, in float32 and in bfloat16: of a large square matrix product; of a linear layer, forward and backward;
    of causal attention, forward and backward. Bytes: read from memory; on the CPU, written to memory that is new to the
    process (an accelerator's allocator keeps its memory). Calls per second: of a small kernel, on an accelerator.

    ``layer``: rows, inputs and outputs of a linear layer. ``attention``: sequences, heads, tokens and width of a head.
    """
    numbers = torch.ones(_READ_NUMBERS, device=device)
    rates = {"read_bytes_per_second": 4 * _READ_NUMBERS / min(timed(numbers.sum) for _ in range(5))}
    if device.type == "cpu":
        rates["new_bytes_per_second"] = _NEW_BYTES / min(timed(_write_new) for _ in range(5))
    else:
        rates["calls_per_second"] = call_rate(device)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        rates[f"{name}_operations_per_second"] = product_rate(dtype, device)
        rates[f"{name}_layer_operations_per_second"] = layer_rate(dtype, *layer, device=device)
        rates[f"{name}_attention_operations_per_second"] = attention_rate(dtype, *attention, device=device)
    return rates


def product_rate(dtype: torch.dtype, device: torch.device = CPU) -> float:
    """Operations per second of one large matrix product, best of five after one that is not counted."""
    left, right = (torch.randn(_SIDE, _SIDE, dtype=dtype, device=device) for _ in range(2))
    return 2 * _SIDE**3 / min(timed(lambda: left @ right) for _ in range(6))


def layer_rate(dtype: torch.dtype, rows: int, inputs: int, outputs: int, device: torch.device = CPU) -> float:
    """Operations per second of a linear layer's three products: its output, the gradients of its input and weight."""
    shapes = ((rows, inputs), (outputs, inputs), (rows, outputs))
    x, weight, gradient = (torch.randn(shape, dtype=dtype, device=device) for shape in shapes)

    def products() -> None:
        F.linear(x, weight)
        gradient @ weight
        gradient.T @ x

    return 6 * rows * inputs * outputs / min(timed(products) for _ in range(6))


def attention_rate(
    dtype: torch.dtype, sequences: int, heads: int, tokens: int, width: int, device: torch.device = CPU
) -> float:
    """Operations per second of scaled_dot_product_attention forward and backward, which makes the scores again: 2 and 5
    products over the pairs that a causal mask leaves.
    """
    shape = (sequences, heads, tokens, width)
    query, key, value = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    gradient = torch.randn(shape, dtype=dtype, device=device)

    def attend() -> None:
        F.scaled_dot_product_attention(query, key, value, is_causal=True).backward(gradient)

    pairs = sequences * heads * tokens * (tokens + 1) / 2
    return (2 + 5) * 2 * width * pairs / min(timed(attend) for _ in range(6))


def call_rate(device: torch.device) -> float:
    """Calls per second of a kernel that has next to nothing to do, called from Python one after the other."""
    number, count = torch.zeros((), device=device), 2000

    def call() -> None:
        for _ in range(count):
            number.add_(1)

    return count / min(timed(call) for _ in range(3))


def _write_new() -> None:
    """Write to new pages of the system: malloc might hand out memory that it kept."""
    torch.frombuffer(mmap.mmap(-1, _NEW_BYTES), dtype=torch.float32).fill_(1.0)
