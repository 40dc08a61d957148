"""A pretended device, `pretend:0`, for tests on a machine without a GPU: its tensors hold their values on the CPU.

    device = pretended()               # once a process, before its first backward pass
    pipe.to(device); ...               # any code of the project

An operation on a tensor of the device and one of the CPU raises RuntimeError, as with CUDA; CPU scalars of no dimension
and CPU indices are allowed, as with CUDA. A tensor returns by `.cpu()` only, `.numpy()` fails. The values are those of
the CPU, so results can be compared with a run on the CPU.

`COUNTS` has the number of operations (`ops`), uploads, downloads, and synchronisations (`sync`), at which a real GPU
waits for its queue: `.item()`, comparisons in Python, and results whose shape depends on values, as of `nonzero`,
`a[mask]`, `masked_select` and `repeat_interleave`. The list is not complete: some kernels of torch.linalg wait, too.
A download waits as well, and is counted as a download alone.

In strict mode (`exact`) the operations of UNREPEATABLE are refused, as CUDA refuses them: those of PyTorch's
documentation that a network could call, not all.

Not shown: operations without a CUDA kernel, memory, speed, and whether kernels repeat their bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

aten = torch.ops.aten
NAME = "pretend"
COUNTS: Counter[str] = Counter()
COPIES = {aten.copy_, aten._to_copy}
READING = {aten.index, aten._unsafe_index}
INDEXING = READING | {aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index_put}
MIXED = COPIES | INDEXING  # may take tensors of both devices
SYNCHRONISING = {
    *(aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten.bincount),
    *(aten._unique2, aten.unique_dim, aten.unique_consecutive, aten.unique_dim_consecutive, aten._linalg_check_errors),
}  # see also `waits`
# refused by CUDA in strict mode: the documentation of torch.use_deterministic_algorithms; see also `refuses`
UNREPEATABLE = {
    *(aten.put, aten.put_, aten.histc, aten.median, aten.nll_loss2d_forward, aten.max_unpool2d, aten.scatter_reduce),
    *(aten._adaptive_avg_pool2d_backward, aten.adaptive_max_pool2d_backward, aten.grid_sampler_2d_backward),
    *(aten.reflection_pad1d_backward, aten.reflection_pad2d_backward, aten._ctc_loss_backward),
}
FACTORIES = ("tensor", "as_tensor")  # of torch: they reach no dispatch mode
_modes: list[TorchDispatchMode] = []


class DeviceTensor(torch.Tensor):
    """A tensor on the pretended device, around a CPU tensor with its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        outer = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=f"{NAME}:0", requires_grad=False,
        )  # fmt: skip
        outer.inner = inner
        return outer

    def __init__(self, inner: torch.Tensor) -> None:
        pass

    def __repr__(self) -> str:
        return f"DeviceTensor({self.inner})"

    def tolist(self) -> Any:
        """The values as Python numbers, after a synchronisation."""
        COUNTS["sync"] += 1
        return self.inner.tolist()

    def __getitem__(self, index: Any) -> torch.Tensor:
        # torch makes a tensor on this device of a list, without asking a mode
        def as_index(part: Any) -> Any:
            return _original["tensor"](list(part)) if isinstance(part, list | range) else part

        return super().__getitem__(tuple(map(as_index, index)) if isinstance(index, tuple) else as_index(index))

    @property
    def data(self) -> torch.Tensor:
        """The tensor without its history."""
        return self.detach()

    @data.setter
    def data(self, new: torch.Tensor) -> None:
        if not isinstance(new, DeviceTensor):
            refuse("data", "a CPU tensor")
        self.inner = new.inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


class PretendMode(TorchDispatchMode):
    """Sends operations without a tensor of the device, such as `torch.zeros(..., device=)`, through `dispatch`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return dispatch(func, args, kwargs or {})


class PretendBackend(_DummyBackendModule):
    """What autocast asks of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """The types of half precision."""
        return [torch.bfloat16, torch.float16]


def refuse(name: str, operand: str) -> NoReturn:
    """Fail as CUDA does."""
    raise RuntimeError(f"{name}: expected all tensors on {NAME}:0, found {operand}")


def refuses(func: Any, args: tuple) -> bool:
    """Whether CUDA refuses an operation in strict mode: it has no deterministic kernel."""
    name = func.overloadpacket
    return name in UNREPEATABLE or (name is aten.bincount and len(args) > 1 and args[1] is not None)


