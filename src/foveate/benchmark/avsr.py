"""Word error of audio-visual speech recognizers over noise and compression rate, all trained under one protocol.

Encoders and language model are trained once and frozen. Every system then trains its projectors and adapters on the
same features, with the same steps and seed: Llama-AVSR once per rate and modality, Llama-MTSK and MoME once for all
rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foveate.benchmark.profiling import hardware, threads, versions
from foveate.benchmark.results import earlier, write_json
from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write
from foveate.models.avsr import AVSRForConditionalGeneration, Rates
from foveate.training.avsr import AVSRRecipe, Task, train_encoders, train_language_model, train_recognizer
from foveate.training.avsr.data import Features, encode_utterances
from foveate.training.avsr.text import PROMPT, build_tokenizer
from foveate.training.callbacks import StopRequest
from foveate.training.run_directory import OnProgress

KIND = "avsr"
#: A reduction of 8 gives LoRA a rank of 12 here; 64, as in the papers, would give 2.
_LORA = {"lora_reduction": 8}
#: Trainings by name, in their order.
SYSTEMS: dict[str, Task] = {
    "audio-4": Task((4,), (), _LORA),
    "video-2": Task((), (2,), _LORA),
    "audio-visual-4-2": Task((4,), (2,), _LORA),
    "mome": Task((4, 16), (2, 5), {"adapter": "mome"}),
    "audio-visual-16-5": Task((16,), (5,), _LORA),
    "mtsk": Task((4, 16), (2, 5), {"lora_scheme": "per_rate", **_LORA}),
    "audio-16": Task((16,), (), _LORA),
    "video-5": Task((), (5,), _LORA),
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
        `words`, the word error rate `wer` with a 95 % bootstrap interval over utterances `low` and `high`.
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
    held_out = {snr: encoded(f"held-out-{snr}", settings.held_out, "held-out", [snr]) for snr in settings.snrs}
    if features is None or None in held_out.values():
        return
    report("features made")
    known = {row["system"] for row in document["rows"]}
    for name in settings.systems:
        if name in known:
            continue
        model = train_recognizer(
            recipe, SYSTEMS[name], (*encoders, text), tokenizer, features, runs / name, on_progress, stop
        )
        if model is None:
            return
        for rates in model.config.all_rates:
            for snr, of_level in held_out.items():
                row = _row(name, model, rates, snr, of_level, tokenizer)
                document["rows"].append(row)
                report(f"{name} {rates} at {snr} dB: word error {100 * row['wer']:.1f} %")
        write_json(path, document)
    document["finished"] = True


def _row(
    name: str, model: AVSRForConditionalGeneration, rates: Rates, snr: float | None, features: Any, tokenizer: Any
) -> dict[str, Any]:
    errors, config = [], model.config
    prompt = torch.tensor([tokenizer.convert_tokens_to_ids(["<s>", PROMPT])])
    for rows in torch.arange(len(features.texts)).split(50):
        written = model.generate(
            prompt.expand(len(rows), -1),
            rates,
            max_new_tokens=8,
            do_sample=False,
            **features.inputs(rows, config.reads_audio, config.reads_video),
        )
        for row, text in zip(rows.tolist(), tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            errors.append(word_errors(features.texts[row].split(), text.split()))
    words = sum(len(text.split()) for text in features.texts)
    per_utterance = np.array(errors) * len(errors) / words
    drawn = np.random.default_rng(0).choice(per_utterance, (2000, len(errors))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    tokens = {
        "audio": None if rates.audio is None else features.audio.shape[1] // rates.audio,
        "video": None if rates.video is None else features.video.shape[1] // rates.video,
    }
    return {
        "system": name,
        "adapter": config.adapter,
        **rates._asdict(),
        "tokens": tokens,
        "snr": snr,
        "errors": int(sum(errors)),
        "words": words,
        "wer": float(per_utterance.mean()),
        "low": float(low),
        "high": float(high),
        "trained_parameters": sum(
            value.numel() for key, value in model.named_parameters() if "projector." in key or ".adapter." in key
        ),
    }


def label(row: dict[str, Any]) -> str:
    """Name of a row's system with its rates."""
    named = [f"{name} {row[name]}" for name in ("audio", "video") if row[name] is not None]
    kind = row["system"] if row["system"] in ("mtsk", "mome") else "llama-avsr"
    return f"{kind}: {', '.join(named)}"


def table(document: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a result as text: word error in percent by level of noise."""
    snrs = document["settings"]["snrs"]
    header = ["system and rates", "tokens", *("clean" if snr is None else f"{snr:g} dB" for snr in snrs)]
    lines: dict[str, dict[Any, dict[str, Any]]] = {}
    for row in document["rows"]:
        lines.setdefault(label(row), {})[row["snr"]] = row
    return header, [
        [
            name,
            "+".join(str(count) for count in next(iter(cells.values()))["tokens"].values() if count is not None),
            *(f"{100 * cells[snr]['wer']:.1f}" if snr in cells else "" for snr in snrs),
        ]
        for name, cells in lines.items()
    ]


def _group(row: dict[str, Any]) -> str:
    """What lines of one colour have in common: the system, and its modalities."""
    return " ".join([label(row).partition(":")[0], *(name for name in ("audio", "video") if row[name])])


#: Lines of rates.
_STYLES = ("-", "--", ":", "-.")


def _plot(axes: Any, rows: Sequence[dict[str, Any]], snrs: Sequence[float | None]) -> None:
    """Plot rows of several systems, a colour each, at several rates, a style of line each."""
    groups = list(dict.fromkeys(map(_group, rows)))
    rates = list(dict.fromkeys((row["audio"], row["video"]) for row in rows))
    for name in dict.fromkeys(map(label, rows)):
        line = {row["snr"]: row for row in rows if label(row) == name}
        first = next(iter(line.values()))
        color = f"C{groups.index(_group(first))}"
        style = _STYLES[rates.index((first["audio"], first["video"])) % len(_STYLES)]
        places = [place for place, snr in enumerate(snrs) if snr in line]
        values = np.array([[100 * line[snrs[place]][key] for key in ("wer", "low", "high")] for place in places])
        axes.plot(places, values[:, 0], style, marker="o", markersize=3, label=name, color=color)
        axes.fill_between(places, values[:, 1], values[:, 2], alpha=0.06, color=color)
    axes.set_xticks(range(len(snrs)), ["clean" if snr is None else f"{snr:g}" for snr in snrs])
    axes.set_xlabel("signal-to-noise ratio (dB)")
    axes.set_ylabel("word error (%)")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)


def draw(document: dict[str, Any], path: Path) -> None:
    """Plot word error over the level of noise, one line per system and rates, with intervals.

    Sound alone rises to many times the error of both, which have a plot of their own.

    Raises:
        FoveateError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise FoveateError("the plot needs matplotlib; install it with `pip install foveate[bench]`.") from error
    snrs, rows = document["settings"]["snrs"], document["rows"]
    both = [row for row in rows if row["audio"] and row["video"]]
    alone = [row for row in rows if not (row["audio"] and row["video"])]
    panels = {title: part for title, part in (("sound or lips", alone), ("sound and lips", both)) if part}
    figure = Figure(figsize=(6 * len(panels), 5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, part) in zip(figure.subplots(ncols=len(panels), squeeze=False)[0], panels.items(), strict=True):
        _plot(axes, part, snrs)
        axes.set_title(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=110, format="png")
