"""vLLM plug-in that compresses visual tokens, for the entry-point group `vllm.general_plugins`.

vLLM fixes the number of placeholders of an image or clip from its size, before anything was encoded, and keeps its
embeddings for all prompts that show it. So a plan can be served if it leaves a number of tokens that follows from
sizes (`static_count`), and if it uses the image or clip alone; `plans` refuses all others. A plan may begin with the
length of a nested connector, in models whose class is foveate's. The maths is that of `foveate.methods`, layouts are
those of `foveate.families`; here is only what vLLM needs around them:

- `plans`: plans of an engine, and their support;
- `connectors`: connectors of foveate that vLLM can run, and their token counts;
- `startup_checks`: checks when an engine starts;
- `processing`: fewer placeholders, and the plan in the key of the caches;
- `measurement`: what methods need from an encoder, measured in vLLM's attention layers;
- `selection`: token selection for the images or clips of a call;
- `positions`, `mrope`: multimodal RoPE positions;
- a module for each kind of model.
"""

from __future__ import annotations

#: Architectures and their classes: foveate's own, which vLLM lacks, and those that replace vLLM's, which behave as
#: vLLM's without a plan.
MODELS = {
    "FoveateLlavaForConditionalGeneration": "foveate.integrations.vllm.llava_connector:FoveateLlavaConnector",
    "LlavaForConditionalGeneration": "foveate.integrations.vllm.llava:FoveateLlava",
    "LlavaNextForConditionalGeneration": "foveate.integrations.vllm.llava_next:FoveateLlavaNext",
    "Qwen2_5_VLForConditionalGeneration": "foveate.integrations.vllm.qwen2_5_vl:FoveateQwen25VL",
    "Qwen3VLForConditionalGeneration": "foveate.integrations.vllm.qwen3_vl:FoveateQwen3VL",
}


def register() -> None:
    """Register foveate's model classes in vLLM. vLLM calls it in every process, possibly several times."""
    from vllm import ModelRegistry  # ty: ignore[import-not-found]

    from foveate.integrations.vllm.startup_checks import prepare

    for architecture, where in MODELS.items():
        ModelRegistry.register_model(architecture, where)
        prepare(architecture)
    for architecture in ModelRegistry.get_supported_archs():
        prepare(architecture, has_plans=False)  # of those that are not prepared yet
