"""Where torch computes, and with how many threads."""

from __future__ import annotations

import torch


def best_device() -> torch.device:
    """Return the GPU where torch finds one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_threads(count: int) -> None:
    """Compute with `count` threads; 0 leaves it at torch's own choice, one for each core."""
    if count:
        torch.set_num_threads(count)


def describe() -> dict[str, str | int]:
    """Return what the figures of a run may depend on beside its seed: version of torch, device, threads."""
    device = best_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"torch": str(torch.__version__), "device": name, "threads": torch.get_num_threads()}
