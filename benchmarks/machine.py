"""Names the machine a benchmark ran on: figures mean nothing without it."""

from __future__ import annotations

import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["machine"]

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "asimd", "bf16", "sve")
_PACKAGES = (
    "torch", "torchvision", "keras", "tensorflow-cpu", "tensorflow", "jax",
    "albumentations", "kornia", "numpy", "opencv-python-headless", "pillow",
)  # fmt: skip


def machine() -> dict[str, object]:
    """Processor, cores this process may use, vector extensions, load, system and packages."""
    name, flags = _processor()
    affinity = getattr(os, "sched_getaffinity", None)
    load = getattr(os, "getloadavg", lambda: (float("nan"),))()[0]
    return {
        "processor": name,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "load": round(load, 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _processor() -> tuple[str, set[str]]:
    """Model name and feature flags, from /proc/cpuinfo where there is one."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine(), set()
    fields: dict[str, str] = {}
    for line in info.read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name", platform.machine())
    family = (
        f" (family {fields['cpu family']}, model {fields['model']})" if "model" in fields else ""
    )
    return name + family, set((fields.get("flags") or fields.get("Features", "")).split())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    print(json.dumps(machine(), indent=2))
