"""The blocks of a page that are generated from code or from committed JSON, never typed.

The text between `<!-- generated: NAME -->` and `<!-- end -->` is replaced by the result of the function of that name
in `BLOCKS`. If the file of a block is missing, the block says so. The files include:

- `src/foveate/embedded/evaluation.json`, written by `python -m foveate.benchmark.embedded`;
- `benchmarks/results/speed-*.json`, results of `foveate bench speed`, and `selection-*.json` of its predecessor;
- `benchmarks/results/trained.json` and `trained-clips.json`, the results of `foveate bench trained`;
- `benchmarks/results/patch-scaling-*.json`, results of `foveate bench patch-scaling`;
- `benchmarks/results/encoders-*.json`, results of `foveate bench encoders`, and `authors-cpu.json`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from foveate.benchmark.results import read_results

_SPEECH = "benchmarks/results/avsr.json"
BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, root: Path, page: Path) -> str:
    """A page with updated blocks.

    Args:
        text: The page.
        root: The repository.
        page: The path of the page, for relative links and for errors.

    Raises:
        ValueError: If no function generates a block.
    """

    def replace(match: re.Match[str]) -> str:
        name = match[2]
        if name not in BLOCKS:
            raise ValueError(f"{page}: nothing generates {name!r}; possible are {', '.join(BLOCKS)}")
        return f"{match[1]}{BLOCKS[name](root, page)}\n{match[3]}"

    return BLOCK.sub(replace, text)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column except the first is right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stages(_root: Path, _page: Path) -> str:
    """The kinds of stage."""
    from foveate.models.vit_uhd.compression import AveragePooling, ContentAdaptivePooling
    from foveate.models.vit_uhd.configuration import MERGING_METHODS
    from foveate.models.vit_uhd.early_compression import EarlyCompressor
    from generator.reference import first_sentence

    kinds = {"content-adaptive": ContentAdaptivePooling, "average": AveragePooling, "early": EarlyCompressor}
    rows = []
    for name in MERGING_METHODS:
        cls = kinds[name]
        path = f"src/{cls.__module__.replace('.', '/')}.py"
        rows.append([f"`{name}`", first_sentence(cls), f"[{path.rsplit('/', 1)[1]}](../{path})"])
    return table(["`merging_method`", "description", "file"], rows).replace("---:", "---")


def picture(root: Path, page: Path) -> str:
    """The figure of the README (`make picture`)."""
    path = root / "docs/figures/demo.png"
    if not path.exists():
        return "*The figure has not been created yet (`make picture`).*"
    link = os.path.relpath(path, page.parent)
    return f"![The receipt, the tokens of each stage, and those that the plan keeps]({link})"


def embedded(root: Path, _page: Path) -> str:
    """The evaluation of the embedded model."""
    path = root / "src/foveate/embedded/evaluation.json"
    if not path.exists():
        return "*The embedded model has not been evaluated yet.*"
    evaluation = read_results(path)
    groups = [(name.replace("_", " "), score) for name, score in evaluation["tasks"].items()]
    if "reading_1_to_8_characters" in evaluation:
        groups.append(("**reading, 1 to 8 characters**", evaluation["reading_1_to_8_characters"]))
    rows = [
        [
            name,
            f"{score['count']:,}",
            f"**{percent(score['accuracy'])}**",
            f"{percent(score['low'])} to {percent(score['high'])}",
            percent(score["majority"]),
        ]
        for name, score in groups
    ]
    header = ["task (held out)", "questions", "exact match", "95 % interval", "most frequent answer"]
    return f"{table(header, rows)}\n\nFrom `{path.relative_to(root)}`, created by `{evaluation['command']}`."


def encoders(root: Path, _page: Path) -> str:
    """The cost of the encoders: a table, the claims of the paper and an explanation for each run."""
    from foveate.benchmark.encoders import markdown

    parts = []
    for path in sorted((root / "benchmarks/results").glob("encoders-*.json")):
        run: dict[str, Any] = read_results(path)
        source = f"{run['machine']}; from `{path.relative_to(root)}`, created by `{run['command']}`."
        parts.append(f"{source}\n\n{markdown(run)}")
    return "\n\n".join(parts) or "*The encoders have not been measured yet.*"


def speed(root: Path, _page: Path) -> str:
    """The cost of plans: results of `foveate bench speed`, and of its predecessor."""
    from foveate.benchmark.speed.formatting import impossible_of
    from foveate.benchmark.speed.formatting import table as rows_of

    parts = []
    results = root / "benchmarks/results"
    for path in [*sorted(results.glob("speed-*.json")), *sorted(results.glob("selection-*.json"))]:
        # Measuring models are too small for cost: the report plots accuracy against it. Clips have a page of their own.
        if path.name.startswith(("speed-measure-", "speed-clips-")):
            continue
        run: dict[str, Any] = read_results(path)
        header, rows = rows_of(run)
        threads = run["hardware"]["threads"]
        machine = run["hardware"].get("gpu") or f"{run['hardware']['cpu']}, threads: {threads}"
        settings = run["settings"]
        source = f"{machine}, {settings['dtype']}, language model {settings['text']}, {settings['repeats']} turns"
        made = f"from `{path.relative_to(root)}`, created by `{run['command']}`."
        parts.append(f"{source}; {made}\n\n{table(header, rows)}\n\n{run['note']}")
        impossible = [f"- {line['model']}, {line['plan']}: {line['reason']}" for line in impossible_of(run)]
        if impossible:
            parts.append("Not supported:\n\n" + "\n".join(impossible))
    return "\n\n".join(parts) or "*Plans have not been measured yet.*"


def authors(root: Path, _page: Path) -> str:
    """ViT-UHD compared with the authors' implementation."""
    path = root / "benchmarks/results/authors-cpu.json"
    if not path.exists():
        return "*Not compared with the authors' code yet.*"
    run: dict[str, Any] = read_results(path)
    rows = [
        [
            ", ".join(row["images"]),
            f"{row['patches']:,}",
            f"{row['authors_seconds']:.2f}",
            f"{row['foveate_seconds']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['lowest_ratio']:.2f}",
        ]
        for row in run["rows"]
    ]
    header = ["images", "patches", "authors, s", "foveate, s", "ratio", "lowest ratio"]
    where = f"{run['hardware']}, {run['dtype']}; from `{path.relative_to(root)}`."
    return f"{run['description']}\n\n{table(header, rows)}\n\n{where}"


