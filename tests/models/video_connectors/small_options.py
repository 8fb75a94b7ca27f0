"""Options of every video connector for the small shapes of these tests, where the defaults do not fit them."""

from __future__ import annotations

from typing import Any

#: Options by connector. A connector whose defaults work on clips of 4 frames of 6 x 6 features needs no entry.
SMALL: dict[str, dict[str, Any]] = {
    "average": {"frames_per_token": 2},
    "vqtoken": {"clusters": 7, "least_clusters": 3, "adaptive": "silhouette", "map_size": [2, 3, 3], "num_heads": 4},
    "b_vllm": {
        "vocabulary": 264,
        "width": 16,
        "layers": 2,
        "heads": 2,
        "hidden": 24,
        "frame_queries": 3,
        "patch_queries": 4,
        "tokens": 12,
    },
    "crosslmm": {"tokens": 4, "every": 1},
    "langdc": {
        "clip_frames": 2,
        "pooled_image": 2,
        "pooled_video": 1,
        "caption_image": 3,
        "caption_video": 2,
        "tokens": 5,
        "stop": [1, 3, 5, 0],
        "before": [7],
        "after": [8, 9],
        "vocabulary": 24,
        "width": 16,
        "layers": 2,
        "heads": 4,
        "hidden": 24,
    },
    "hicom": {"frames_per_group": 2, "group_side": 2, "queries": 3},
    "slow_fast": {"least_frames": 1, "temporal_stride": 2, "clip_pooling": 2, "every": 2},
    "temporal_pvc": {"scale": 3, "image_frames": 2},
}


#: Parameters that no output depends on, or without gradients, as regular expressions: words leave a Q-Former before its
#: last MLP, and captions are written without gradients.
UNREAD = {"b_vllm": r"layer\.1\.(intermediate|output)\.", "langdc": r"^caption"}
#: Connectors that read the joint space of a SigLIP and its text encoder.
JOINT = ("hicom",)


def options_of(name: str) -> dict[str, Any]:
    return dict(SMALL.get(name, {}))
