"""A CUDA device for machines without one: it computes on the CPU, and refuses what a GPU refuses.

Inside ``with pretend_cuda() as device:``, ``torch.cuda.is_available()`` is true and tensors can be moved to, and made
on, "cuda". Everything that PyTorch does above its kernels (autograd, autocast, optimisers, checkpoints) runs as it
would for a GPU. Each operator on such a tensor comes by :meth:`Device.call`, in four steps:

1. *Refuse.* An operator whose tensors lie on both devices fails, unless it is one that a GPU accepts (copies; single
   numbers on the CPU beside a tensor on the device; indices on the CPU). So does a random operator with the other
   device's generator. ``Tensor.numpy()`` is refused as well.
2. *Count.* ``device.operators`` counts what is launched, and ``device.waits`` where the host waits for the device:
   whenever it asks for a number, or copies from memory that is not pinned.
3. *Compute*, on the CPU, as a GPU would round. Where TF32 is on, convolutions and matrix products get their float32
   arguments rounded to its 10 bits. With ``roundings`` above 0, results of sums and of transcendental functions are off
   by up to that many roundings, each time by others: a GPU adds up in another order, and not twice in the same one.
4. *Break.* An index out of bounds is a device-side assert: from then on every call fails, as on a GPU.

It does not know: kernels' own errors, memory and its limit, streams and races, torch.compile, memory layouts that
CUDA's kernels choose, a second device, other processes.

It stands on undocumented parts of one version of PyTorch; elsewhere :func:`why_not` says so, and tests skip.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import random
import sys
from collections import Counter
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.utils._mode_utils
from torch.utils._python_dispatch import TorchDispatchMode

import advdim

from . import pretend_graph

TORCH = "2.11"  # whose internals these are
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
# The device that the tensors have for PyTorch's C++. Not CUDA, for which it would ask the driver for streams; of the
# other devices, XLA is the one whose tensors autocast to "cuda" takes, too.
DISGUISE = torch.device("xla", 0)

aten = torch.ops.aten
COPIES = {aten._to_copy, aten.copy_, aten.copy, aten._foreach_copy_}
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# Operators that take a single number from the CPU although no tag says that they act number by number, and the reverse.
TAKE_NUMBERS = {aten.masked_fill, aten.masked_fill_, aten.fill, aten.fill_, aten.index_put, aten.index_put_}
REFUSE_NUMBERS = {aten.nextafter, aten.clamp, aten.clamp_, aten.logaddexp, aten.hypot, aten.igamma, aten.gcd}
# Operators whose result the host has to know: numbers, and tensors whose shape depends on numbers.
ASKING = {aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten._unique2}
# Operators with float32 arguments that TF32 concerns, by the switch that allows it.
TF32 = dict.fromkeys((aten.convolution, aten.convolution_backward), "conv") | dict.fromkeys(
    (aten.mm, aten.addmm, aten.bmm, aten.baddbmm), "matmul"
)
# Operators that add up, or that have no exact result: their last bits are a GPU's own.
INEXACT = {
    *TF32,
    *(aten.sum, aten.mean, aten.cumsum, aten.var, aten.std, aten.linalg_vector_norm, aten.addcmul),
    *(aten.native_batch_norm, aten.native_batch_norm_backward, aten.avg_pool2d, aten.avg_pool2d_backward),
    *(aten.exp, aten.log, aten.pow, aten.rsqrt, aten._softmax, aten._log_softmax, aten._log_softmax_backward_data),
    *(aten.nll_loss_forward, aten.upsample_bilinear2d, aten.reflection_pad2d_backward),
}
CHANGED = {aten.native_batch_norm: (3, 4)}  # running statistics, which its signature does not tell
ASSERT = "CUDA error: device-side assert triggered"
PACKAGE = f"{Path(advdim.__file__).parent}{os.sep}"
SAMPLES = 2**18  # factors of rounding, drawn once and used from a random place on


class CUDATensor(torch.Tensor):
    """A tensor of the device; ``numbers`` holds what it contains, on the CPU, in the same layout."""

    device, is_cuda, is_xla = CUDA, True, False
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers):
        if isinstance(numbers, CUDATensor):
            return numbers
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DISGUISE,
            _extra_dispatch_keys=torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA),
        )
        self.numbers = numbers
        return self

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if Device.current is None:
            raise RuntimeError("this tensor's pretend device is gone")
        return Device.current.call(func, args, kwargs or {})

    @property
    def data(self):
        return self.detach()

    @data.setter
    def data(self, other):
        torch.Tensor.data.__set__(self, other)
        self.numbers = other.numbers

    def to(self, *args, **kwargs):
        """A tensor that is on the device already comes back itself, which C++ only sees with the disguise."""
        args, kwargs = [_disguised(a) for a in args], {name: _disguised(a) for name, a in kwargs.items()}
        return super().to(*args, **kwargs)

    def cuda(self, device=None, non_blocking=False):
        return self.to(_on_cuda(device or "cuda"), non_blocking=non_blocking)

    def is_pinned(self, device=None):
        return False

    def numpy(self, **_):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it to host memory")

    def __array__(self, *_, **__):
        return self.numpy()

    def tolist(self):
        return self.cpu().tolist()

    def __format__(self, spec):
        return format(self.cpu(), spec)

    def __repr__(self, **_):
        return f"CUDATensor({self.numbers})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = self.detach().clone().requires_grad_(self.requires_grad)
            copied.__dict__ |= {name: value for name, value in vars(self).items() if name != "numbers"}
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol):
        """For torch.save: an ordinary tensor, whose storage :func:`_location` says to be of the device."""
        storage = self.numbers.untyped_storage()
        storage.of_cuda = True
        typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=self.dtype, _internal=True)
        view = typed, self.storage_offset(), tuple(self.shape), self.stride()
        return torch._utils._rebuild_tensor_v2, (*view, self.requires_grad, {})


class CUDAGenerator(torch.Generator):
    """torch.Generator, on either device; the streams of the two differ for one and the same seed."""

    handles = set()  # noqa: RUF012  # of generators of the device, by which operators know them

    def __new__(cls, device="cpu"):
        return super().__new__(cls, "cpu")

    def __init__(self, device="cpu"):
        self.__dict__["device"] = _on_cuda(device) if _means_cuda(device) else torch.device(device)
        if self.device == CUDA:
            self.handles.add(self._cdata)
            self.manual_seed(super().initial_seed())

    device = property(lambda self: self.__dict__["device"])

    def __del__(self):
        self.handles.discard(self._cdata)

    def manual_seed(self, seed):
        return super().manual_seed(_other_stream(seed) if self.device == CUDA else seed)


@dataclass(frozen=True)
class Facts:
    """What is known of an operator, whatever its arguments."""

    name: str
    copies: bool
    indexed: bool
    takes_numbers: bool
    asks: bool
    launches: bool
    draws: bool
    tf32: str | None
    inexact: bool
    written: tuple[tuple[int, str], ...]  # position and name of the arguments that it writes into and returns
    changed: tuple[int, ...]  # positions of all arguments that it writes into


@functools.cache
def facts(func):
    op, arguments = func._overloadpacket, func._schema.arguments
    returned = [r.alias_info.before_set for r in func._schema.returns if r.alias_info and r.alias_info.is_write]
    places = [(i, a.name, a.alias_info.before_set) for i, a in enumerate(arguments) if a.alias_info]
    written = [(i, name) for s in returned for i, name, same in places if same == s]
    return Facts(
        name=str(op),
        copies=op in COPIES,
        indexed=op in INDEXED,
        takes_numbers=op in TAKE_NUMBERS or (torch.Tag.pointwise in func.tags and op not in REFUSE_NUMBERS),
        asks=op in ASKING,
        launches=not func.is_view,
        draws=torch.Tag.nondeterministic_seeded in func.tags,
        tf32=TF32.get(op),
        inexact=op in INEXACT,
        written=tuple(written),
        changed=CHANGED.get(op) or tuple(i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write),
    )


class Device(TorchDispatchMode):
    """The device; see the module, and :func:`pretend_cuda`, which makes one.

    Attributes:
        operators: names of the operators launched so far, and how often. Those that only look at a tensor in another
            way (views) launch nothing.
        waits: where the host waited for the device so far ("operator, file:line" of the package), and how often.
    """

    current = None

    def __init__(self, roundings=0.0):
        super().__init__()
        self.roundings, self.broken = roundings, False
        self.random_state = torch.Generator().manual_seed(_other_stream(0)).get_state()
        self.places, self.factors = random.Random(0), {}
        self.operators, self.waits = Counter(), Counter()
        self.capture = None  # a graph of helpers.pretend_graph that takes note of what is launched

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return self.call(func, args, kwargs or {})

    def call(self, func, args, kwargs):
        """One operator, with tensors of either device."""
        known, asked, tensors = facts(func), kwargs.get("device"), [*_tensors(args), *_tensors(kwargs.values())]
        on_cuda = any(isinstance(t, CUDATensor) for t in tensors)
        if asked is not None:
            target = _on_cuda(asked) if _means_cuda(asked) else asked
        elif known.copies:
            target = next(_tensors(args)).device
        else:
            target = CUDA if on_cuda else CPU
        _refuse_generator(kwargs.get("generator"), target)
        if target != CUDA and not on_cuda:
            return func(*args, **kwargs)
        if self.broken:
            raise torch.AcceleratorError(ASSERT)
        if asked is None and not known.copies:
            _refuse_both(func, known, args, kwargs, tensors)
        self.operators[known.name] += known.launches
        if (reason := _reason_to_wait(known, args, kwargs, tensors, target)) is not None:
            self.wait(reason)
        written = tuple(args[i] if i < len(args) else kwargs[name] for i, name in known.written)
        plain = {name: _changed(value, _numbers) for name, value in kwargs.items()}
        if asked is not None:
            plain["device"] = CPU if target == CUDA else asked
        do = self.compute if self.capture is None else self.capture.note
        out = do(func, known, target, _changed(args, _numbers), plain)
        if torch.Tag.inplace_view in func.tags:
            _reshape(func, args, kwargs)
        if written:
            return written[0] if len(written) == 1 else written
        return _changed(out, CUDATensor) if target == CUDA else out

    def compute(self, func, known, target, args, kwargs):
        """The operator on the CPU, with what a GPU does otherwise."""
        if known.tf32 and torch._C._get_fp32_precision_getter("cuda", known.tf32) == "tf32":
            args = _changed(args, _to_tf32)
        own = known.draws and target == CUDA and kwargs.get("generator") is None  # draws from the device's generator
        before = torch.get_rng_state() if own else None
        if own:
            torch.set_rng_state(self.random_state)
        try:
            out = func(*args, **kwargs)
        except (IndexError, RuntimeError) as error:
            if "out of bounds" not in str(error):
                raise
            self.broken = True
            raise torch.AcceleratorError(ASSERT) from error
        finally:
            if own:
                self.random_state = torch.get_rng_state()
                torch.set_rng_state(before)
        return _changed(out, self.rounded) if self.roundings and known.inexact else out

    def rounded(self, t):
        """A result, off by some roundings."""
        if not t.is_floating_point():
            return t
        if t.dtype not in self.factors:
            draws = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
            self.factors[t.dtype] = (1 + draws * self.roundings * torch.finfo(t.dtype).eps / 2).to(t.dtype)
        factors, start = self.factors[t.dtype], self.places.randrange(SAMPLES // 2)
        if t.numel() > SAMPLES // 2:
            factors = factors.repeat(2 * t.numel() // SAMPLES + 1)
        return t.mul_(factors[start : start + t.numel()].view(t.shape))

    def wait(self, reason):
        """Note that the host waits, and which line of the package has it wait."""
        if self.capture is not None:
            raise torch.AcceleratorError(f"CUDA error: operation not permitted when stream is capturing ({reason})")
        frame = sys._getframe(1)
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        where = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}" if frame else "elsewhere"
        self.waits[f"{reason}, {where}"] += 1


def _refuse_generator(generator, target):
    if generator is not None and target.type in ("cpu", "cuda"):
        found = "cuda" if generator._cdata in CUDAGenerator.handles else "cpu"
        if found != target.type:
            raise RuntimeError(f"Expected a '{target.type}' device type for generator but found '{found}'")


def _refuse_both(func, known, args, kwargs, tensors):
    """Refuse tensors of both devices in one operator, but for the exceptions that a GPU makes."""
    if known.indexed:
        if not isinstance(args[0], CUDATensor) and any(isinstance(i, CUDATensor) for i in args[1]):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        tensors = [args[0], *args[2:3]]
    written = [args[i] if i < len(args) else kwargs[name] for i, name in known.written]
    for t in tensors:
        number = known.takes_numbers and t.ndim == 0 and not any(t is w for w in written)
        if not isinstance(t, CUDATensor) and not number:
            raise RuntimeError(f"Expected all tensors to be on the same device, but found cuda:0 and cpu ({func})")


def _reshape(func, args, kwargs):
    """Give a tensor itself the shape that an operator such as squeeze_ has given its numbers.

    As for PyTorch's own wrappers of tensors, by the kernel for "meta", which changes shapes alone.
    """
    with torch.utils._mode_utils.no_dispatch():
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)


def _reason_to_wait(known, args, kwargs, tensors, target):
    """Why the host waits for the device at this operator, or None."""
    if known.asks:
        return known.name
    if known.indexed and any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]):
        return f"{known.name} by a mask"
    if not (known.copies or known.indexed) or {t.device.type for t in tensors} | {target.type} == {"cuda"}:
        return None
    at_once = kwargs.get("non_blocking") or (known.name == "aten.copy_" and len(args) > 2 and args[2])
    if at_once and target == CUDA and all(_pinned(t) for t in tensors if not isinstance(t, CUDATensor)):
        return None
    return f"{known.name} {'to' if target == CUDA else 'from'} the device"


def _pinned(t):
    return getattr(t.untyped_storage(), "pinned", False)


def _pin(t, device=None):
    pinned = t.clone()
    pinned.untyped_storage().pinned = True
    return pinned


def _tensors(values):
    """The tensors among values, and in lists of them."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _changed(value, change):
    """The value, each tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return type(value)(_changed(v, change) for v in value) if type(value) in (list, tuple) else value


def _numbers(t):
    return t.numbers if isinstance(t, CUDATensor) else t


def _to_tf32(t):
    """Float32 rounded to 10 bits behind the point, halves to even."""
    if t.dtype != torch.float32:
        return t
    bits = t.view(torch.int32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


def _means_cuda(device):
    return isinstance(device, str | torch.device) and torch.device(device).type in ("cuda", DISGUISE.type)


def _on_cuda(device):
    if torch.device(device).index not in (None, 0):
        raise torch.AcceleratorError("CUDA error: invalid device ordinal")
    return CUDA


def _disguised(value):
    return DISGUISE if _means_cuda(value) and _on_cuda(value) else value


def _other_stream(seed):
    return seed ^ 0x2545F4914F6CDD1D


def _location(storage):
    return "cuda:0" if getattr(storage, "of_cuda", False) else None


def _restored(storage, location):
    """For torch.load: storages of the device are only read with map_location="cpu", as the package does."""
    if location.startswith("cuda") and Device.current is not None:
        raise NotImplementedError("the pretend device reads files with map_location='cpu' only")


def why_not():
    """Why the device cannot be had here; None where it can."""
    if not torch.__version__.startswith(f"{TORCH}."):
        return f"the pretend CUDA device leans on internals of torch {TORCH}; this is torch {torch.__version__}"
    return None if sys.platform == "linux" else f"the pretend CUDA device is for Linux; this is {sys.platform}"


@functools.cache
def _register():
    """Once per process: have C++ know how to guard the devices, without a driver, and files how to name them."""
    torch._C._ensureCUDADeviceGuardSet()
    meta, xla = 14, 9  # places in the array, of c10::DeviceType
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    guards[xla] = guards[xla] or guards[meta]  # that of "meta" does nothing, which is right here
    torch.serialization.register_package(5, _location, _restored)


def _replacements(device):
    """What stands in for functions of torch.cuda, by name."""

    def answer(value):
        return lambda *_, **__: value

    def seed(number):
        device.random_state = torch.Generator().manual_seed(_other_stream(number)).get_state()

    def set_state(state, device_=None):
        device.random_state = state.clone()

    return {
        **pretend_graph.replacements(device),
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), answer(True)),
        "_is_in_bad_fork": answer(False),
        "is_current_stream_capturing": lambda: device.capture is not None,
        **dict.fromkeys(("current_device", "memory_allocated", "max_memory_allocated"), answer(0)),
        **dict.fromkeys(("init", "_lazy_init", "empty_cache", "reset_peak_memory_stats"), answer(None)),
        **dict.fromkeys(("manual_seed", "manual_seed_all"), seed),
        "device_count": answer(1),
        "get_device_name": answer("pretend CUDA device"),
        "get_device_capability": answer((9, 0)),
        "set_device": lambda number: _on_cuda(torch.device("cuda", number) if isinstance(number, int) else number),
        "synchronize": lambda *_: device.wait("synchronize"),
        "get_rng_state": lambda *_: device.random_state.clone(),
        "set_rng_state": set_state,
    }


class _InferenceMode(torch.inference_mode):
    """PyTorch's, which allows other threads again where it is switched off; here they stay forbidden."""

    def __enter__(self):
        super().__enter__()
        torch._C._set_multithreading_enabled(False)


