"""HICom: groups of neighbouring patches and learned queries, both conditioned on the instruction."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import whole_number
from foveate.models.connectors.cross_attention import CrossAttention
from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector
from foveate.models.video_connectors.mlp import MLP, released_mlp

GUIDES = ("direct", "coarse", "fine")
Guide = Literal["direct", "coarse", "fine"]
#: Width of an attention head.
HEAD_WIDTH = 128


@dataclass(frozen=True)
class HIComOptions(ConnectorOptions):
    """Options of `HICom`; the defaults are those of the paper's release.

    Args:
        frames_per_group: Frames of a group; a clip of one frame has groups of one.
        group_side: Rows and columns of a group.
        local_guide: How the instruction acts on the groups: "direct", "coarse", "fine"; None: it does not.
        adapters: Letters of what passes zero-gated adapters: "q", "k" and "v" of the groups, "g" the instruction for
            the groups, "G" the instruction for the queries.
        queries: Learned queries that attend to the whole clip; 0: none.
        global_guide: How the instruction acts on the queries, as `local_guide`.
        learned_scale: "local", "global" or both, comma-separated: cosines times a learned scale, as in SigLIP, in place
            of products over the square root of the width.
        newline: Whether a learned token follows the groups.
    """

    frames_per_group: int = 4
    group_side: int = 3
    local_guide: Guide | None = "direct"
    adapters: str = "kv"
    queries: int = 32
    global_guide: Guide | None = "coarse"
    learned_scale: str = ""
    newline: bool = False

    def __post_init__(self) -> None:
        whole_number("frames_per_group", self.frames_per_group)
        whole_number("group_side", self.group_side)
        whole_number("queries", self.queries, least=0)
        for name in ("local_guide", "global_guide"):
            if getattr(self, name) not in (None, *GUIDES):
                raise FoveateError(f"{name} must be {', '.join(GUIDES)} or null, not {getattr(self, name)!r}.")
        if not set(self.adapters) <= set("qkvgG"):
            raise FoveateError(f"adapters must be letters of qkvgG, not {self.adapters!r}.")
        if not self.scales <= {"local", "global"}:
            raise FoveateError(f"learned_scale must be local, global or local,global, not {self.learned_scale!r}.")
        if "local" in self.scales and self.local_guide is None:
            raise FoveateError("learned_scale local needs a local_guide, whose cosines it scales.")
        if not isinstance(self.newline, bool):
            raise FoveateError(f"newline must be true or false, not {self.newline!r}.")

    @property
    def scales(self) -> set[str]:
        """Parts whose scale is learned."""
        return {part for part in self.learned_scale.split(",") if part}


class Adapter(nn.Module):
    """`(1 - alpha) x + alpha LN(layers(x))`, where alpha begins at zero.

    Args:
        width: Of x.
        linear: One linear layer without bias in place of two with a GELU.
    """

    def __init__(self, width: int, linear: bool = False) -> None:
        super().__init__()
        self.layers: nn.Module = nn.Linear(width, width, bias=False) if linear else MLP(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.alpha = nn.Parameter(torch.zeros(1))

    def reset_parameters(self) -> None:
        """Set alpha to zero."""
        init.zeros_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(..., width)`."""
        return (1 - self.alpha) * x + self.alpha * self.norm(self.layers(x))


