"""What a run computes on: the device, the precision that pays there, the seeds of its generators,
and the machine's facts.
"""

from __future__ import annotations

import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sigak.structures import SigakError

__all__ = [
    "cpu_has_bfloat16",
    "cpu_name",
    "environment",
    "pick_device",
    "pick_precision",
    "seed_step",
]

_LEAST = 3  # voxels a side of the maps that 3-D convolutions learn from in bfloat16, see `_shallow`


def pick_device(name: str = "auto") -> torch.device:
    """ "auto": a GPU if there is one, else the CPU; or any name PyTorch knows, such as "cuda:1" or
    "mps".
    """
    if name == "auto":
        kind = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
        return torch.device(kind)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:
        raise SigakError(
            f"--device {name!r} cannot be used here ({str(error).splitlines()[0]}); try auto or cpu"
        ) from error
    return device


def pick_precision(
    name: str, device: torch.device, network: nn.Module, shape: tuple[int, ...]
) -> torch.dtype:
    """The precision to train `network` in on pictures of `shape` (C, H, W) or volumes of (C, D, H,
    W).

    "auto" is bfloat16 where the device has units for it and the network has use for them, decided
    by what they are and never by timing, so that two runs on one machine compute alike. SigakError
    for a bfloat16 that is asked for where gradients would be wrong.
    """
    shallow = device.type == "cpu" and _shallow(network, shape)
    if shallow and name == "bfloat16":
        raise SigakError(
            f"3-D convolutions learn in bfloat16 on a CPU where their maps have {_LEAST} voxels a "
            f"side or more, of patches of {'x'.join(map(str, shape[1:]))} they have fewer; leave "
            f"--precision out, or give a larger --size"
        )
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    capable = False
    if device.type == "cuda":
        capable = torch.cuda.get_device_capability(device)[0] >= 8
    elif device.type == "cpu":
        capable = cpu_has_bfloat16() and not shallow and _gains_on_cpu(network, shape)
    return torch.bfloat16 if capable else torch.float32


def _shallow(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether 3-D convolutions get maps smaller than their kernels: oneDNN 3.13 then adds what it
    never wrote to their gradients in bfloat16, so that they differ from run to run, up to NaN.
    """
    deep = any(isinstance(module, nn.Conv3d) for module in network.modules())
    return deep and min(shape[1:]) < _LEAST * int(getattr(network, "stride", 1))


def _gains_on_cpu(network: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether large plain products make up the work: below 5 million multiplications a picture the
    conversions cost more than they save, and depthwise convolutions have no bfloat16 kernels.
    """
    if any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules()):
        return False
    training = network.training
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(1, *shape))
    network.train(training)
    return bool(counter.get_total_flops() >= 2 * 5e6)


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself (AVX512_BF16 or AMX on x86)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def seed_step(device: torch.device, *numbers: int) -> None:
    """Seed the generators a training step draws from by several numbers. (torch.manual_seed would
    also note a stack trace for every kind of device that is not there, which costs milliseconds.)
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def environment(device: torch.device) -> dict[str, Any]:
    """What a run ran on, for the report and the checkpoint."""
    packages = (
        "sigak",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "opencv-python-headless",
        "pillow",
    )
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        **{name: metadata.version(name) for name in packages},
    }


def cpu_name() -> str:
    """The processor as its maker calls it, where the system says so."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
