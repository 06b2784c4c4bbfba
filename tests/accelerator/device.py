"""A pretend accelerator: tensors report the device ``pretend:0``, and every operation on them runs on the CPU.

Its tensors are plain ``torch.Tensor`` objects with a storage of their own device, so ``nn.Parameter``,
``module.to(DEVICE)``, factory functions, autograd, autocast, views and data pointers work as on a real one. What is
wrong on every accelerator is wrong here, too, and raises:

- an operation on tensors of both devices (a CPU tensor without dimensions may take part);
- ``tensor.numpy()``, which torch itself refuses;
- a generator of the other device;
- an operator that exists on the CPU alone, such as those of oneDNN.

:func:`counted` counts what the host waits for (``waits.py``), and what it copies to the device.

What it cannot show: time, memory, streams, the results of a GPU's own kernels, their lack of determinism, float16
overflow, whether ``torch.compile`` can take a step there, and several devices. Autocast casts for the operators of
``_IN_BFLOAT16`` and for no others. Torch keeps the name of its one spare device for the life of the process: importing
this module renames it. Only inside :func:`plugged_in` does torch say that an accelerator is available.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor
from torch.utils import backend_registration as registration
from torch.utils._pytree import tree_map

from .waits import Counts, count

if not hasattr(torch._C, "_acc"):
    pytest.skip("this torch has no place for a device that is written in Python", allow_module_level=True)

if torch.accelerator.is_available():
    pytest.skip("this machine has a real accelerator, and torch takes one alone", allow_module_level=True)

aten = torch.ops.aten
Operator = Any  # torch._ops.OpOverload

_NAME = "pretend"
_CPU, _META = (torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key)) for key in ("CPU", "Meta"))
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

_SET = aten.set_.source_Storage_storage_offset
# Views that torch makes of any device's tensor without reading it.
_VIEWS = ("as_strided", "view_as_real", "view_as_complex")
# The operators that autocast computes in the lower precision on the CPU, of those that a causal LM calls.
_IN_BFLOAT16 = ("addmm", "baddbmm", "bmm", "conv1d", "linear", "matmul", "mm", "scaled_dot_product_attention")
# A tensor of the CPU may be among the indices of these.
_MIXED = {aten.index.Tensor, aten._index_put_impl_.default, aten.index_put_.default}

_CLONE = torch.UntypedStorage.clone
_is_plugged_in = False
_libraries: list[torch.library.Library] = []  # torch forgets a kernel with the library that registered it
_counting: list[Counts] = []
_generators: WeakSet[torch.Generator] = WeakSet()


class _Module(registration._DummyBackendModule):  # type: ignore[misc]
    """What torch asks ``torch.pretend`` about the device."""

    def is_available(self) -> bool:
        return _is_plugged_in

    def get_rng_state(self) -> Tensor:
        return torch.get_rng_state()  # the device draws from the CPU's generator

    def set_rng_state(self, state: Tensor) -> None:
        torch.set_rng_state(state)

    def empty_cache(self) -> None:
        """Do nothing: no memory is kept."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


class _Hook(registration._DummyPrivateUse1Hook):  # type: ignore[misc]
    def is_available(self) -> bool:
        return _is_plugged_in


class Generator(torch.Generator):
    """``torch.Generator``, which may be of the pretend device as well. Its numbers are those of the CPU."""

    def __new__(cls, device: torch.device | str = "cpu") -> Generator:
        generator = super().__new__(cls, "cpu" if _is_pretend(device) else device)
        if _is_pretend(device):
            _generators.add(generator)
        return generator

    @property
    def device(self) -> torch.device:
        return DEVICE if self in _generators else super().device


