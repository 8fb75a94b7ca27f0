"""Loading of processors, also without torchvision, which `transformers` needs for videos."""

from __future__ import annotations

from functools import cache
from typing import Any

import transformers
from transformers import (
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    ProcessorMixin,
)
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.utils import PushToHubMixin, is_torchvision_available

from foveate.core.errors import FoveateError
from foveate.core.text_files import read_json
from foveate.core.weights import DATA_ONLY, file_of

#: What a processor is made of, apart from what makes clips ready.
_PARTS: dict[str, Any] = {
    "image_processor": AutoImageProcessor,
    "tokenizer": AutoTokenizer,
    "feature_extractor": AutoFeatureExtractor,
}


class NoClips(PushToHubMixin):  # how processors know a part that they save
    """Placeholder of a video processor that raises FoveateError when a video is processed.

    Args:
        settings: Video settings in the model's folder, kept so that a saved processor is complete.
    """

    model_input_names: tuple[str, ...] = ()
    _auto_class = None

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Raise FoveateError: videos cannot be processed here."""
        raise FoveateError("clips need torchvision, which is not installed: pip install 'foveate[video]'.")

    preprocess = fetch_videos = __call__

    def __getattr__(self, name: str) -> Any:
        """Return a setting, which some processors read on construction."""
        settings = self.__dict__.get("settings", {})  # empty while it is being unpickled
        if name in settings:
            return settings[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, for saving the processor."""
        return dict(self.settings)


def load_processor(location: str, config: PreTrainedConfig, **where: Any) -> Any:
    """Load the processor of a model of `transformers`.

    Without torchvision, processors of models that take clips too are put together from what images need (`NoClips`).

    Args:
        location: Folder or Hub id.
        config: The model's configuration.
        where: What `from_pretrained` takes to find files: `revision`, `token`, ...

    Raises:
        FoveateError: it needs torchvision for images too, and that is not installed.
        ImportError: another package is missing.
    """
    try:
        return AutoProcessor.from_pretrained(location, **where, **DATA_ONLY)
    except (ImportError, ValueError) as error:
        if not _misses_torchvision(error):
            raise
    try:
        return _without_clips(location, config, where)
    except (ImportError, ValueError) as error:
        if not _misses_torchvision(error):
            raise
        raise FoveateError(
            f"{location!r} needs torchvision for its images too, which is not installed: pip install 'foveate[video]'."
        ) from error


def _misses_torchvision(error: BaseException | None) -> bool:
    """Whether an error or its cause is that torchvision is not installed."""
    while error is not None and "torchvision" not in str(error).lower():
        error = error.__cause__
    return error is not None and not is_torchvision_available()


def _without_clips(location: str, config: PreTrainedConfig, where: dict[str, Any]) -> Any:
    """Build the processor as `AutoProcessor` does, with `NoClips` for videos."""
    settings, _ = ProcessorMixin.get_processor_dict(location, **where, **DATA_ONLY)
    kind: Any = getattr(transformers, settings.get("processor_class") or "", None) or PROCESSOR_MAPPING[type(config)]
    parts = [
        NoClips(settings.get("video_processor") or _from_folder(location, "video_preprocessor_config.json", where))
        if name == "video_processor"
        else _PARTS[name].from_pretrained(location, **where, **DATA_ONLY)
        for name in kind.get_attributes()
    ]
    processor = _taking_no_clips(kind).from_args_and_dict(parts, settings)
    processor.__class__ = (
        kind  # only making it is different; whoever asks for its type, pickles or saves it meets its own
    )
    return processor


@cache
def _taking_no_clips(kind: Any) -> Any:
    """Return a processor class that accepts `NoClips`, which is not part of `transformers`."""

    class Made(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if isinstance(argument, NoClips):
                return NoClips
            return super().check_argument_for_proper_class(argument_name, argument)

    Made.__name__ = kind.__name__
    return Made


def _from_folder(location: str, name: str, where: dict[str, Any]) -> dict[str, Any]:
    """Read a JSON file in a folder or on the Hub; empty if there is none."""
    file = file_of(location, name, **where)
    return {} if file is None else read_json(file)
