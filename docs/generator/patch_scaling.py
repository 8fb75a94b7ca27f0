"""Tables of `benchmarks/results/patch-scaling-*.json`, the results of `foveate bench patch-scaling`."""

from __future__ import annotations

from pathlib import Path


def runs(root: Path) -> str:
    """One table per run, with its ratios, its command and its machine.

    Args:
        root: The repository.
    """
    from foveate.benchmark.patch_scaling import sentences, table
    from foveate.benchmark.results import read_results
    from generator.tables import table as markdown

    parts = []
    for path in sorted((root / "benchmarks" / "results").glob("patch-scaling-*.json")):
        document = read_results(path)
        settings, hardware = document["settings"], document["hardware"]
        machine = hardware.get("gpu") or f"{hardware['cpu']}, threads: {hardware['threads']}"
        about = (
            f"An image of {settings['image_size']} x {settings['image_size']} pixels, width {settings['hidden_size']}, "
            f"{settings['num_hidden_layers']} blocks, {settings['dtype']}, median of {settings['repeats']} turns; "
            f"{machine}; from `{path.relative_to(root)}`, created by `{document['command']}`."
        )
        lines = "\n".join(f"- {line}" for line in sentences(document))
        parts += [about, markdown(*table(document)), lines, document["note"]]
    return "\n\n".join(parts) or "*Not measured yet.*"