@contextmanager
def plugged_in() -> Iterator[torch.device]:
    """Within the context the device is there: torch says so, and makes generators for it."""
    global _is_plugged_in
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    before = _is_plugged_in, torch.Generator, torch.UntypedStorage.clone
    _is_plugged_in, torch.Generator, torch.UntypedStorage.clone = True, Generator, _cloned
    torch.__future__.set_swap_module_params_on_conversion(True)  # else module.to makes new parameters, and unties them
    try:
        yield DEVICE
    finally:
        _is_plugged_in, torch.Generator, torch.UntypedStorage.clone = before
        torch.__future__.set_swap_module_params_on_conversion(swaps)


@contextmanager
def counted() -> Iterator[Counts]:
    """Counts the device's operations, and what the host waits for, within the context."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        _counting.remove(counts)


def _is_pretend(device: torch.device | str | None) -> bool:
    return device is not None and torch.device(device).type == _NAME


def _is_here(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == _NAME


def _inner(x: Any) -> Any:
    """The CPU tensor in the memory of a tensor of the device; anything else as it is."""
    if not _is_here(x):
        return x
    memory = x.untyped_storage().cpu_storage
    return torch.empty(0, dtype=x.dtype).set_(memory, x.storage_offset(), x.size(), x.stride())


def _outer(inner: Tensor) -> Tensor:
    """A tensor of the device in the memory of a CPU tensor."""
    return _placed(torch._C._acc.create_empty_tensor([0], inner.dtype), inner)


def _placed(tensor: Tensor, inner: Tensor) -> Tensor:
    """Put a tensor of the device into the memory of a CPU tensor."""
    place = (inner.storage_offset(), inner.size(), inner.stride())
    storage = _storage(inner.untyped_storage())
    return _SET.redispatch(_CPU, tensor, storage, *place)


def _storage(memory: Any) -> Any:
    """A storage of the device in the memory of a CPU storage."""
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), DEVICE, memory.nbytes())
    storage.cpu_storage = memory  # torch keeps this object as long as a tensor uses the storage
    return storage


def _cloned(storage: Any) -> Any:
    """``UntypedStorage.clone``, which ``copy.deepcopy`` calls, for the device as well."""
    return _storage(storage.cpu_storage.clone()) if _is_pretend(storage.device) else _CLONE(storage)


def _run(operator: Operator, *args: Any, **kwargs: Any) -> Any:
    """Run an operator on the CPU. Results are of the device, and views where the CPU's are views."""
    if operator.namespace != "aten":
        raise RuntimeError(f"{operator} has no kernel for the device {DEVICE}")
    for counts in _counting:
        count(counts, operator, args)
    call = _Call(operator, may_mix=operator in _MIXED and _is_here(args[0]))
    numbers = _numbers_for_tensors(operator)
    inner_args = [call.inner(call.tensor(x) if at in numbers else x) for at, x in enumerate(args)]
    result = operator(*inner_args, **{name: call.inner(x) for name, x in kwargs.items()})
    return result if operator is aten._local_scalar_dense.default else call.outer(result)


@cache
def _numbers_for_tensors(operator: Operator) -> set[int]:
    """The places of arguments that torch may have turned from a tensor into a number, and does not turn back."""
    if torch._C._should_allow_numbers_as_tensors(operator._schema.name.partition("::")[2]):
        return set()
    return {at for at, argument in enumerate(operator._schema.arguments) if str(argument.type) == "Tensor"}


