"""What is trained and measured, in an order that continues after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.benchmark.avsr.formatting import label
from foveate.benchmark.profiling import hardware, threads, versions
from foveate.benchmark.results import earlier, write_json
from foveate.core.counting import share_of
from foveate.core.errors import FoveateError
from foveate.models.avsr import Rates
from foveate.training.avsr import AVSRRecipe, PoolTask, Task, train_encoders, train_language_model, train_recognizer
from foveate.training.avsr.data import Features, encode_utterances
from foveate.training.avsr.recipe import AUDIO_RATE
from foveate.training.avsr.tasks import Share
from foveate.training.avsr.text import PROMPT, build_tokenizer
from foveate.training.callbacks import StopRequest
from foveate.training.run_directory import OnProgress

KIND = "avsr"
#: A reduction of 8 gives LoRA a rank of 12 here; 64, as in the papers, would give 2.
_LORA = {"lora_reduction": 8}
#: Of the 100 tokens of two seconds: 50, 20 and 10.
_RATIOS = (0.5, 0.2, 0.1)
#: Trainings by name, in their order.
SYSTEMS: dict[str, Task | PoolTask] = {
    "audio-4": Task((4,), (), _LORA),
    "video-2": Task((), (2,), _LORA),
    "audio-visual-4-2": Task((4,), (2,), _LORA),
    "mome": Task((4, 16), (2, 5), {"adapter": "mome"}),
    "audio-visual-16-5": Task((16,), (5,), _LORA),
    "mtsk": Task((4, 16), (2, 5), {"lora_scheme": "per_rate", **_LORA}),
    "mtsk-shared": Task((4, 16), (2, 5), {"lora_scheme": "shared", **_LORA}),
    "mtsk-shared-and-per-rate": Task((4, 16), (2, 5), {"lora_scheme": "shared_and_per_rate", **_LORA}),
    "audio-16": Task((16,), (), _LORA),
    "video-5": Task((), (5,), _LORA),
    "pool": PoolTask((1.0,), 0),
    "echoing-pixels": PoolTask(_RATIOS, 1, start="pool"),
    "echoing-pixels-two-layers": PoolTask(_RATIOS, 2, start="pool"),
    "echoing-pixels-no-layer": PoolTask(_RATIOS, 0, start="pool"),
}


@dataclass(frozen=True)
class AVSRSettings:
    """Settings of the benchmark.

    Args:
        systems: Names of trainings in `SYSTEMS`.
        recipe: Settings of the trainings.
        held_out: Held-out utterances, by voices that training has not.
        snrs: Levels of noise in dB at which they are recognized; None: no noise.
        threads: Threads of the CPU.
    """

    systems: tuple[str, ...] = tuple(SYSTEMS)
    recipe: AVSRRecipe = field(default_factory=AVSRRecipe)
    held_out: int = 200
    snrs: tuple[float | None, ...] = (None, 10.0, 5.0, 0.0, -5.0, -10.0)
    threads: int = 1

    def __post_init__(self) -> None:
        if unknown := [name for name in self.systems if name not in SYSTEMS]:
            raise FoveateError(f"there is no training {unknown[0]!r}; possible are {', '.join(SYSTEMS)}.")
        for name in ("held_out", "threads"):
            if getattr(self, name) < 1:
                raise FoveateError(f"{name} is {getattr(self, name)}; the minimum is 1.")


def quick() -> AVSRSettings:
    """Settings that try the command: few steps, two systems."""
    recipe = AVSRRecipe(
        utterances=50, width=32, encoder_layers=1, text_layers=1, encoder_steps=2, text_steps=2, steps=2, batch_size=8
    )
    return AVSRSettings(("audio-4", "mome"), recipe, held_out=10, snrs=(None, 0.0))


def word_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Substituted, left-out and inserted words: the edit distance of two lists of words."""
    row = list(range(len(hypothesis) + 1))
    for place, word in enumerate(reference, start=1):
        before, row[0] = row[0], place
        for column, other in enumerate(hypothesis, start=1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (word != other))
    return row[-1]


def run(
    settings: AVSRSettings,
    path: Path,
    runs: Path,
    *,
    max_minutes: float | None = None,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
    on_progress: OnProgress = lambda *_: None,
) -> dict[str, Any]:
    """Train what is not trained yet, recognize, and write the table after every system.

    Args:
        settings: What to train and measure.
        path: JSON file; rows of an earlier run with the same settings are kept.
        runs: Folder of models, features and states.
        max_minutes: Stop after so many minutes; the same call continues.
        command: The command line, for the file.
        report: Called with each finished part.
        on_progress: Progress of the stage that runs.

    Returns:
        The document. A row has `system`, `audio` and `video` (rates), `tokens` of both modalities, `snr`, `errors` and
        `words`, the word error rate `wer` with a 95 % bootstrap interval over utterances `low` and `high`. That of a
        pool has in place of rates `ratio`, what is kept of it, and `random`, whether at random, and `sound`, the share
        of sound in that with its interval.
    """
    stop = StopRequest(max_minutes)
    (rows,) = earlier(path, asdict(settings), ["rows"], KIND)
    document = {
        "kind": KIND,
        "command": command,
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "settings": asdict(settings),
        "note": "Words per utterance: 3 of 30. Babble is six other utterances of the same split. Held-out voices. "
        "Rates: frames of Whisper's encoder (50 a second) and of the lip encoder (25 a second) per token.",
        "finished": False,
        "rows": rows,
    }
    with threads(settings.threads), stop.on_signals():
        _run(settings, document, path, runs, stop, report, on_progress)
    write_json(path, document)
    return document


