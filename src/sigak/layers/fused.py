"""Blocks that train faster on a CPU than the stock modules, with the same mathematics.

On a CPU the convolutions of a small network run close to the processor's peak; what is left is
passes over memory, and the blocks here make fewer. In training on a CPU, `FusedSequential` runs
[Conv2d, ReLU, BatchNorm2d] as one node of the autograd graph, with the ReLU in place in both
directions, and takes a 2x2 max-pool that follows before the normalisation instead of after it, so
that a quarter of the pixels is normalised. `Dropout` draws 16 random bits per element where the
stock layer draws a float. Everywhere else (evaluation, GPUs, export, hooked children) the stock
operations run, and the names in the state dict are always those of the stock modules.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Dropout", "FusedSequential"]

aten = torch.ops.aten


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., 2014) with a cheap mask on a CPU; elsewhere it is nn.Dropout.

    The probability to keep is rounded to a multiple of 1/65536 and what is kept is divided by the
    rounded probability, so the expectation is that of the input. Any shape, any floating dtype;
    repeatable under `torch.manual_seed`.
    """

    def forward(self, input: Tensor) -> Tensor:
        keep = round((1 - self.p) * 65536)
        stock = self.inplace or input.device.type != "cpu" or torch.compiler.is_compiling()
        if stock or not self.training or not 0 < keep < 65536:
            return super().forward(input)
        return input * _keep_mask(input, keep)


