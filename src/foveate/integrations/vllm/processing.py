"""Multimodal processing under a plan, shared by all of vLLM's processors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal import MULTIMODAL_REGISTRY  # ty: ignore[import-not-found]
from vllm.multimodal.inputs import MultiModalFieldConfig  # ty: ignore[import-not-found]
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems  # ty: ignore[import-not-found]
from vllm.multimodal.processing import BaseMultiModalProcessor, BaseProcessingInfo, PromptReplacement  # ty: ignore[import-not-found]

from foveate.core.errors import FoveateError
from foveate.integrations.vllm.plans import FULL_MODEL, LONGEST, NAME, EnginePlans, ServedPlan, serving_of

#: Fields in which images and clips carry their plans to the model.
FIELDS = {"image": NAME, "video": f"{NAME}_of_clips"}


class PlannedProcessor(BaseMultiModalProcessor):
    """Mixin for vLLM processors: fewer placeholders of images and clips, and cache keys that differ by plan.

    A request may set its own plan in `mm_processor_kwargs`. Every image carries the text of its plan to the
    model. The key of an image names its processed pixels, its embeddings (also where engines share them) and, by
    prefix caching, the keys and values of the language model behind it. A name that a client gives to an image is no
    exception. The same holds for clips where the plan acts on them (`EnginePlans.modalities`). Embeddings that a client
    gives are not compressed.
    """

    @cached_property
    def foveate(self) -> EnginePlans | None:
        """Plan settings of this engine."""
        return serving_of(self.info.ctx.model_config.hf_config)

    def _plan(self, kwargs: Mapping[str, object]) -> tuple[ServedPlan | None, dict[str, object]]:
        """Return the setting of a request, None in an engine without a plan, and the arguments meant for vLLM."""
        others = {name: value for name, value in kwargs.items() if name != NAME}
        if self.foveate is None:
            if NAME in kwargs:
                raise FoveateError(
                    f"this engine was started without a plan, so requests cannot name one; start it with {NAME} "
                    f"'{FULL_MODEL}' in --hf-overrides to let them."
                )
            return None, others
        if NAME not in kwargs:
            return self.foveate.setting(), others
        return self.foveate.setting(kwargs[NAME], request=True), others

    def _get_mm_hashes(self, inputs: Any) -> Any:
        setting, others = self._plan(inputs.hf_processor_mm_kwargs)
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=others))
        if setting is None or self.foveate is None:
            return hashes
        return {
            modality: [f"{digest}-{setting.key}" for digest in digests]
            if modality in self.foveate.modalities
            else digests
            for modality, digests in hashes.items()
        }

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        setting, others = self._plan(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, others)
        if setting is None or self.foveate is None:
            return data
        for modality in self.foveate.modalities:
            items = mm_items.get(modality)
            if items and not isinstance(items, (EmbeddingItems, DictEmbeddingItems)):
                data[FIELDS[modality]] = carried(setting).expand(len(items), -1)
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        _, others = self._plan(hf_processor_mm_kwargs)
        fields = super()._get_mm_fields_config(hf_inputs, others)
        plans = {name: MultiModalFieldConfig.batched(modality, keep_on_cpu=True) for modality, name in FIELDS.items()}
        return {**fields, **plans}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Any:
        setting, others = self._plan(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, others, out_mm_kwargs)
        if setting is None or self.foveate is None:
            return updates
        return [
            self._shorter(update, setting, out_mm_kwargs) if update.modality in self.foveate.modalities else update
            for update in updates
        ]

    @staticmethod
    def _shorter(update: Any, setting: ServedPlan, out_mm_kwargs: Any) -> PromptReplacement:
        """Shorten the identical placeholders of an image or clip to the number of kept tokens."""
        modality = update.modality

        def kept(number: int) -> list[int]:
            original = update.replacement(number)
            planned = FIELDS[modality] in out_mm_kwargs[modality][number]
            return original[: setting.count(len(original))] if planned else original

        return PromptReplacement(modality=modality, target=update.target, replacement=kept)


def carried(setting: ServedPlan) -> Tensor:
    """Encode a setting as (256,) uint8, the form in which an image or clip passes it to the model."""
    text = str(setting).encode()
    if len(text) > LONGEST:
        raise FoveateError(f"'{setting}' has {len(text)} bytes; a plan in vLLM has {LONGEST} at most.")
    return torch.tensor([*text, *bytes(LONGEST - len(text))], dtype=torch.uint8)


def settings_of(serving: EnginePlans, plans: Tensor) -> list[ServedPlan]:
    """Decode the settings of images or clips from (n, 256) uint8."""
    return [serving.setting(bytes(encoded.tolist()).rstrip(b"\0").decode()) for encoded in plans]


def registered(processor_class: type, original: Any, info: type | None = None) -> Callable[[type], type]:
    """Register a model class with vLLM's processor for `original`, or `processor_class` in engines with a plan.

    Args:
        processor_class: The processor.
        original: vLLM's model class.
        info: What the processor knows of a model, where that differs.
    """
    factories = original._processor_factory

    def known(context: Any) -> Any:
        planned = serving_of(context.model_config.hf_config) is not None
        return (info if info is not None and planned else factories.info)(context)

    def processor(known: Any, dummy_inputs: Any) -> Any:
        theirs = factories.processor(known, dummy_inputs)
        # Of the models that share a class in vLLM some have a processor of their own, and no plans: see `serving_of`.
        return processor_class(known, dummy_inputs) if issubclass(processor_class, type(theirs)) else theirs

    return MULTIMODAL_REGISTRY.register_processor(processor, info=known, dummy_inputs=factories.dummy_inputs)


class LargestImage(BaseProcessingInfo):
    """Mixin that reserves space for uncompressed images, which a request may ask for under any plan.

    vLLM would otherwise reserve space for the compressed largest image only.
    """

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        """Return the number of tokens of the largest image."""
        return {"image": self.get_max_image_tokens()}
