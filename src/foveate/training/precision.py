"""In which precision a processor trains fastest, decided by what it can do."""

from __future__ import annotations

import torch


def bfloat16_pays(device: str) -> bool:
    """Whether products of bfloat16 matrices are arithmetic of this device, rather than imitated in float32.

    Where they are imitated, as on x86 processors that have AVX2 only, they run at a fiftieth of float32's speed.

    Args:
        device: Type of the device: "cpu", "cuda" and so on.
    """
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device != "cpu":
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") or able.get("sve_bf16"))


def uses_bfloat16(wish: bool | str, device: str) -> bool:
    """What a recipe's `bf16` means on a device: what it says, or, where it is "auto", whether that pays."""
    return bfloat16_pays(device) if wish == "auto" else bool(wish)