def percent(fraction: float) -> str:
    """A fraction in percent with one decimal."""
    return f"{100 * fraction:.1f} %"


def part_of(module: str, name: str) -> Callable[[Path, Path], str]:
    """A block that a function of another generator module returns."""

    def block(root: Path, _page: Path) -> str:
        return getattr(import_module(f"generator.{module}"), name)(root)

    return block


def soak(root: Path, _page: Path) -> str:
    """The results of `make soak`."""
    path = root / "benchmarks/results/soak.json"
    if not path.exists():
        return "*Not run yet (`make soak`).*"
    run: dict[str, Any] = read_results(path)
    crowd, vanished, long, drained = (run[name] for name in ("crowd", "vanishing", "endurance", "drain"))
    first, last = long["memory"][0], long["memory"][-1]
    growth = long["bytes_per_request_in_the_second_half"]
    rows = [
        ["concurrent requests, half of them streamed", f"{crowd['requests']:,}"],
        ["answered; with a different answer than alone", f"{crowd['answers']:,}; {crowd['other_answers']}"],
        ["disconnected clients; seconds until idle", f"{vanished['clients']}; {vanished['seconds_to_rest']:.1f}"],
        ["consecutive requests, four at a time", f"{long['requests']:,}"],
        [
            "with a different answer than alone; invalid and rejected",
            f"{long['other_answers']}; {long['refused']}",
        ],
        [
            f"memory after {first['requests']:,} and after {last['requests']:,} requests, MiB",
            f"{first['bytes'] / 2**20:,.0f}; {last['bytes'] / 2**20:,.0f}",
        ],
        ["memory growth in the second half, bytes per request", f"{growth:,.0f}"],
        [
            "requests open at SIGTERM; answered; exit code",
            f"{drained['open']}; {drained['answered']}; {drained['exit_code']}",
        ],
    ]
    where = f"{run['hardware']['cpu']}; from `{path.relative_to(root)}`, created by `{run['command']}`."
    return f"{table(['test', 'result'], rows)}\n\n{where}"


def served(pattern: str) -> Callable[[Path, Path], str]:
    """A block with results of `foveate bench serve`, of files that match a pattern."""

    def block(root: Path, _page: Path) -> str:
        from foveate.benchmark.serving import table as shown

        parts = []
        for path in sorted((root / "benchmarks/results").glob(pattern)):
            run: dict[str, Any] = read_results(path)
            note = f" {run['note']}" if run["note"] else ""
            machine, turns, source = run["hardware"], run["settings"]["turns"], path.relative_to(root)
            where = (
                f"{machine['cpu']}, {machine['threads']} threads; median of {turns} turns; times are relative to the "
                f"full model in the same turn; from `{source}`, created by `{run['command']}`.{note}"
            )
            parts += [table(*shown(run)), where]
        return "\n\n".join(parts) or "*Not measured yet.*"

    return block


def trained(name: str, *, brief: bool = False) -> Callable[[Path, Path], str]:
    """A block with a result of `foveate bench trained`; `brief`: without the columns of tasks and of training."""

    def block(root: Path, _page: Path) -> str:
        from foveate.benchmark.trained.formatting import markdown
        from foveate.benchmark.trained.formatting import table as shown
        from foveate.benchmark.trained.running import conclude

        path = root / "benchmarks/results" / name
        run: dict[str, Any] = conclude(read_results(path)) if path.exists() else {"rows": []}
        if not run["rows"]:
            return "*Not measured yet (`foveate bench trained`).*"
        machine, source = run["hardware"], path.relative_to(root)
        where = f"{machine['cpu']}, threads: {machine['threads']}; from `{source}`, created by `{run['command']}`."
        return f"{table(*shown(run, brief=True)) if brief else markdown(run)}\n\n{where}"

    return block