class Injection(nn.Module):
    """Conditions queries on the instruction.

    Args:
        guide: "direct": the instruction is the query; "coarse": `LN(q (1 + s) + b)` with s and b of the instruction;
            "fine": `LN(q + MHA(q, words, words))`.
        width: Of queries and instruction.
        adapted: Whether the instruction passes an adapter.
    """

    def __init__(self, guide: Guide, width: int, adapted: bool) -> None:
        super().__init__()
        self.guide = guide
        self.adapter: nn.Module = Adapter(width) if adapted else nn.Identity()
        if guide == "coarse":
            self.coarse = MLP(width, 2 * width)
        elif guide == "fine":
            self.fine = CrossAttention(width, max(width // HEAD_WIDTH, 1))
        if guide != "direct":
            self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, queries: Tensor, text: Tensor) -> Tensor:
        """Condition queries `(n, D)` on `(D,)`, or for "fine" on the words `(M, D)`."""
        text = self.adapter(text)
        if self.guide == "direct":
            return text.expand_as(queries)
        if self.guide == "coarse":
            scale, shift = self.coarse(text).chunk(2, dim=-1)
            return self.norm(queries * (1 + scale) + shift)
        words = text.expand(1, -1, -1)
        return self.norm(queries + self.fine(queries[None], words, words)[0])


class HICom(VideoConnector[HIComOptions]):
    """Makes a token of every group of 4 x 3 x 3 patches, and 32 of the whole clip, as the instruction asks.

        local:   a = softmax(k . q / sqrt(D)) over the group,  token = MLP(sum of a v)
                 v: features;  k: features in the joint space of image and text;  q: the instruction ("direct"), or the
                 features resized to one per group and conditioned on it ("coarse", "fine")
        global:  q = LN(query_i (1 + s) + b),  token_i = MLP(q + MHA(q, features + positions, features + positions))

    HICom: Hybrid-level Instruction Injection for Video Token Compression in Multi-modal Large Language Models (Liu et
    al., arXiv 2503.16036), on SigLIP-so400m/14 at 384 pixels: 32 frames of 27 x 27 patches become 648 + 32 tokens. Keys
    and values of the groups pass zero-gated adapters. Tokens of groups come first, in time and row-major, then those of
    the queries, which stand for the whole clip.

    Sides that the group does not divide have balanced windows, of which the short ones overlap the window before by
    one; where windows of one less do not fit either, the authors' code fails, and the clip is refused here.

    The authors' code parses its options from the name of the projector. That of their release,
    `local43_adaptkv_global32_coarse` with the guide "direct", has "coarse" at a place that the parser does not read:
    their queries are "direct" too, so that all 32 are the instruction and their tokens are equal. `released_options`
    reads names as the parser does; the default here is "coarse", as in the paper. A bias that they add to all scaled
    logits of a softmax changes nothing and is left out, as are the learned queries where the guide is "direct".
    """

    name: ClassVar[str] = "hicom"
    title: ClassVar[str] = (
        "Hybrid-Level Instruction Injection for Video Token Compression in Multi-modal Large Language Models"
    )
    paper: ClassVar[str] = "arXiv 2503.16036"
    options_class: ClassVar = HIComOptions
    released_types: ClassVar[tuple[str, ...]] = ("hicom_qwen2",)
    released_keys: ClassVar[Mapping[str, str | tuple[str, ...]]] = {
        r"local_compressor\.q_proj\.": "q_adapter.layers.",
        **released_mlp(r"local_compressor\.k_proj", "k_adapter.layers"),
        **released_mlp(r"local_compressor\.v_proj", "v_adapter.layers"),
        **{rf"local_compressor\.{x}_{part}": f"{x}_adapter.{part}" for x in "qkv" for part in ("norm", "alpha")},
        **{
            pattern: name
            for theirs, ours in (("local", "local_injection"), ("global", "global_injection"))
            for pattern, name in {
                **released_mlp(rf"{theirs}_compressor\.guide_injector\.guide_proj", f"{ours}.adapter.layers"),
                rf"{theirs}_compressor\.guide_injector\.guide_": f"{ours}.adapter.",
                **released_mlp(rf"{theirs}_compressor\.guide_injector\.coarse_proj", f"{ours}.coarse"),
                rf"{theirs}_compressor\.guide_injector\.fine_proj\.": f"{ours}.fine.",
                rf"{theirs}_compressor\.guide_injector\.(?:coarse|fine)_norm\.": f"{ours}.norm.",
                **released_mlp(rf"{theirs}_compressor\.readout", f"{theirs}_readout"),
            }.items()
        },
        r"global_compressor\.query": "queries",
        r"global_compressor\.attn_layer\.": "attention.",
        r"local_logit_scale": "local_scale",
        r"global_logit_scale": "global_scale",
        r"^model\.image_newline": "newline",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width, chosen = vision_hidden_size, self.options
        direct = chosen.local_guide == "direct"
        self.q_adapter: nn.Module = (
            Adapter(width, linear=True) if "q" in chosen.adapters and not direct else nn.Identity()
        )
        self.k_adapter: nn.Module = Adapter(width) if "k" in chosen.adapters else nn.Identity()
        self.v_adapter: nn.Module = Adapter(width) if "v" in chosen.adapters else nn.Identity()
        if chosen.local_guide is not None:
            self.local_injection = Injection(chosen.local_guide, width, "g" in chosen.adapters)
        self.local_readout = MLP(width, text_hidden_size)
        if "local" in chosen.scales:
            self.local_scale = nn.Parameter(torch.zeros(1))
        if chosen.newline:
            self.newline = nn.Parameter(torch.zeros(text_hidden_size))
        if chosen.queries:
            if chosen.global_guide != "direct":
                self.queries = nn.Parameter(torch.zeros(chosen.queries, width))
            if chosen.global_guide is not None:
                self.global_injection = Injection(chosen.global_guide, width, "G" in chosen.adapters)
            self.attention = CrossAttention(width, max(width // HEAD_WIDTH, 1))
            self.global_readout = MLP(width, text_hidden_size)
            if "global" in chosen.scales:
                self.global_scale = nn.Parameter(torch.zeros(1))
        self.reset_parameters()

    @classmethod
    def released_options(cls, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """See `ConfiguredModule.released_options`; names are parsed as the authors' code does."""
        kind = str(config.get("mm_projector_type", ""))
        parts = {part: _phase(kind, part) for part in ("local", "global")}
        digits = re.match(r"(\d)(\d{1,2})", parts["local"] or "")
        if digits is None:
            return None
        local, whole = parts["local"] or "", parts["global"]
        adapters = re.match(r"[qkvg]*", local.partition("adapt")[2])
        options: dict[str, Any] = {
            "frames_per_group": int(digits[1]),
            "group_side": int(digits[2]),
            "local_guide": _guide(local, config),
            "adapters": (adapters[0] if adapters else "") + ("G" if "adaptg" in (whole or "") else ""),
            "learned_scale": config.get("use_clip_scale") or "",
            "newline": "anyres" in str(config.get("image_aspect_ratio", "")),
            "queries": 0,
        }
        if whole is not None and (count := re.match(r"\d+", whole)):
            options |= {"queries": int(count[0]), "global_guide": _guide(whole, config)}
        return options

    def reset_parameters(self) -> None:
        """See `ConfiguredModule.reset_parameters`; scales are those of SigLIP."""
        for module in self.modules():
            if isinstance(module, Adapter):
                module.reset_parameters()
        for name in ("queries", "newline"):
            if hasattr(self, name):
                init.zeros_(getattr(self, name))
        for name in ("local_scale", "global_scale"):
            if hasattr(self, name):
                init.constant_(getattr(self, name), math.log(10))

    @property
    def reads_text(self) -> bool:
        """See `VideoConnector.reads_text`."""
        return bool({self.options.local_guide, self.options.global_guide if self.options.queries else None} - {None})

    @property
    def reads_states(self) -> bool:
        """See `VideoConnector.reads_states`."""
        return self.reads_text

    @property
    def reads_joint_space(self) -> bool:
        """See `VideoConnector.reads_joint_space`."""
        return self.reads_text

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`.

        Raises:
            FoveateError: Windows do not fill a side.
        """
        options = self.options
        sides = (frames, *grid)
        kernels = (1 if frames == 1 else options.frames_per_group, options.group_side, options.group_side)
        for side, kernel in zip(sides, kernels, strict=True):
            windows = -(-side // kernel)
            if windows > 1 and windows * (kernel - 1) > side:
                raise FoveateError(
                    f"the connector hicom cannot divide {side} frames, rows or columns into windows of {kernel} and "
                    f"{kernel - 1}; choose another number of frames or another group."
                )
        counts = [-(-side // kernel) for side, kernel in zip(sides, kernels, strict=True)]
        return ClipShape(*counts, extra=options.queries + options.newline)

    def connect(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> Tensor:
        """See `VideoConnector.connect`."""
        joint = features[..., 1, :].unflatten(1, grid) if self.reads_joint_space else None
        features = features[..., 0, :] if self.reads_joint_space else features
        volume = features.unflatten(1, grid)
        parts = [self._local(volume, volume if joint is None else joint, shape, text)]
        if self.options.newline:
            parts.append(self.newline[None].to(parts[0]))
        if self.options.queries:
            parts.append(self._global(volume, text))
        return torch.cat(parts)

    def _local(self, volume: Tensor, joint: Tensor, shape: ClipShape, text: Instruction | None) -> Tensor:
        """Tokens `(groups, d)` of features and their joint-space keys `(T, rows, columns, D)`."""
        counts, guide = shape[:3], _words(self.options.local_guide, text)
        scaled = "local" in self.options.scales
        if scaled and guide is not None:
            joint, guide = F.normalize(joint, dim=-1), F.normalize(guide, dim=-1)
        keys, values = self.k_adapter(joint), self.v_adapter(volume)
        resized = F.interpolate(volume.permute(3, 0, 1, 2)[None], size=counts, mode="trilinear")[0].flatten(1).T
        queries = self.q_adapter(resized)
        if guide is not None:
            queries = self.local_injection(queries, guide)
        if scaled:
            queries = queries * self.local_scale.exp()
        windows = [_windows(side, count, volume.device) for side, count in zip(volume.shape, counts, strict=False)]
        scale = 1.0 if scaled else keys.shape[-1] ** -0.5
        keys, values = _grouped(keys, windows), _grouped(values, windows)
        mixed = F.scaled_dot_product_attention(queries.unsqueeze(1), keys, values, scale=scale)
        return self.local_readout(mixed.squeeze(1))

    def _global(self, volume: Tensor, text: Instruction | None) -> Tensor:
        """Tokens `(queries, d)` of the whole clip."""
        options, attention = self.options, self.attention
        guide = _words(options.global_guide, text)
        start = (
            volume.new_zeros(options.queries, volume.shape[-1]) if options.global_guide == "direct" else self.queries
        )
        queries = start if guide is None else self.global_injection(start, guide)
        context = (volume + positions(volume.shape, volume.device).to(volume.dtype)).flatten(0, 2)[None]
        projected = [attention.q_proj(queries[None]), attention.k_proj(context), attention.v_proj(context)]
        scale = None
        if "global" in options.scales:
            projected[0] = F.normalize(projected[0], dim=-1) * self.global_scale.exp()
            projected[1], scale = F.normalize(projected[1], dim=-1), 1.0
        query, key, value = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in projected)
        mixed = F.scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(2)
        return self.global_readout(queries + attention.out_proj(mixed)[0])


def positions(shape: torch.Size, device: torch.device) -> Tensor:
    """Positions `(T, rows, columns, D)`: sums of those of time, row and column.

    Each has sines at even and cosines at odd channels c, of the place over `10000^(2 floor(c / 2) / D)`.
    """
    width = shape[-1]
    channels = torch.arange(width, device=device)
    frequencies = 10_000.0 ** -(2 * (channels // 2).double() / width)

    def line(count: int) -> Tensor:
        angles = torch.arange(count, dtype=torch.float64, device=device)[:, None] * frequencies
        return torch.where(channels % 2 == 0, angles.sin(), angles.cos())

    time, rows, columns = (line(side) for side in shape[:3])
    return (time[:, None, None] + rows[:, None] + columns).float()


def _windows(side: int, count: int, device: torch.device) -> Tensor:
    """Places `(count, length)` of balanced windows along a side; short ones overlap the window before by one."""
    length = -(-side // count)
    full = side % count or count
    starts = torch.arange(count, device=device)
    starts = starts * length - (starts - full + 1).clamp(min=0)
    return starts[:, None] + torch.arange(length, device=device)


def _grouped(volume: Tensor, windows: list[Tensor]) -> Tensor:
    """Groups `(groups, tokens of a group, D)` of `(T, rows, columns, D)`, both row-major."""
    for axis, places in enumerate(windows):  # (T, R, C, D) -> (t, kt, R, C, D) -> (t, kt, r, kr, C, D) -> ...
        volume = volume.index_select(2 * axis, places.flatten()).unflatten(2 * axis, places.shape)
    return volume.permute(0, 2, 4, 1, 3, 5, 6).flatten(3, 5).flatten(0, 2)


def _words(guide: Guide | None, text: Instruction | None) -> Tensor | None:
    """What a guide reads of the instruction.

    Raises:
        FoveateError: The model has no text encoder.
    """
    if guide is None or text is None:
        return None
    read = text.states if guide == "fine" else text.pooled
    if read is None:
        raise FoveateError("the connector hicom reads states of a text encoder: give the model an instruction_config.")
    return read


def _phase(kind: str, part: Literal["local", "global"] | str) -> str | None:
    """What a name says of one part."""
    other = {"local": "global", "global": "local"}[part]
    return kind.split(part)[-1].split(other)[0] if part in kind else None


def _guide(phase: str, config: Mapping[str, Any]) -> str | None:
    """The guide of one part."""
    named = phase.split("guide")[-1].split("_")[0] if "guide" in phase else config.get("use_guide")
    return None if named in (None, "off") else named