def _run(
    settings: AVSRSettings,
    document: dict[str, Any],
    path: Path,
    runs: Path,
    stop: StopRequest,
    report: Callable[[str], None],
    on_progress: OnProgress,
) -> None:
    recipe, tokenizer = settings.recipe, build_tokenizer()
    runs.mkdir(parents=True, exist_ok=True)
    encoders = train_encoders(recipe, runs / "encoders", on_progress, stop)
    if encoders is None:
        return
    report("encoders trained")
    text = train_language_model(recipe, tokenizer, runs / "language-model", on_progress, stop)
    if text is None:
        return
    report("language model trained")

    def encoded(name: str, count: int, split: str, snrs: Sequence[float | None]) -> Features | None:
        def shown(done: int, total: int) -> None:
            on_progress(f"features {name}", done, total, None)

        whisper, lips = encoders
        folder = runs / "features" / name
        return encode_utterances(whisper.encoder, lips, range(count), split, snrs, recipe.noise, folder, stop, shown)

    features = encoded("train", recipe.utterances, "train", recipe.snrs)
    levels = [(snr, encoded(f"held-out-{snr}", settings.held_out, "held-out", [snr])) for snr in settings.snrs]
    held_out = {snr: of_level for snr, of_level in levels if of_level is not None}
    if features is None or len(held_out) < len(levels):
        return
    report("features made")
    known = {row["system"] for row in document["rows"]}

    def trained(name: str) -> Any:
        task = SYSTEMS[name]
        start = None if task.start is None else trained(task.start)
        if stop.requested:
            return None
        parts = (*encoders, text)
        return train_recognizer(recipe, task, parts, tokenizer, features, runs / name, on_progress, stop, start)

    for name in settings.systems:
        if name in known:
            continue
        model = trained(name)
        if model is None:
            return
        for setting in SYSTEMS[name].settings:
            for snr, of_level in held_out.items():
                row = _row(name, model, setting, snr, of_level, tokenizer)
                document["rows"].append(row)
                noise = "without noise" if snr is None else f"at {snr:g} dB"
                report(f"{label(row)} {noise}: word error {100 * row['wer']:.1f} %")
        write_json(path, document)
    document["finished"] = True


def _interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over utterances."""
    drawn = np.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def _row(
    name: str, model: Any, setting: Rates | Share, snr: float | None, features: Features, tokenizer: Any
) -> dict[str, Any]:
    task: Any = SYSTEMS[name]
    errors, shares = [], []
    prompt = torch.tensor([tokenizer.convert_tokens_to_ids(["<s>", PROMPT])])
    for rows in torch.arange(len(features.texts)).split(50):
        inputs = features.inputs(rows, *task.reads)
        written = task.transcribe(model, prompt.expand(len(rows), -1), setting, inputs)
        if isinstance(written, tuple):
            written, share = written
            shares.extend(share.tolist())
        for row, text in zip(rows.tolist(), tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            errors.append(word_errors(features.texts[row].split(), text.split()))
    words = sum(len(text.split()) for text in features.texts)
    per_utterance = np.array(errors) * len(errors) / words
    low, high = _interval(per_utterance)
    row = {
        "system": name,
        **setting._asdict(),
        "tokens": _tokens(setting, features),
        "snr": snr,
        "errors": int(sum(errors)),
        "words": words,
        "wer": float(per_utterance.mean()),
        "low": low,
        "high": high,
        "trained_parameters": task.trained_parameters(model),
    }
    if shares:
        of_sound = np.array(shares)
        row["sound"] = dict(zip(("share", "low", "high"), (float(of_sound.mean()), *_interval(of_sound)), strict=True))
    return row


def _tokens(setting: Rates | Share, features: Features) -> dict[str, int | None]:
    """Tokens of an utterance that the language model reads: of each modality, or of the pool of both."""
    audio, video = features.audio.shape[1], features.video.shape[1]
    if isinstance(setting, Share):
        return {"pool": share_of(setting.ratio, audio // AUDIO_RATE + video, "up")}
    return {
        "audio": None if setting.audio is None else audio // setting.audio,
        "video": None if setting.video is None else video // setting.video,
    }
