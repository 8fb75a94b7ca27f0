"""Tables of `benchmarks/results/next-scale-*.json`, the results of `foveate bench next-scale`."""

from __future__ import annotations

from pathlib import Path


def runs(root: Path) -> str:
    """One table per run, with its command and machine.

    Args:
        root: The repository.
    """
    from foveate.benchmark.next_scale import table
    from foveate.benchmark.results import read_results
    from generator.tables import table as markdown

    parts = []
    for path in sorted((root / "benchmarks" / "results").glob("next-scale-*.json")):
        document = read_results(path)
        header, rows = table(document)
        machine, settings = document["hardware"], document["settings"]
        refused = [f"- {line['plan']}: {line['reason']}" for line in document["impossible"]]
        scales = ", ".join(map(str, document["scales"]))
        about = (
            f"Maps of {scales} tokens per side, {document['parameters']:,} parameters, "
            f"{settings['samples']} images per turn, median of {settings['repeats']} turns; {machine['cpu']}, "
            f"threads: {settings['threads']}; from `{path.relative_to(root)}`, created by `{document['command']}`."
        )
        parts += [about, markdown(header, rows), *(["Not supported:", "\n".join(refused)] if refused else [])]
    return "\n\n".join(parts) or "*Not measured yet.*"