def check_devices(func: Any, args: tuple, tensors: list[torch.Tensor]) -> None:
    """Refuse an operation that mixes both devices.

    Raises:
        RuntimeError: names the operation and the CPU tensor.
    """
    name = func.overloadpacket
    for tensor in tensors:
        if name not in MIXED and not isinstance(tensor, DeviceTensor) and tensor.ndim > 0:
            refuse(str(func), f"a CPU tensor {tuple(tensor.shape)} {tensor.dtype}")
    if name in INDEXING and not isinstance(args[0], DeviceTensor):
        refuse(str(func), "a CPU tensor indexed by one of the device")


def waits(func: Any, args: tuple, kwargs: dict[str, Any]) -> int:
    """How often CUDA waits for the queue in an operation on tensors of the device."""
    name = func.overloadpacket
    if name in INDEXING:  # each mask becomes positions, unless one number is written to where it holds
        masks = [i for i in args[1] if isinstance(i, DeviceTensor) and i.dtype in (torch.bool, torch.uint8)]
        number = name not in READING and args[2].numel() == 1 and not isinstance(args[2], DeviceTensor)
        return 0 if number else len(masks)
    if func is aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    return name in SYNCHRONISING


def count(func: Any, args: tuple, kwargs: dict[str, Any], on_device: bool, result_on_device: bool) -> None:
    """Count synchronisations, an upload or a download, and every operation on the device."""
    name = func.overloadpacket
    COUNTS["sync"] += waits(func, args, kwargs) if on_device else 0
    COUNTS["ops"] += result_on_device
    if name in COPIES:
        source = args[1] if name is aten.copy_ else args[0]
        target_on_device = isinstance(args[0], DeviceTensor) if name is aten.copy_ else result_on_device
        if target_on_device != isinstance(source, DeviceTensor) and source.numel():
            COUNTS["upload" if target_on_device else "download"] += 1


def dispatch(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the values, and wrap its result where that is on the device."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
    result_on_device = bool(ours)
    if kwargs.get("device") is not None:
        result_on_device = torch.device(kwargs["device"]).type == NAME
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if ours:
        check_devices(func, args, tensors)
        if torch.are_deterministic_algorithms_enabled() and refuses(func, args):
            raise RuntimeError(f"{func.overloadpacket} on {NAME}:0 does not have a deterministic implementation")
    count(func, args, kwargs, bool(ours), result_on_device)
    plain_args, plain_kwargs = tree_map(unwrap, args), tree_map(unwrap, kwargs)
    result = func(*plain_args, **plain_kwargs)
    if not result_on_device:
        return result
    wrapped = tree_map(wrapper({id(tensor.inner): tensor for tensor in ours}), result)
    try:
        return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped
    except Exception:  # of operations whose schema says nothing of aliases
        return wrapped


def unwrap(value: Any) -> Any:
    """The CPU tensor in a tensor of the device; anything else as it is."""
    return value.inner if isinstance(value, DeviceTensor) else value


def wrapper(known: dict[int, DeviceTensor]) -> Callable[[Any], Any]:
    """A function that puts results on the device; in-place operations return the tensor that they were given."""

    def wrap(value: Any) -> Any:
        if id(value) in known:
            return known[id(value)]
        return DeviceTensor(value) if type(value) is torch.Tensor else value

    return wrap


_original = {name: getattr(torch, name) for name in FACTORIES}


def on_cpu_first(name: str) -> Callable[..., torch.Tensor]:
    """torch.tensor or torch.as_tensor: the tensor on the CPU, then moved."""

    def factory(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
        tensor = _original[name](data, **options)
        return tensor if device is None else tensor.to(device)

    return factory


def register() -> None:
    """Register the device with torch: before the first backward pass, when autograd counts the devices.

    Also before a module decorates its functions with `torch.inference_mode`: wrappers cannot be inference tensors.
    """
    if not hasattr(torch, NAME):
        torch.inference_mode = torch.no_grad
        _setup_privateuseone_for_python_backend(rename=NAME, backend_module=PretendBackend())


def pretended() -> torch.device:
    """Register the device and start to dispatch to it, for the rest of the process."""
    register()
    if not _modes:
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        for name in FACTORIES:
            setattr(torch, name, on_cpu_first(name))
        _modes.append(PretendMode().__enter__())
    return torch.device(f"{NAME}:0")