class _Call:
    """The arguments of one call on their way to the CPU, and its results on their way back.

    ``may_mix``: tensors of the CPU with dimensions may be among the arguments.
    """

    def __init__(self, operator: Operator, *, may_mix: bool) -> None:
        self._operator = operator
        self._may_mix = may_mix
        self._known: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of the inner tensor: it and the outer one

    def inner(self, x: Any) -> Any:
        """An argument for the CPU. Raises RuntimeError for what no accelerator takes."""
        if isinstance(x, Tensor):
            if x.device.type != _NAME:
                if x.dim() > 0 and not self._may_mix:
                    raise RuntimeError(f"{self._operator}: expected tensors of {DEVICE}, found one of {x.device}")
                return x
            found = _inner(x)
            self._known[id(found)] = found, x
            return found
        if isinstance(x, list | tuple):
            return [self.inner(one) for one in x]
        if isinstance(x, torch._C.Generator) and x._cdata not in {own._cdata for own in _generators}:
            raise RuntimeError(f"{self._operator}: expected a generator of {DEVICE}, found one of the CPU")
        return torch.device("cpu") if isinstance(x, torch.device) else x

    def tensor(self, x: Any) -> Any:
        """A tensor for a number, of the dtype that the number has beside the first tensor."""
        if not isinstance(x, int | float) or not self._known:
            return x
        first, _ = next(iter(self._known.values()))
        return torch.tensor(x, dtype=torch.result_type(first, x))

    def outer(self, result: Any) -> Any:
        """A result for the caller: an argument itself, a view of it, or a tensor in memory of its own."""
        for found, x in self._known.values():  # an output may have been enlarged
            if found.shape != x.shape:
                _placed(x, found)
        return self._outer(result)

    def _outer(self, result: Any) -> Any:
        if isinstance(result, list | tuple):
            return type(result)(self._outer(one) for one in result)
        if not isinstance(result, Tensor):
            return result
        if id(result) in self._known:
            return self._known[id(result)][1]
        memory = result.untyped_storage()._cdata
        for found, x in self._known.values():
            if found.untyped_storage()._cdata == memory and found.dtype == result.dtype:
                place = (result.size(), result.stride(), result.storage_offset())
                return aten.as_strided.default.redispatch(_META, x, *place)
        return _outer(result)


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """A copy between the devices, or on this one."""
    for counts in _counting:
        count(counts, aten._copy_from.default, (source, target))
    _inner(target).copy_(_inner(source))
    return target


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *args: Any) -> Any:
    """The backward pass of a convolution, without the sizes of a bias, which torch does not hand on."""
    return _run(aten.convolution_backward.default, gradient, x, weight, [weight.shape[0]], *args)


def _histogram(x: Tensor, *args: Any) -> Tensor:
    """Counts of whole numbers as well, which a GPU's kernel takes."""
    return _run(aten.histc.default, x.float(), *args).to(x.dtype)


def _cast(operator: Operator) -> Callable[..., Any]:
    """An operator under autocast: float32 arguments of the device in the lower precision."""

    def run(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(_NAME)

        def lower(x: Any) -> Any:
            return x.to(dtype) if _is_here(x) and x.dtype == torch.float32 else x

        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            lowered, named = tree_map(lower, (args, kwargs))
            return operator(*lowered, **named)

    return run


def _operator(name: str) -> Operator:
    packet, _, overload = name.partition(".")
    return getattr(getattr(aten, packet), overload or "default")


def _register() -> torch.device:
    """Give torch the device. Each process does it once."""
    registration._setup_privateuseone_for_python_backend(_NAME, backend_module=_Module(), hook=_Hook())
    everything, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    _libraries.extend([everything, own])
    everything.fallback(_run, "PrivateUse1")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    own.impl(_SET._schema.name + "." + _SET._overloadname, partial(_SET.redispatch, _CPU), "PrivateUse1")
    own.impl("convolution_overrideable", partial(_run, aten.convolution.default), "PrivateUse1")
    own.impl("convolution_backward_overrideable", _convolution_backward, "PrivateUse1")
    own.impl("histc", _histogram, "PrivateUse1")
    for name in _VIEWS:
        own.impl(name, partial(_operator(name).redispatch, _META), "PrivateUse1")
    own.impl("index.Tensor", partial(_run, aten.index.Tensor), "PrivateUse1")  # torch would call it in parts
    own.impl("_copy_from", _copy, "PrivateUse1")
    for name in _IN_BFLOAT16:
        own.impl(name, _cast(_operator(name)), "AutocastPrivateUse1")
    return torch.device(_NAME, 0)


DEVICE = _register()
