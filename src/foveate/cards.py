"""Gallery cards of methods outside of plans: in decoding, in the cache, in a model's architecture.

`foveate methods` prints them below the methods that a plan can name, and `docs/methods.md` shows them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foveate.core.patterns import matching

if TYPE_CHECKING:
    from foveate.core.method import Mechanism, Modality


@dataclass(frozen=True)
class Card:
    """Description of something that acts outside of `foveate.compress`.

    Attributes:
        name: what it is called here.
        title: title of its paper.
        paper: such as "arXiv 2501.06553".
        site: where it acts.
        mechanism: see `foveate.core.method.Mechanism`.
        modality: what it is made for.
        summary: what it does.
        trained: whether it needs trained weights.
        use: how it is used.
        module: where its maths is.
    """

    name: str
    title: str
    paper: str
    site: str
    mechanism: tuple[Mechanism, ...]
    modality: tuple[Modality, ...]
    summary: str
    trained: bool
    use: str
    module: str

    def as_json(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        return dataclasses.asdict(self)


CARDS = (
    Card(
        "flash",
        "FLASH: Latent-Aware Semi-Autoregressive Speculative Decoding for Multimodal Tasks",
        "arXiv 2505.12728",
        "decoding",
        ("query",),
        ("image", "video"),
        "A draft that reads an image through a few learned queries and predicts several tokens in one pass; the model "
        "verifies them, so that the answer is the same.",
        True,
        "foveate.speculate(model, folder) with a draft that foveate train-method flash wrote",
        "foveate.methods.decoding.flash",
    ),
    Card(
        "hack",
        "Head-Aware KV Cache Compression for Efficient Visual Autoregressive Modeling",
        "arXiv 2504.09261",
        "kv cache",
        ("attention",),
        ("image",),
        "Keeps few cached tokens in contextual heads of a next-scale image model, those that recent queries attend to, "
        "and more in structural heads, the first and the newest ones too.",
        False,
        "foveate.models.next_scale.compressing, foveate bench next-scale",
        "foveate.methods.kv_cache.hack",
    ),
    Card(
        "falcon",
        "FALCON: Resolving Visual Redundancy and Fragmentation in High-resolution Multimodal Large Language Models via "
        "Visual Registers",
        "arXiv 2501.16297",
        "encoder",
        ("query",),
        ("image",),
        "A SigLIP or CLIP whose output for every crop of an image is a few registers, 64 for 576 patches; registers of "
        "all crops of an image attend to each other in every block.",
        True,
        "model: new: {vision: {type: falcon_vision}, images: {layout: {name: falcon}}} in a recipe, or vision_config "
        "of foveate.models.llava with ViewImageProcessor(FalconLayout())",
        "foveate.models.encoders.falcon",
    ),
    Card(
        "ph-reg",
        "Vision Transformers with Self-Distilled Registers",
        "arXiv 2505.21501",
        "encoder",
        ("transformation",),
        ("image",),
        "Adds registers to a pretrained CLIP, SigLIP or DINOv2, trained by self-distillation from the tower averaged "
        "over shifted views; outlier tokens go, and the number of tokens stays.",
        True,
        "foveate train-method ph-reg, then AutoModel.from_pretrained of its folder as the vision tower of LLaVA",
        "foveate.models.encoders.registers",
    ),
    Card(
        "llama-avsr",
        "Large Language Models are Strong Audio-Visual Speech Recognition Learners",
        "arXiv 2409.12319",
        "connector",
        ("transformation",),
        ("audio", "video"),
        "A speech recognizer of Whisper features, lip features and a frozen language model with LoRA; every few frames "
        "are stacked or averaged to one token.",
        True,
        "foveate.models.avsr with one rate per modality, foveate bench avsr",
        "foveate.models.avsr",
    ),
    Card(
        "llama-mtsk",
        "Adaptive Audio-Visual Speech Recognition via Matryoshka-Based Multimodal LLMs",
        "arXiv 2503.06362",
        "connector",
        ("transformation",),
        ("audio", "video"),
        "Llama-AVSR at several rates from one training, chosen per call, with a projector per rate and LoRA of all "
        "rates, per rate or both.",
        True,
        "foveate.models.avsr with several rates and lora_scheme, foveate bench avsr",
        "foveate.models.avsr",
    ),
    Card(
        "mome",
        "MoME: Mixture of Matryoshka Experts for Audio-Visual Speech Recognition",
        "arXiv 2510.04136",
        "connector",
        ("transformation",),
        ("audio", "video"),
        "A speech recognizer at several rates from one training, whose frozen language model has a sparse mixture of "
        "small experts that all rates share.",
        True,
        "foveate.models.avsr with adapter='mome', foveate bench avsr",
        "foveate.models.avsr",
    ),
    Card(
        "echoing-pixels",
        "EchoingPixels: Aliasing-Resistant Joint Token Reduction for Audio-Visual LLMs",
        "arXiv 2512.10324",
        "pre_llm",
        ("query",),
        ("audio", "image", "video"),
        "Keeps the best tokens of one pool of sound and video in front of Qwen2.5-Omni's language model, after "
        "bidirectional layers, with rotary channels that keep time monotone over the gaps.",
        True,
        "foveate.models.echoing_pixels, foveate bench avsr",
        "foveate.models.echoing_pixels",
    ),
    Card(
        "scalekv",
        "Memory-Efficient Visual Autoregressive Modeling with Scale-Aware KV Cache Compression",
        "arXiv 2505.19602",
        "kv cache",
        ("attention",),
        ("image",),
        "Divides the cache of a next-scale image model between drafter and refiner layers, and keeps in each the "
        "tokens that a window of queries attends to.",
        False,
        "foveate.models.next_scale.compressing, foveate bench next-scale",
        "foveate.methods.kv_cache.scalekv",
    ),
    Card(
        "specvlm",
        "SpecVLM: Fast Speculative Decoding in Vision-Language Models",
        "arXiv 2509.11815",
        "decoding",
        ("query", "transformation"),
        ("image", "video"),
        "A draft of one layer with a compressor for images, of which the question chooses a branch: pruning, pooling, "
        "a convolution, a resampler or no image; the model verifies the drafted tokens.",
        True,
        "foveate.speculate(model, folder) with a draft that foveate train-method specvlm wrote",
        "foveate.methods.decoding.specvlm",
    ),
    Card(
        "stc-cacher",
        "Accelerating Streaming Video Large Language Models via Hierarchical Token Compression (STC-Cacher)",
        "arXiv 2512.00891",
        "encoder",
        ("similarity",),
        ("video",),
        "Computes only the tokens of a frame whose keys changed since a reference frame, in every block of the "
        "encoder; all other tokens reuse the reference's outputs of attention and MLP. No token is dropped.",
        False,
        "foveate.stream(..., reuse=STCCacher()), foveate.reuse_features(model, STCCacher())",
        "foveate.methods.encoder.stc_cacher",
    ),
    Card(
        "vasparse",
        "VASparse: Towards Efficient Visual Hallucination Mitigation via Visual-Aware Token Sparsification",
        "arXiv 2501.06553",
        "decoding",
        ("attention",),
        ("image", "video"),
        "In decoding, attends only to the cached tokens of greatest attention and visual saliency, and subtracts the "
        "logits of a branch with fewer image tokens, against answers that the image does not support.",
        False,
        "foveate.vasparse(model)",
        "foveate.methods.decoding.vasparse",
    ),
    Card(
        "llava-mini",
        "LLaVA-Mini: Efficient Image and Video Large Multimodal Models with One Vision Token",
        "arXiv 2501.03895",
        "connector",
        ("query",),
        ("image", "video"),
        "One token of an image or frame, by learned queries; before the language model, its text reads all patches in "
        "a few decoder layers of their own.",
        True,
        "connector_type='llava_mini' in the configuration of LLaVA, or model: new: connector in a recipe",
        "foveate.models.connectors.llava_mini",
    ),
    Card(
        "quecc",
        "Inference Optimal VLMs Need Only One Visual Token but Larger Models",
        "arXiv 2411.03312",
        "connector",
        ("transformation", "query"),
        ("image",),
        "A connector that makes one token of every square of patches: a query that knows the question attends to the "
        "features of its square in several layers of the encoder.",
        True,
        "connector_type='quecc' in the configuration of LLaVA or LLaVA-UHD, or model: new: connector in a recipe",
        "foveate.models.connectors.quecc",
    ),
    Card(
        "tokenpacker",
        "TokenPacker: Efficient Visual Projector for Multimodal LLM",
        "arXiv 2407.02392",
        "connector",
        ("transformation",),
        ("image",),
        "A connector that makes one token of every square of patches: a downsampled query attends to the features of "
        "its square in several layers of the encoder.",
        True,
        "connector_type='tokenpacker' in the configuration of LLaVA or LLaVA-UHD, or model: new: connector in a recipe",
        "foveate.models.connectors.tokenpacker",
    ),
    Card(
        "llava-uhd-v1",
        "LLaVA-UHD: an LMM Perceiving Any Aspect Ratio and High-Resolution Images",
        "arXiv 2403.11703",
        "connector",
        ("query",),
        ("image",),
        "Cuts an image into slices in its own proportions and an overview; learned queries make 64 tokens of each, or "
        "12 x 12 with one query per cell.",
        True,
        "connector_type='resampler' or 'spatial_resampler' and ViewImageProcessor(LlavaUHDLayout()) of "
        "foveate.models.llava",
        "foveate.models.connectors.resampler",
    ),
    Card(
        "adventurer",
        "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More",
        "arXiv 2502.03738",
        "encoder",
        ("transformation",),
        ("image",),
        "An encoder of causal Mamba-2 blocks, whose cost is linear in the number of patches: 16 pixels a side down to "
        "one.",
        True,
        "vision_config of foveate.models.llava, or model: new: vision: {type: adventurer} in a recipe",
        "foveate.models.encoders.adventurer",
    ),
    Card(
        "plain_vit",
        "Scaling Laws in Patchification: An Image Is Worth 50,176 Tokens And More",
        "arXiv 2502.03738",
        "encoder",
        ("transformation",),
        ("image",),
        "The vision transformer for patches of 16 pixels a side down to one; trained weights of one patch size are "
        "carried to another.",
        True,
        "vision_config of foveate.models.llava, or model: new: vision: {type: plain_vit} in a recipe",
        "foveate.models.encoders.plain_vit",
    ),
    Card(
        "lookupvit",
        "LookupViT: Compressing visual information to a limited number of tokens",
        "arXiv 2407.12753",
        "encoder",
        ("query",),
        ("image",),
        "A vision transformer whose full blocks run on m x m compressed tokens, which exchange information with one "
        "token per patch by cross-attention; one training gives several m.",
        True,
        "vision_config of foveate.models.llava, or model: new: vision: {type: lookupvit} in a recipe",
        "foveate.models.encoders.lookupvit",
    ),
    Card(
        "convllava",
        "ConvLLaVA: Hierarchical Backbones as Visual Encoder for Large Multimodal Models",
        "arXiv 2405.15738",
        "encoder",
        ("transformation",),
        ("image",),
        "A ConvNeXt with a fifth stage, whose last map has one token for 64 x 64 pixels: 576 of 1536 x 1536.",
        True,
        "vision_config of foveate.models.llava, or model: new: vision: {type: convllava} in a recipe",
        "foveate.models.encoders.convllava",
    ),
    Card(
        "oryx_vit",
        "Oryx MLLM: On-Demand Spatial-Temporal Understanding at Arbitrary Resolution",
        "arXiv 2409.12961",
        "encoder",
        ("transformation",),
        ("image",),
        "A SigLIP for images of any size and proportions, whose table of positions is resized to the grid of every "
        "image; the connector oryx makes fewer tokens of its output.",
        True,
        "vision_config of foveate.models.llava, or model: new: vision: {type: oryx_vit} in a recipe",
        "foveate.models.encoders.oryx_vit",
    ),
    Card(
        "sit",
        "Self-slimmed Vision Transformer",
        "arXiv 2111.12624",
        "encoder",
        ("query",),
        ("image",),
        "A vision transformer that aggregates its tokens into fewer ones after some blocks, distilled from the same "
        "network without.",
        True,
        "vision_config of foveate.models.llava, or model: new: vision: {type: sit} in a recipe",
        "foveate.models.encoders.sit",
    ),
    Card(
        "stvit",
        "Vision Transformer with Super Token Sampling",
        "arXiv 2211.11167",
        "encoder",
        ("similarity",),
        ("image",),
        "A vision transformer whose early stages attend among super tokens, soft clusters of neighboring tokens, and "
        "map the results back.",
        True,
        "vision_config of foveate.models.llava, or model: new: vision: {type: stvit} in a recipe",
        "foveate.models.encoders.stvit",
    ),
    Card(
        "temporal-pvc",
        "PVC: Progressive Visual Token Compression for Unified Image and Video Processing in Large Vision-Language "
        "Models",
        "arXiv 2412.09613",
        "connector",
        ("transformation",),
        ("image", "video"),
        "An encoder whose last blocks attend over the frames of a clip, conditioned on time, and a connector that "
        "makes 64 tokens of a frame; an image is a clip of four equal frames.",
        True,
        "vision_config temporal_pvc and connector_type='temporal_pvc' of foveate.models.llava_video",
        "foveate.models.encoders.temporal_pvc",
    ),
    Card(
        "vqtoken",
        "VQToken: Neural Discrete Token Representation Learning for Extreme Token Reduction in Video Large Language "
        "Models",
        "arXiv 2503.16980",
        "connector",
        ("similarity",),
        ("image", "video"),
        "Clusters all tokens of a clip by k-means, with a fixed or adaptive number of clusters, and makes one token of "
        "each by attention to where the clusters are.",
        True,
        "connector_type='vqtoken' of foveate.models.llava_video",
        "foveate.models.video_connectors.vqtoken",
    ),
    Card(
        "hicom",
        "Hybrid-Level Instruction Injection for Video Token Compression in Multi-modal Large Language Models",
        "arXiv 2503.16036",
        "connector",
        ("query",),
        ("image", "video"),
        "Makes one token of every group of neighbouring patches over space and time, and a few of the whole clip by "
        "queries, both conditioned on the instruction.",
        True,
        "connector_type='hicom' and an instruction_config of foveate.models.llava_video",
        "foveate.models.video_connectors.hicom",
    ),
    Card(
        "slow-fast",
        "Slow-Fast Architecture for Video Multi-Modal Large Language Models",
        "arXiv 2504.01328",
        "decoder",
        ("transformation", "query"),
        ("image", "video"),
        "Few pooled tokens of a clip in the sequence; in every eighth decoder layer, text also attends to all frames "
        "by gated cross-attention.",
        True,
        "connector_type='slow_fast' of foveate.models.llava_video",
        "foveate.models.video_connectors.slow_fast",
    ),
    Card(
        "crosslmm",
        "CrossLMM: Decoupling Long Video Sequences from LMMs via Dual Cross-Attention Mechanisms",
        "arXiv 2505.17020",
        "decoder",
        ("transformation", "query"),
        ("image", "video"),
        "1, 9 or 16 pooled tokens of a frame in the sequence; in some decoder layers, these and the text attend to all "
        "tokens of all frames by gated cross-attention.",
        True,
        "connector_type='crosslmm' of foveate.models.llava_video",
        "foveate.models.video_connectors.crosslmm",
    ),
    Card(
        "b-vllm",
        "B-VLLM: A Vision Large Language Model with Balanced Spatio-Temporal Tokens",
        "arXiv 2412.09919",
        "connector",
        ("query", "similarity"),
        ("image", "video"),
        "Mixes the frames of a clip as the question asks, merges similar mixtures, and makes 32 tokens of each by a "
        "Q-Former that reads the question too.",
        True,
        "connector_type='b_vllm' of foveate.models.llava_video",
        "foveate.models.video_connectors.b_vllm",
    ),
    Card(
        "langdc",
        "Seeing More, Saying More: Lightweight Language Experts are Dynamic Video Token Compressors",
        "arXiv 2509.00969",
        "connector",
        ("transformation",),
        ("image", "video"),
        "Pools every frame, and lets a small language model describe every few frames: the states that it writes from "
        "are tokens too, more of them where there is more to say.",
        True,
        "connector_type='langdc' of foveate.models.llava_video",
        "foveate.models.video_connectors.langdc",
    ),
    Card(
        "vision-remember",
        "Vision Remember: Recovering Visual Information in Efficient LVLM with Vision Feature Resampling",
        "arXiv 2506.03928",
        "decoder",
        ("query",),
        ("image",),
        "Modules between layers of the language model in which compressed visual tokens attend to the encoder features "
        "of their regions.",
        True,
        "foveate.models.llava_uhd.vision_remember.add_vision_remember(model, layers), or a training recipe",
        "foveate.models.llava_uhd.vision_remember",
    ),
    Card(
        "voco",
        "VoCo-LLaMA: Towards Vision Compression with Large Language Models",
        "arXiv 2406.12275",
        "decoder",
        ("query",),
        ("image",),
        "A few trained tokens after every image; later text attends to these instead of the image, and the cache of a "
        "conversation holds only them.",
        True,
        "foveate.models.llava_uhd.voco.add_voco_tokens(model, processor, count), or a training recipe",
        "foveate.models.llava_uhd.voco",
    ),
)


def cards(pattern: str | None = None) -> list[Card]:
    """Return all cards, or those whose name or title matches shell wildcards, in any case."""
    return matching(CARDS, pattern)
