"""Checks at engine start, in vLLM's hook for configurations of an architecture.

Here, before any process of the engine is made, everything is known: the model, its plan and its parallel layout. A plan
that cannot be served ends the start with one sentence.
"""

from __future__ import annotations

from typing import Any

import vllm  # ty: ignore[import-not-found]
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig  # ty: ignore[import-not-found]

from foveate.compat import warn_if_untested
from foveate.core.errors import FoveateError
from foveate.integrations.vllm import MODELS
from foveate.integrations.vllm.connectors import served_connector
from foveate.integrations.vllm.plans import BLIND, NAME, plan_text, serving_of


def prepare(architecture: str, has_plans: bool = True) -> None:
    """Add the plan check to vLLM's own checks of an architecture, whose class is foveate's (`has_plans`) or vLLM's."""
    before = MODELS_CONFIG_MAP.get(architecture, VerifyAndUpdateConfig)
    if issubclass(before, _Check):
        return

    class Check(_Check, before):
        """Checks of one architecture, after vLLM's own."""

        _before = before
        _has_plans = has_plans

    MODELS_CONFIG_MAP[architecture] = Check


class _Check(VerifyAndUpdateConfig):
    _before: type[VerifyAndUpdateConfig]
    _has_plans: bool

    @classmethod
    def verify_and_update_config(cls, vllm_config: Any) -> None:
        cls._before.verify_and_update_config(vllm_config)
        if cls._has_plans:
            check(vllm_config)
        else:
            check_without_plans(vllm_config)


def check_without_plans(vllm_config: Any) -> None:
    """Check that an engine of a model with images whose class is vLLM's own has no plan, which nothing would follow.

    Args:
        vllm_config: The engine's `VllmConfig`.

    Raises:
        FoveateError: it has one.
    """
    model = vllm_config.model_config
    text = plan_text(model.hf_config)
    if model.multimodal_config is not None and text != "":
        raise FoveateError(
            f"{model.architecture} takes no plans in vLLM, and this engine was given {text!r}; possible are "
            f"{', '.join(MODELS)}, and an empty {NAME} in --hf-overrides starts this one without a plan."
        )


def check(vllm_config: Any) -> None:
    """Check the plan of an engine.

    Args:
        vllm_config: The engine's `VllmConfig`; it is noted there whether the encoder can be looked into.

    Raises:
        FoveateError: vLLM cannot serve the plan, or not in an engine like this.
    """
    model = vllm_config.model_config
    config, multimodal = model.hf_config, model.multimodal_config
    setattr(config, BLIND, _blind(vllm_config))
    connector = served_connector(config)  # refuses what vLLM cannot run, with and without a plan
    serving = serving_of(config)
    if serving is not None or connector is not None:
        warn_if_untested("vllm", vllm.__version__)
    if serving is None or multimodal is None:
        return
    if NAME in (multimodal.mm_processor_kwargs or {}):
        raise FoveateError(f"{NAME} of an engine is an --hf-overrides, not one of its --mm-processor-kwargs.")
    serving.setting()
    if getattr(vllm_config.lora_config, "enable_tower_connector_lora", False):  # it counts an encoder's tokens by ours
        raise FoveateError(f"{serving.family.title} does not support plans in vLLM together with LoRA in the encoder.")
    if serving.axes == 1:
        return
    parallel = vllm_config.parallel_config
    for present, what in (
        (vllm_config.speculative_config is not None, "speculative decoding"),
        (multimodal.video_pruning_rate, "video_pruning_rate"),
        (parallel.pipeline_parallel_size > 1, "pipeline parallelism"),
        (getattr(parallel, "enable_dbo", False), "dual batch overlap"),
    ):
        if present:
            raise FoveateError(
                f"{serving.family.title} does not support plans in vLLM together with {what}; use one of them."
            )


def _blind(vllm_config: Any) -> str:
    """Return why the encoder of this engine cannot be measured, or an empty text if it can."""
    if vllm_config.parallel_config.tensor_parallel_size > 1:
        return "that is cut over several devices; use one tensor-parallel rank"
    if getattr(vllm_config.compilation_config, "compile_mm_encoder", False):
        return "that is to be compiled; leave compile_mm_encoder off"
    return ""
