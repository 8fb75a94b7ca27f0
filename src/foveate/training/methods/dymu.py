"""DyMU's thresholds (arXiv 2504.17040), such that a number of tokens stays on average over a set of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.families.llava import feature_layer
from foveate.methods.encoder.dymu import DyMU, Thresholds
from foveate.runtime.vision_merging import blocks_of, calibrate
from foveate.training.callbacks import StopRequest
from foveate.training.methods.shared.base import MethodTrainer
from foveate.training.methods.shared.config import at_least_one, option
from foveate.training.methods.shared.images import image_files, load_with_encoder, pixels_of
from foveate.training.methods.shared.loop import TrainState
from foveate.training.run_directory import OnProgress, RunDirectory, quiet


@dataclass(frozen=True, kw_only=True)
class DyMUTrainConfig:
    """How thresholds are found; the authors read up to 256,000 images in batches of 64 to 128."""

    images: tuple[Path, ...] = option(help="Image or folder of images like those it will read; may be repeated.")
    count: int = option(help="Tokens of an image that shall stay, on average.", minimum=1)
    batch_size: int = option(64, "Images that are read together.", minimum=1)
    output_layer: int | None = option(
        None, "Block whose output is read, -1 for the last.", shown="the one that the model reads"
    )
    inflect: float = option(0.0, "Merge more in the first blocks (-1), in the last ones (1), or alike (0).", minimum=-1)

    def __post_init__(self) -> None:
        at_least_one(self, "count", "batch_size")
        if not -1 <= self.inflect <= 1:
            raise FoveateError(f"inflect lies between -1 and 1, not {self.inflect}.")


class DyMUTrainer(MethodTrainer[DyMUTrainConfig]):
    """Finds how similar tokens must be to merge.

    The encoder reads the images in batches; in every block the best pairs of a whole batch merge, whichever images
    they are in, and the score at which they stop becomes the threshold. With the thresholds, simple images keep fewer
    tokens than rich ones. The model is a CLIP or SigLIP vision encoder, or one that has such an encoder.
    """

    name = DyMU.name
    config_class = DyMUTrainConfig
    output = "thresholds.json"
    resumable = False
    needs_model = True
    examples = """
        foveate train-method dymu --model llava-hf/llava-1.5-7b-hf --images photos --count 192 -o thresholds.json
        foveate train-method dymu --model google/siglip-base-patch16-224 --images photos --count 192 -o thresholds.json
        foveate ask photo.jpg "What is this?" --model llava-hf/llava-1.5-7b-hf --plan "dymu(thresholds=thresholds.json)"
    """

    def load(self, model: str | None, device: str | None) -> tuple[Any, Any]:
        """A model or an encoder alone, and its image processor."""
        if model is None:
            raise FoveateError("say whose encoder: --model, a folder or Hub id of a CLIP or SigLIP encoder or LLaVA.")
        return load_with_encoder(model, device)

    def data(self) -> list[Path]:
        """The image files."""
        return image_files(self.config.images)

    def fit(
        self,
        model: Any,
        processor: Any,
        data: list[Path],
        run: RunDirectory | None = None,
        on_progress: OnProgress = quiet,
        stop: StopRequest | None = None,
    ) -> TrainState[Thresholds]:
        """Read all images once.

        Raises:
            FoveateError: there are no images, of different sizes, or so many tokens cannot be merged.
            KeyboardInterrupt: it was stopped; there is nothing to go on from.
        """
        config = self.config
        tower: nn.Module = getattr(model, "vision_tower", None) or getattr(model, "vision_model", model)
        layer = config.output_layer
        if layer is None:
            reads = hasattr(model, "vision_tower") and hasattr(model.config, "vision_feature_layer")
            layer = feature_layer(model, len(blocks_of(tower))) if reads else -1
        parameter = next(tower.parameters())

        def batches() -> Iterator[Tensor]:
            for start in range(0, len(data), config.batch_size):
                if stop is not None and stop.requested:
                    raise KeyboardInterrupt
                on_progress("images", start, len(data), None)
                pixels = pixels_of(processor, data[start : start + config.batch_size])
                yield pixels.to(parameter.device, parameter.dtype)

        thresholds = calibrate(tower, batches(), config.count, output_layer=layer, inflect=config.inflect)
        return TrainState(thresholds, len(data), True)

    def save(self, network: Thresholds, output: Path) -> None:
        """Write thresholds to a file that `dymu` reads."""
        network.save(output)

    def evaluate(self, model: Any, processor: Any, state: TrainState[Thresholds], output: Path) -> dict[str, Any]:
        """The thresholds: they are what was measured."""
        return {"thresholds": list(state.network.values)}

    def describe(self, model: Any, state: TrainState[Thresholds]) -> dict[str, Any]:
        """Encoder, tokens and images."""
        thresholds = state.network
        return {
            "encoder": thresholds.encoder,
            "patches": thresholds.patches,
            "count": thresholds.count,
            "images": thresholds.images,
        }

    def report(self, document: dict[str, Any]) -> Iterable[str]:
        """One line."""
        yield (
            f"{document['output']} written: {len(document['thresholds'])} blocks of {document['encoder']}, "
            f"{document['patches']} tokens to {document['count']} on average over {document['images']} images."
        )
