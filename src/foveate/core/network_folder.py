"""Folders of small trained networks, one a decoder layer, for methods with weights inside the language model.

A folder holds `model.safetensors`, whose names begin with the layer (`2.head.weight`), and `config.json` with the kind,
the layers, and the sizes of the networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from foveate.core.errors import FoveateError
from foveate.core.files import atomic_write, stamp, write_json
from foveate.core.text_files import read_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def folder(name: str) -> tuple[str, ...]:
    """The files of such a folder called `name`."""
    return (f"{name}/{WEIGHTS}", f"{name}/{CONFIG}")


def save_networks(path: str | Path, kind: str, networks: Mapping[int, nn.Module], built: Mapping[str, Any]) -> None:
    """Write a folder; each of its files is there completely or not at all.

    Args:
        path: The folder; made if there is none.
        kind: Name of the method.
        networks: By decoder layer.
        built: What they are built from, in plain types.
    """
    path = Path(path)
    path.mkdir(exist_ok=True)
    tensors = {
        f"{layer}.{name}": value.detach().contiguous().cpu()
        for layer, network in networks.items()
        for name, value in network.state_dict().items()
    }
    about = {"kind": kind, "layers": sorted(networks), **built}
    with atomic_write(path / WEIGHTS) as partial:
        save_file(tensors, partial)
    write_json(path / CONFIG, about)


def read_config(path: str | Path, kind: str) -> dict[str, Any]:
    """What a folder says of itself.

    Raises:
        FoveateError: there is none, or it is of another kind.
    """
    file = Path(path) / CONFIG
    if not file.is_file() or not file.with_name(WEIGHTS).is_file():
        raise FoveateError(
            f"{kind}: {str(path)!r} is no folder with {CONFIG} and {WEIGHTS}; `foveate train-method {kind}` writes one."
        )
    try:
        about = read_json(file)
    except (OSError, ValueError, RecursionError) as error:
        raise FoveateError(f"{kind}: {file} cannot be read: {error}") from error
    if not isinstance(about, dict) or about.get("kind") != kind or not about.get("layers"):
        raise FoveateError(f"{kind}: {path} holds nothing that `foveate train-method {kind}` wrote.")
    return about


def read_networks(path: str | Path, kind: str, build: Callable[[dict[str, Any], int], nn.Module]) -> dict[int, Any]:
    """The networks of a folder by decoder layer, on the CPU, not in training.

    Args:
        path: The folder.
        kind: Name of the method.
        build: Makes the network of a layer from what the folder says.

    Raises:
        FoveateError: see `read_config`; or the weights are not those of such networks.
    """
    about = read_config(path, kind)
    try:
        tensors = load_file(Path(path) / WEIGHTS)
        networks = {int(layer): build(about, int(layer)) for layer in about["layers"]}
        for layer, network in networks.items():
            begin = f"{layer}."
            state = {name.removeprefix(begin): value for name, value in tensors.items() if name.startswith(begin)}
            network.load_state_dict(state)
            network.eval().requires_grad_(False)
    except (SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise FoveateError(f"{kind}: the files in {path} do not belong together: {error}") from error
    return networks


@lru_cache(maxsize=4)
def _held(
    path: str, kind: str, build: Callable[[dict[str, Any], int], nn.Module], changed: tuple[Any, ...], device: str
) -> Any:
    return nn.ModuleDict({str(layer): network for layer, network in read_networks(path, kind, build).items()}).to(
        device
    )


def network_of(path: str, kind: str, build: Callable[[dict[str, Any], int], nn.Module], layer: int, device: Any) -> Any:
    """The network of one layer, held in memory as long as the file does not change.

    Raises:
        FoveateError: see `read_networks`; or none was trained for this layer.
    """
    held = _held(path, kind, build, stamp(path), str(device))
    if str(layer) not in held:
        raise FoveateError(
            f"{kind}: {path} was trained for decoder layers {', '.join(held)}, not for layer {layer}; leave @ out to "
            "act at those."
        )
    return held[str(layer)]


def check_size(kind: str, path: str, trained: int, size: int) -> None:
    """Refuse networks of a model of another width."""
    if trained != size:
        raise FoveateError(
            f"{kind}: the networks in {path} were trained for hidden states of {trained} numbers, and this model's "
            f"have {size}."
        )
