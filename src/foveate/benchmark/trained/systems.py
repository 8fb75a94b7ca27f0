"""What is trained: connectors and encoders at several numbers of tokens. A new one is a line in `SYSTEMS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from foveate.core.errors import FoveateError
from foveate.core.plan import Plan
from foveate.models.encoders.sit import FRD


@dataclass(frozen=True)
class Training:
    """One training, and the lengths at which its model is evaluated.

    Args:
        system: Name of its `System`.
        name: Of its folder: the system, and the number of tokens where that is fixed.
        recipe: Name of its recipe in the package.
        lengths: Tokens of an image; several for a nested connector.
        options: Options of the connector that replace those of the recipe.
        plan: Method that chooses a length of a nested connector, such as "m3".
        image_size: Side of the images in pixels; None: that of the recipe.
        encoder: Fields of the vision tower with its `type`, which is trained from random weights; empty: the trained
            and frozen tower of the benchmark.
        from_base: Whether that tower is made of the trained one, in place of random weights.
        teacher: Name of the training whose tower this one starts from, in place of random weights.
        recalibration: Weight of the loss by which that tower also teaches this one
            (`foveate.training.recalibration`).
    """

    system: str
    name: str
    recipe: str
    lengths: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    plan: str = ""
    image_size: int | None = None
    encoder: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = ""
    recalibration: float = 0.0
    from_base: bool = False

    @property
    def described(self) -> dict[str, Any]:
        """Its fields as the folder of a run has them; without an encoder or a teacher as before there was one."""
        added = ("encoder", "teacher", "recalibration", "from_base")
        return {name: value for name, value in asdict(self).items() if value or name not in added}

    @property
    def plans(self) -> dict[int, str]:
        """The plan of every length; empty where the connector has one length."""
        return {tokens: str(Plan.of(f"{self.plan}:{tokens}")) for tokens in self.lengths} if self.plan else {}


@dataclass(frozen=True)
class System:
    """A connector or an encoder in the comparison.

    Args:
        name: In tables.
        lengths: Options of the connector that give a number of tokens. Each is a training of its own.
        nested: Numbers of tokens of one training of a nested connector or encoder.
        plan: Method that chooses them; default: the name.
        image_sizes: Sides of smaller images in pixels, by their number of tokens. Each is a training of its own.
        recipe: Of recipes/ in the package; default: connectors/NAME.
        encoder: See `Training`.
        from_base: See `Training`.
        teacher: See `Training`.
        recalibration: See `Training`.
        control: Whether it is no paper, but what papers are compared with.
    """

    name: str
    lengths: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    nested: tuple[int, ...] = ()
    plan: str = ""
    image_sizes: Mapping[int, int] = field(default_factory=dict)
    recipe: str = ""
    encoder: Mapping[str, Any] = field(default_factory=dict)
    from_base: bool = False
    teacher: str = ""
    recalibration: float = 0.0
    control: bool = False

    @property
    def trainings(self) -> list[Training]:
        """Its trainings."""
        recipe = self.recipe or f"connectors/{self.name}"
        tower: dict[str, Any] = {
            "encoder": self.encoder,
            "from_base": self.from_base,
            "teacher": self.teacher,
            "recalibration": self.recalibration,
        }
        made = [
            Training(self.name, f"{self.name}-{tokens}", recipe, (tokens,), options, **tower)
            for tokens, options in self.lengths.items()
        ]
        made += [
            Training(self.name, f"{self.name}-{tokens}", recipe, (tokens,), image_size=side)
            for tokens, side in self.image_sizes.items()
        ]
        if self.nested:
            plan = self.plan or self.name
            made.append(Training(self.name, self.name, recipe, self.nested, plan=plan, **tower))
        return made


#: Squares of 12 x 12 patches that give 36, 16, 9 and 4 tokens; the papers have the first three on 24 x 24 patches.
_SCALES = {tokens: {"scale": scale} for tokens, scale in ((36, 2), (16, 3), (9, 4), (4, 6))}

#: The shape of the trained tower, for encoders that are trained from random weights: 6 blocks, of which all are read.
_BLOCKS = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
_VIT = {"type": "plain_vit", "image_size": 168, "patch_size": 14, **_BLOCKS}
_LOOKUP = {**_VIT, "type": "lookupvit", "compressed_side": 6, "lookup_intermediate_size": 96}
_FALCON = {**_VIT, "type": "falcon_vision", "num_registers": 36, "max_crops": 1}
#: Stride 16 in both, so that an image of 192 pixels has 12 x 12 patches.
_SIT = {**_BLOCKS, "type": "sit", "image_size": 192, "stage_blocks": [2, 2, 2], "keeping_ratio": 0.5}
#: The training whose tower teaches the slimmed one.
_TEACHER = "sit-teacher-36"
_STVIT = {
    "type": "stvit", "image_size": 192, "depths": [1, 1, 4], "hidden_sizes": [24, 48, 192], "num_heads": [1, 2, 3],
    "cell_sizes": [4, 2, 1], "layer_scale": [False, False, False],
}  # fmt: skip
#: Stride 32.
_CONVLLAVA = {
    "type": "convllava", "image_size": 192, "patch_size": 2, "depths": [1, 1, 2, 2, 2],
    "hidden_sizes": [24, 48, 96, 192, 192], "layer_scale_init_value": 0.1,
}  # fmt: skip
#: Plain ViTs of other patches on images of 128 pixels, pooled to 4 x 4 tokens.
_PATCHES = {side: {**_VIT, "image_size": 128, "patch_size": side} for side in (32, 16, 8)}

SYSTEMS: tuple[System, ...] = (
    System("mlp", {144: {}}, control=True),
    System("smaller-image", image_sizes={36: 84, 16: 56, 9: 42, 4: 28}, recipe="connectors/mlp", control=True),
    System("average", _SCALES, control=True),
    System("pixel_unshuffle", _SCALES, control=True),
    System("tokenpacker", _SCALES),
    # LLaVA-UHD v1 has a ninth of 24 x 24 patches, and a quarter where every query has its own cell.
    System("resampler", {16: {"num_queries": 16}}),
    System("spatial_resampler", {36: {"num_queries": 36}}),
    System("fourier", {36: {"ratio": 1 / 2}, 16: {"ratio": 1 / 3}, 9: {"ratio": 1 / 4}}),
    System("oryx", nested=(9, 36, 144)),
    System("m3", nested=(1, 9, 36, 144)),
    System("mqt", nested=(4, 16, 36, 144)),
    System("tokenflex", nested=(16, 36, 144)),
    System("quecc", _SCALES),
    System("llava_mini", {1: {}}),
    System("llava_mini-no-prefusion", {1: {"prefusion_layers": 0}}, recipe="connectors/llava_mini", control=True),
    System("m3-separate", {36: {"tokens": 36}, 9: {"tokens": 9}}, recipe="connectors/m3", control=True),
    System(
        "vit", {144: {"scale": 1}, 36: {"scale": 2}, 16: {"scale": 3}, 4: {"scale": 6}}, recipe="connectors/average",
        encoder=_VIT, control=True,
    ),
    System("convllava", {36: {}}, recipe="connectors/mlp", encoder=_CONVLLAVA),
    System("lookupvit", {36: {}}, recipe="connectors/mlp", encoder=_LOOKUP),
    System(
        "lookupvit-nested", nested=(4, 16, 36), plan="nested", recipe="connectors/mlp",
        encoder={**_LOOKUP, "training_sides": [2, 4, 6]},
    ),
    System("stvit", {36: {"scale": 2}}, recipe="connectors/average", encoder=_STVIT),
    System("sit-no-distillation", {36: {}}, recipe="connectors/mlp", encoder=_SIT),
    System(
        "sit-teacher", {36: {"scale": 2}}, recipe="connectors/average", encoder={**_SIT, "slimming": False},
        control=True,
    ),
    System("sit-from-teacher", {36: {}}, recipe="connectors/mlp", encoder=_SIT, teacher=_TEACHER, control=True),
    System("sit", {36: {}}, recipe="connectors/mlp", encoder=_SIT, teacher=_TEACHER, recalibration=FRD().tokens),
    System("falcon", {36: {}}, recipe="connectors/mlp", encoder=_FALCON),
    *(
        System(
            f"patch-{side}", {16: {"scale": 32 // side}}, recipe="connectors/average", encoder=fields,
            control=side == 32,
        )
        for side, fields in _PATCHES.items()
    ),
)  # fmt: skip

#: The vision tower of the model that trainings of video connectors start from, as recipes/video/base.yaml has it.
CLIP_TOWER = {
    "type": "siglip_vision_model", "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3,
    "intermediate_size": 768, "image_size": 112, "patch_size": 14,
}  # fmt: skip
_PVC_TOWER = {
    **CLIP_TOWER, "type": "temporal_pvc", "temporal_layers": 2, "cls_token": False, "final_norm": True,
    "hidden_act": "gelu_pytorch_tanh",
}  # fmt: skip

#: Video connectors, on clips of 8 frames of 8 x 8 patches; average pooling is at each of their numbers of tokens.
VIDEO_SYSTEMS: tuple[System, ...] = (
    System(
        "average",
        {128: {}, 72: {"scale": 3}, 64: {"frames_per_token": 2}, 32: {"frames_per_token": 4}},
        recipe="video/average", control=True,
    ),
    System("slow_fast", {64: {}}, recipe="video/slow_fast"),
    System("crosslmm", {32: {}}, recipe="video/crosslmm"),
    System("vqtoken", {32: {}}, recipe="video/vqtoken"),
    System("b_vllm", {64: {}}, recipe="video/b_vllm"),
    System("hicom", {72: {}}, recipe="video/hicom"),
    System("langdc", {72: {}}, recipe="video/langdc"),
    System("temporal_pvc", {32: {}}, recipe="video/temporal_pvc", encoder=_PVC_TOWER, from_base=True),
)  # fmt: skip

#: Lengths whose trainings run first, after the nested ones: an unfinished table then compares systems at one length.
_FIRST = (36, 9, 144, 16, 4)


def systems_by_name() -> dict[str, System]:
    """Every system by its name."""
    return {system.name: system for system in SYSTEMS}


def trainings(only: Sequence[str] = (), systems: Sequence[System] = SYSTEMS) -> list[Training]:
    """Trainings in the order in which they run.

    Args:
        only: Names of systems or trainings; empty: all. Those that they start from are added.
        systems: Of one table.

    Raises:
        FoveateError: A name is none of them.
    """
    made = [training for system in systems for training in system.trainings]
    known = dict.fromkeys(name for training in made for name in (training.system, training.name))
    if unknown := [name for name in only if name not in known]:
        raise FoveateError(f"there is no training {unknown[0]!r}; possible are {', '.join(known)}.")
    chosen = [training for training in made if not only or {training.system, training.name} & set(only)]
    needed = {training.teacher for training in chosen}
    chosen += [training for training in made if training.name in needed and training not in chosen]
    return sorted(chosen, key=_place)


def _place(training: Training) -> tuple[bool, int, bool]:
    """Connectors before encoders, which are compared with each other; what starts from another one after it."""
    if len(training.lengths) > 1:
        return bool(training.encoder), -1, bool(training.teacher)
    tokens = training.lengths[0]
    place = _FIRST.index(tokens) if tokens in _FIRST else len(_FIRST)
    return bool(training.encoder), place, bool(training.teacher)
