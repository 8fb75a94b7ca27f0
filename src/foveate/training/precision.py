"""Choose the precision in which a device trains fastest."""

from __future__ import annotations

import torch


def bfloat16_pays(device: str) -> bool:
    """Whether a device multiplies bfloat16 matrices natively, rather than by emulation in float32.

    Emulated, as on x86 processors with AVX2 only, they run at a fiftieth of float32's speed.

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
    """Resolve a recipe's `bf16` on a device: "auto" means where it is native."""
    return bfloat16_pays(device) if wish == "auto" else bool(wish)