def speech(root: Path, _page: Path) -> str:
    """Results of `foveate bench avsr`: systems with tokens of each modality."""
    from foveate.benchmark.avsr import table as shown

    run = read_results(root / _SPEECH)
    return f"{table(*shown(run, pooled=False))}\n\n{_made(run, _SPEECH)}"


def pooled_speech(root: Path, _page: Path) -> str:
    """Results of `foveate bench avsr`: systems with one pool of sound and lips."""
    from foveate.benchmark.avsr import sound_table
    from foveate.benchmark.avsr import table as shown

    run = read_results(root / _SPEECH)
    errors, shares = table(*shown(run, pooled=True)), table(*sound_table(run))
    return (
        f"Word error in percent:\n\n{errors}\n\nShare of sound, in percent, in what is kept:\n\n{shares}\n\n"
        f"{_made(run, _SPEECH)}"
    )


def _made(run: dict[str, Any], source: str) -> str:
    return f"{run['hardware']['cpu']}; from `{source}`, created by `{run['command']}`."


def clips(root: Path, _page: Path) -> str:
    """The results of `benchmarks/clips.py`."""
    path = root / "benchmarks/results/clips.json"
    if not path.exists():
        return "*Not measured yet (`python benchmarks/clips.py`).*"
    run: dict[str, Any] = read_results(path)
    minutes = sorted({row["minutes"] for row in run["rows"]})
    cells = {(row["reader"], row["minutes"]): row for row in run["rows"]}
    readers = dict.fromkeys(row["reader"] for row in run["rows"])
    rows = [
        [
            reader if " " in reader else f"`{reader}`",
            *(f"{cells[reader, length]['seconds']:.3f} s" for length in minutes),
            *(f"{cells[reader, length]['peak_bytes'] / 1e6:.1f} MB" for length in minutes),
        ]
        for reader in readers
    ]
    units = [f"{length} min" for length in minutes]
    head = ["frames", *(f"time, {unit}" for unit in units), *(f"peak memory, {unit}" for unit in units)]
    width, height = run["settings"]["size"]
    where = (
        f"Files of {width} x {height} px at {run['settings']['fps']} frames per second; "
        f"{run['hardware']['cpu']}; from `{path.relative_to(root)}`, created by `{run['command']}`. {run['note']}"
    )
    return f"{table(head, rows)}\n\n{where}"


BLOCKS: dict[str, Callable[[Path, Path], str]] = {
    "stages": stages,
    "picture": picture,
    "embedded": embedded,
    "embedded-training": part_of("embedded_model", "training"),
    "embedded-stages": part_of("embedded_model", "stages"),
    "embedded-warnings": part_of("embedded_model", "warnings"),
    "embedded-examples": part_of("embedded_model", "examples"),
    "encoders": encoders,
    "authors": authors,
    "speed": speed,
    "trained": trained("trained.json"),
    "trained-clips": trained("trained-clips.json"),
    "avsr": speech,
    "avsr-pool": pooled_speech,
    "patch-scaling": part_of("patch_scaling", "runs"),
    "connectors": trained("trained.json", brief=True),
    "next-scale": part_of("next_scale", "runs"),
    "stream-memory": part_of("streaming", "memory"),
    "stream-stc": part_of("streaming", "stc"),
    "looking-again": part_of("looking_again", "trained"),
    "compatibility": part_of("compatibility", "runs"),
    "soak": soak,
    "clips": clips,
    "serving": served("serving-vllm-cpu.json"),
    "serving-clips": served("serving-vllm-clips-cpu.json"),
    "nested-serving": served("nested-serving-*.json"),
    "pruners": part_of("small_networks", "pruners"),
    "routers": part_of("small_networks", "routers"),
    "registers": part_of("small_networks", "registers"),
    "drafts": part_of("small_networks", "drafts"),
    "choice-general": part_of("choices", "general"),
    "choice-text": part_of("choices", "text_heavy"),
    "choice-aggressive": part_of("choices", "aggressive"),
    "accuracy-full": part_of("accuracy", "full"),
    "accuracy-leaders": part_of("accuracy", "leaders"),
    "accuracy-tasks": part_of("accuracy", "tasks"),
    "accuracy-groups": part_of("accuracy", "groups"),
    "accuracy-clips": part_of("clip_accuracy", "runs"),
    "speed-clips": part_of("clip_speed", "runs"),
    "start-here": part_of("choices", "start_here"),
    "costs-qwen": part_of("readme", "costs"),
    "vllm-throughput": part_of("readme", "vllm"),
}
