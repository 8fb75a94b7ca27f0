"""Switches vLLM's own EVS on in its CPU build.

vLLM 0.32.0 sets `is_multimodal_pruning_enabled` where the runner for GPUs loads a model. The runner for CPUs loads it
with code of its own that does not, so that a server with --video-pruning-rate ends with the first clip.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner  # ty: ignore[unresolved-import]

_load_model = CPUModelRunner.load_model


def _load_and_enable(self: Any, *args: Any, **kwargs: Any) -> None:
    _load_model(self, *args, **kwargs)
    self.is_multimodal_pruning_enabled = self.model_config.multimodal_config.is_multimodal_pruning_enabled()


CPUModelRunner.load_model = _load_and_enable


class Extension:
    """For --worker-extension-cls, by which vLLM imports this module in its worker."""
