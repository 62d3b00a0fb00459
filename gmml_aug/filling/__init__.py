"""Writing: what is visible stays, what is hidden takes its fill's value. Which backend writes is chosen here.

Every backend is ``write(images, out, mask, fill, operations, donors)``: it writes the images ``(B, C, H, W)``,
``(B, T, C, H, W)`` or ``(B, C, D, H, W)`` into ``out``, which may be themselves, with the ``operations`` that ``fill``
``(B,)`` chooses from where ``mask``, ``(B, gh, gw)`` or ``(B, gd, gh, gw)``, is True. `everywhere` defines the result.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..backends import Backend, run, transformed, watched
from ..plan import MaskPlan
from ..rng import operator
from .everywhere import combined
from .fills import TYPES, BuiltIn, Fill
from .operation import KINDS, OPERATIONS_SCHEMA, Operation, packed, unpacked

_LARGE = 2**22  # bytes, from which on NumPy asks for large pages

BACKENDS = (
    Backend("triton", "gmml_aug.filling.triton_fill", "cuda", "triton"),
    Backend("compiled", "gmml_aug.filling.compiled", "cpu", "numba"),
    Backend("functions", "gmml_aug.filling.everywhere"),
)


def write(images: Tensor, plan: MaskPlan, fills: Sequence[Fill], donors: Tensor | None, inplace: bool) -> Tensor:
    """Write what a plan says.

    Args:
        images: ``(B, C, H, W)``, ``(B, T, C, H, W)`` or ``(B, C, D, H, W)``.
        plan: of the same batch, on the same device, or on the CPU for a device that does not draw.
        fills: which ``plan.fill`` counts.
        donors: ``(N, ...)`` like the images; None where aliens come from the batch.
        inplace: write into the images.

    Returns:
        The images, or new ones with their shape, dtype, device and memory format.

    Raises:
        TypeError: a fill's values do not suit the images.
    """
    tensors = (images,) if donors is None else (images, donors)
    traced = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not torch.compiler.is_compiling():  # which has no forward mode, vmap or negated views
        traced = (
            traced or transformed() or any(t.is_neg() or forward_ad.unpack_dual(t).tangent is not None for t in tensors)
        )
        if traced and plan.mask.is_inference():  # drawn where autograd may keep nothing for a backward pass
            plan = MaskPlan(*(field.clone() for field in plan))
    if not traced and all(type(fill) in TYPES for fill in fills):  # one derived from these may have other values
        operations = [fill.operation(images, plan, donors) for fill in fills if isinstance(fill, BuiltIn)]
        if not watched(*tensors, *plan):  # torch's dispatcher has no part in a plain eager call
            return _written(images, inplace, plan.mask, plan.fill, donors, operations)
        arguments = (images, plan.mask, plan.fill, donors, *packed(operations))
        if inplace:
            torch.ops.gmml_aug.write_(*arguments)
            return images
        written: Tensor = torch.ops.gmml_aug.write(*arguments)
        return written
    # Some fills' backward passes need what they read, so it must not be written over.
    source = images.clone() if inplace and traced else images
    if donors is not None:
        plan = plan._replace(donor=plan.pool_donor(donors.shape[0]))
    each = _values(source, plan, fills, donors)
    out = combined(source, plan.mask, plan.fill, enumerate(each))
    return images.copy_(out) if inplace else out


def _values(images: Tensor, plan: MaskPlan, fills: Sequence[Fill], donors: Tensor | None) -> Iterator[Tensor]:
    for fill in fills:
        values = fill.values(images, plan, images if donors is None else donors)
        if not isinstance(values, Tensor):
            raise TypeError(f"the values of {fill} are a tensor; got {type(values).__name__}")
        sides = zip(reversed(values.shape), reversed(images.shape), strict=False)
        if values.ndim > images.ndim or any(side not in (1, wanted) for side, wanted in sides):
            raise TypeError(
                f"the values of {fill} broadcast to the images' shape, {tuple(images.shape)}; got "
                f"{tuple(values.shape)}; patch_to_pixel spreads what there is for each patch"
            )
        number = values.ndim == 0 and values.is_floating_point() <= images.is_floating_point()  # torch converts it
        if values.dtype != images.dtype and not number:
            raise TypeError(
                f"the values of {fill} are {values.dtype} and the images {images.dtype}; return values.to(images.dtype)"
            )
        yield values


def share_memory(images: Tensor, donors: Tensor) -> bool:
    """Tell whether two tensors may lie in the same memory."""
    begins, ends = [], []
    for tensor in (images, donors):
        reach = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        begins.append(tensor.data_ptr())
        ends.append(tensor.data_ptr() + reach * tensor.itemsize)
    return max(begins) < min(ends)


def _empty_like(images: Tensor) -> Tensor:
    """Return room for the result.

    On a CPU most of the time goes into fresh memory. NumPy asks the system for it in large pages where it gives them
    (38 MB, Linux's usual `madvise`: copied into in 5.0 ms, where clone() takes 13.1), so large results are NumPy's.
    """
    numpy = sys.modules.get("numpy")
    if numpy is None or images.device.type != "cpu" or images.nbytes < _LARGE:
        return torch.empty_like(images)
    strides = torch.empty_like(images, device="meta").stride()
    memory = torch.from_numpy(numpy.empty(images.nbytes + 64, numpy.uint8))
    begin = -memory.data_ptr() % 64 // images.itemsize  # as torch aligns its own
    out = torch.empty(0, dtype=images.dtype, device="cpu")
    return out.set_(memory.untyped_storage(), begin, images.shape, strides)


def _written(
    images: Tensor,
    inplace: bool,
    mask: Tensor,
    fill: Tensor,
    donors: Tensor | None,
    operations: Sequence[Operation],
) -> Tensor:
    """Return the images with what is hidden written into them, or into new ones."""
    if unknown := {one.kind for one in operations}.difference(KINDS):
        raise ValueError(f"unknown operation {min(unknown)}; a fill's are made by constant(), noise() and copy()")
    out = images if inplace else _empty_like(images)
    if images.numel():
        if inplace and donors is not None and share_memory(images, donors):
            donors = donors.clone()
        run(BACKENDS, "write", images.device, images, out, mask, fill, operations, donors)
    if inplace and not images.is_inference():
        torch.autograd.graph.increment_version(images)  # as torch's own functions do, for autograd to see
    return out


def _write(images: Tensor, mask: Tensor, fill: Tensor, donors: Tensor | None, *asked: Any) -> Tensor:
    return _written(images, False, mask, fill, donors, unpacked(*asked))


def _write_inplace(images: Tensor, mask: Tensor, fill: Tensor, donors: Tensor | None, *asked: Any) -> None:
    _written(images, True, mask, fill, donors, unpacked(*asked))


# Opaque to torch.compile, so that a compiled call takes the quick backends as well.
_ARGUMENTS = f"Tensor mask, Tensor fill, Tensor? donors, {OPERATIONS_SCHEMA}"
operator(f"write(Tensor images, {_ARGUMENTS}) -> Tensor", _write, lambda images, *_: torch.empty_like(images))
operator(f"write_(Tensor(a!) images, {_ARGUMENTS}) -> ()", _write_inplace, lambda *_: None)