@contextmanager
def pretend_cuda(roundings=0.0):
    """A CUDA device, meanwhile; gives the :class:`Device`.

    Args:
        roundings: by how many roundings (halves of the dtype's eps) inexact results are off at most.
    """
    _register()
    device = Device(roundings)
    with ExitStack() as stack:
        for name, value in _replacements(device).items():
            for module in (torch.cuda, torch.cuda.random, torch.cuda.graphs):
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", CUDAGenerator))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pin))
        stack.enter_context(mock.patch.object(torch.Tensor, "is_pinned", lambda t, device=None: _pinned(t)))
        # Optimisers then treat these tensors as CUDA's, many at once.
        for module in map(importlib.import_module, ("torch.optim.optimizer", "torch.utils._foreach_utils")):
            types = [*module._foreach_supported_types, CUDATensor]
            stack.enter_context(mock.patch.object(module, "_foreach_supported_types", types))
        # Module.to then moves a parameter with its class, and the parameter stays the same object.
        future = torch.__future__
        stack.callback(future.set_swap_module_params_on_conversion, future.get_swap_module_params_on_conversion())
        future.set_swap_module_params_on_conversion(True)
        # torch.tensor(..., device="cuda") is then made on the CPU, and comes by here when it is moved.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # The thread that goes back through a GPU's operators would not have this context.
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        stack.enter_context(mock.patch.object(torch, "inference_mode", _InferenceMode))
        stack.callback(setattr, Device, "current", Device.current)
        Device.current = device
        yield stack.enter_context(device)
