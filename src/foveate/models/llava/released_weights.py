"""Weights in the layout of LLaVA-1.5 and of models that were trained in its code base, read by `from_pretrained`.

Such a checkpoint has the keys `model.mm_projector.*`, `model.vision_tower.vision_tower.*`, `model.layers.*` and
`lm_head.weight`. They are converted while loading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Chunk, ConversionOps, WeightConverter, WeightRenaming

from foveate.core.errors import FoveateError
from foveate.models.connectors.configured import ConfiguredModule
from foveate.models.connectors.registry import connector_named
from foveate.models.encoders import all_encoders
from foveate.models.encoders.layers import square_table

#: Released names on the left, except those of connectors. No pattern matches a name of foveate's own layout.
RELEASED_KEYS = {
    r"^model\.vision_tower\.vision_tower\.": "model.vision_tower.",
    r"^model\.vision_tower\.guide_encoder\.": "model.instruction_encoder.",
    r"^model\.layers\.": "model.language_model.layers.",
    r"^model\.embed_tokens\.": "model.language_model.embed_tokens.",
    r"^model\.norm\.": "model.language_model.norm.",
    r"^model\.prefusion_layers\.": "model.prefusion.layers.",
}
#: In LLaVA's state dicts, used by no forward pass here.
UNUSED_KEYS = [
    r"^model\.image_newline$",
    r"^model\.compressor\.pos_embed$",
    r"rotary_emb\.inv_freq$",
    r"embeddings\.position_ids$",
    r"^model\.mm_projector\.\w+_logit_bias$",
    r"^model\.multi_modal_projector\.queries$",  # of HICom, whose queries may be the instruction
    r"^model\.vision_tower\.(norm|attn_pool|fc_norm|head)\.",
]
CONNECTOR = "model.multi_modal_projector."
EMBEDDINGS = "model.language_model.embed_tokens.weight"


class ReleasedKey(WeightRenaming):
    """A renaming for loading only: a model that is saved again keeps foveate's names."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        """A renaming that matches nothing."""
        return WeightRenaming(r"(?!)", "")


class ReleasedWeights(WeightConverter):
    """A conversion of released weights to weights of other shapes; for loading only, like `ReleasedKey`."""

    __slots__ = ()

    def reverse_transform(self) -> WeightRenaming:
        """A renaming that matches nothing."""
        return WeightRenaming(r"(?!)", "")


class AppendRows(ConversionOps):
    """Append learned vectors as the last rows of a table, after zeros for the other rows that it lacks.

    A table that has all rows stays as it is.

    Args:
        count: Rows that a released table lacks, those of the vectors among them.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    @torch.no_grad()
    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: list[str],
        target_patterns: list[str],
        model: Any = None,
        full_layer_name: str = "",
        **kwargs: Any,
    ) -> dict[str, Any]:
        """See `ConversionOps.convert`; the first source is the table, and the others are vectors in their order.

        Raises:
            FoveateError: A vector is missing.
        """
        table, *vectors = [input_dict[name][0] for name in source_patterns if name in input_dict]
        if len(table) + self.count == len(model.get_parameter(full_layer_name)):
            if missing := [name for name in source_patterns if name not in input_dict]:
                name = missing[0].removesuffix("$").rpartition(r"\.")[2]
                raise FoveateError(f"the checkpoint lacks the learned vector {name}.")
            rows = table.new_zeros(self.count, table.shape[1])
            for row, vector in enumerate(vectors, self.count - len(vectors)):
                rows[row] = vector
            table = torch.cat([table, rows])
        return {target_patterns[0]: table}


class SquareTable(ConversionOps):
    """A list of positions `(1, side * side, D)`, row-major, as the table `(1, D, side, side)`."""

    @torch.no_grad()
    def convert(
        self, input_dict: dict[str, Any], source_patterns: list[str], target_patterns: list[str], **kwargs: Any
    ) -> dict[str, Any]:
        """See `ConversionOps.convert`."""
        return {target_patterns[0]: square_table(input_dict[source_patterns[0]][0])}


def register_released_keys(model_type: str, connector_type: str = "mlp", vision_type: str | None = None) -> None:
    """Let `from_pretrained` of models with this `model_type` read released keys, of one connector and vision tower.

    Authors give different layers the same names, such as `mm_projector.0`. Models call it when they are created, which
    is before their weights are read.
    """
    register_keys_of(model_type, connector_named(connector_type), vision_type)


def register_keys_of(
    model_type: str,
    connector: type[ConfiguredModule[Any]],
    vision_type: str | None = None,
    readers: Mapping[str, str] | None = None,
) -> None:
    """`register_released_keys` of a connector of images or of clips.

    Args:
        model_type: Of the models.
        connector: The connector.
        vision_type: `model_type` of the vision tower.
        readers: Names of weights in the self-attention of decoder layers that belong to readers of a visual memory.
    """
    transforms: list[WeightConverter | WeightRenaming] = [
        ReleasedKey(rf"^model\.layers\.(\d+)\.self_attn\.{re.escape(source)}", rf"model.memory_readers.\1.{target}")
        for source, target in (readers or {}).items()
    ]
    transforms += [ReleasedKey(source, target) for source, target in RELEASED_KEYS.items()]
    prefix = rf"^model\.{connector.released_prefix}\."
    for name, target in connector.released_keys.items():
        transforms.append(_transform(name if name.startswith("^") else prefix + name, target, CONNECTOR))
    if vectors := [rf"{prefix}{name}$" for name in connector.released_vectors]:
        append = AppendRows(1 + len(vectors))
        transforms.append(ReleasedWeights([rf"^{re.escape(EMBEDDINGS)}$", *vectors], EMBEDDINGS, [append]))
        transforms.append(ReleasedWeights(r"^lm_head\.weight$", "lm_head.weight", [append]))
    if (encoder := all_encoders().get(vision_type or "")) is not None:
        for name, target in encoder.released_keys.items():
            transforms.append(_transform(name, target))
        if name := encoder.released_positions:
            transforms.append(ReleasedWeights(rf"{name}$", "positions.weight", [SquareTable()]))
    register_checkpoint_conversion_mapping(model_type, transforms, overwrite=True)


def _transform(source: str, target: str | tuple[str, ...], prefix: str = "") -> WeightConverter | WeightRenaming:
    """From a released name to one name here, or to several that share its rows evenly."""
    if isinstance(target, str):
        return ReleasedKey(source, prefix + target)
    return ReleasedWeights(source, [prefix + one for one in target], [Chunk(dim=0)])