def _keep_mask(like: Tensor, keep: int) -> Tensor:
    """A mask in the shape, memory order and dtype of `like`: 65536/keep at keep/65536, else 0."""
    stride = torch.empty_like(like, device="meta").stride()  # the order of `like`, without gaps
    words = torch.empty((like.numel() + 3) // 4, dtype=torch.int64)
    words.random_(-(2**63), None)  # one draw fills 64 bits, four elements' worth
    bits = words.view(torch.int16).as_strided(like.shape, stride)
    return (bits < keep - 32768).to(like.dtype).mul_(65536 / keep)


class _Unit(NamedTuple):
    """Children of a sequence that run as one: conv, ReLU, norm, and perhaps a 2x2 max-pool."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    pool: bool

    @property
    def geometry(self) -> tuple[Any, ...]:
        """stride, padding, dilation, transposed, output padding, groups: as aten takes them."""
        conv = self.conv
        return (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)

    @property
    def length(self) -> int:
        return 4 if self.pool else 3


class _ConvReLUNorm(torch.autograd.Function):
    """norm(relu(conv(x))) or pool(norm(relu(conv(x)))), with the statistics of the batch.

    Saves the input and the ReLU's output only; that output is its own mask, for relu(z) > 0
    exactly where z > 0. A max-pool commutes with a normalisation whose gains are positive; `_match`
    has seen to that.
    """

    @staticmethod
    def forward(  # x (B, C, H, W) -> (B, K, H', W') of the same dtype
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        gain: Tensor,
        shift: Tensor,
        unit: _Unit,
    ) -> Tensor:
        norm = unit.norm
        rectified = aten.convolution(x, weight, bias, *unit.geometry).relu_()
        running = (norm.running_mean, norm.running_var)
        index = None
        if unit.pool:
            mean, variance = aten.batch_norm_update_stats(rectified, *running, norm.momentum)
            inverse = torch.rsqrt(variance + norm.eps)
            pooled, index = aten.max_pool2d_with_indices(rectified, [2, 2], [2, 2])
            out, _, _ = aten.native_batch_norm(
                pooled, gain, shift, mean, variance, False, 0.0, norm.eps
            )
        else:
            out, mean, inverse = aten.native_batch_norm(
                rectified, gain, shift, *running, True, norm.momentum, norm.eps
            )
        ctx.save_for_backward(x, weight, gain, rectified, mean, inverse, index)
        ctx.unit, ctx.bias_sizes = unit, None if bias is None else [len(bias)]
        return out  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, gain, rectified, mean, inverse, index = ctx.saved_tensors
        if index is not None:
            grad = aten.max_pool2d_with_indices_backward(
                grad, rectified, [2, 2], [2, 2], [0, 0], [1, 1], False, index
            )
        slope, grad_gain, grad_shift = aten.native_batch_norm_backward(
            grad, rectified, gain, None, None, mean, inverse, True, ctx.unit.norm.eps, [True] * 3
        )
        aten.threshold_backward.grad_input(slope, rectified, 0, grad_input=slope)
        wanted = [*ctx.needs_input_grad[:2], ctx.bias_sizes is not None]
        grads = aten.convolution_backward(
            slope, x, weight, ctx.bias_sizes, *ctx.unit.geometry, wanted
        )
        return (*grads, grad_gain, grad_shift, None)


class FusedSequential(nn.Sequential):
    """nn.Sequential that trains [Conv2d, ReLU, BatchNorm2d(, MaxPool2d(2))] as one step on a CPU.

    State dict and initialisation are nn.Sequential's; outputs, gradients and running statistics
    equal its own to rounding. Outside training on a CPU, and where a child is hooked, parametrised,
    subclassed, frozen or in evaluation mode, the children run one by one. Works under autocast and
    distributed data parallel. No double backward.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or input.device.type != "cpu" or not _eager():
            return super().forward(input)  # type: ignore[no-any-return, no-untyped-call]
        children = list(self)
        place = 0
        while place < len(children):
            unit = _match(children[place : place + 4])
            if unit is None or not _fits(unit, input):
                input = children[place](input)
                place += 1
            else:
                input = _run(unit, input)
                place += unit.length
        return input


def _eager() -> bool:
    """Whether this is ordinary training: gradients wanted, nothing traced or compiled."""
    traced = torch._C._get_tracing_state() is not None or torch.compiler.is_compiling()
    return torch.is_grad_enabled() and not traced


def _match(children: list[nn.Module]) -> _Unit | None:
    """The unit these children begin with, if it is one that can be fused."""
    kinds = [type(child) for child in children]
    if kinds[:3] != [nn.Conv2d, nn.ReLU, nn.BatchNorm2d] or any(map(_hooked, children)):
        return None
    conv, norm = children[0], children[2]
    if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
        return None
    ordinary = norm.affine and norm.track_running_stats and norm.momentum is not None
    if not ordinary or not norm.training:
        return None
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return None
    pool = len(children) == 4 and _halves(children[3]) and bool((norm.weight > 0).all())
    return _Unit(conv, norm, pool)


def _hooked(module: nn.Module) -> bool:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return any(getattr(module, name) for name in hooks)


def _halves(module: nn.Module) -> bool:
    """Whether a module is the plain 2x2 max-pool."""
    if type(module) is not nn.MaxPool2d:
        return False
    plain = not (module.return_indices or module.ceil_mode)
    wanted = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1}
    return plain and all(getattr(module, k) in (v, (v, v)) for k, v in wanted.items())


def _fits(unit: _Unit, x: Tensor) -> bool:
    """Whether every parameter is trained and the conv's output is at least 2x2."""
    parameters = (unit.conv.weight, unit.norm.weight, unit.norm.bias)
    if x.ndim != 4 or len(x) == 0 or not all(p.requires_grad for p in parameters):
        return False
    stride, padding, dilation = unit.geometry[:3]
    for i, size in enumerate(x.shape[2:]):
        reach = dilation[i] * (unit.conv.kernel_size[i] - 1)
        if size + 2 * padding[i] - reach <= stride[i]:
            return False
    return True


def _run(unit: _Unit, x: Tensor) -> Tensor:
    """The unit on a batch, in the dtype autocast asks for."""
    conv, norm = unit.conv, unit.norm
    cast = torch.is_autocast_enabled("cpu") and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype("cpu") if cast else x.dtype
    weight, bias = (p.to(dtype) if cast and p is not None else p for p in (conv.weight, conv.bias))
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    with torch.autocast("cpu", enabled=False):
        out = _ConvReLUNorm.apply(x.to(dtype), weight, bias, norm.weight, norm.bias, unit)
    return out  # type: ignore[no-any-return]
