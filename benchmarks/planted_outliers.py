"""A small vision transformer with outlier tokens by construction, for `foveate train-method ph-reg`.

Trained transformers with outliers are too large for this repository. This one has random weights, and at three places
of its grid a neuron of the first block writes a long vector (`foveate.models.encoders.registers.plant_outliers`).

    python benchmarks/planted_outliers.py build/planted-outliers
"""

import argparse
from pathlib import Path

import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from foveate.models.encoders.registers import plant_outliers

SIDE = 64
#: Numbers of patches, of 8 x 8.
PLACES = (9, 30, 51)


def main(folder: Path) -> None:
    """Write model and image processor."""
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "mlp_ratio": 2}
    torch.manual_seed(0)
    tower = Dinov2Model(Dinov2Config(image_size=SIDE, patch_size=8, **sizes))
    plant_outliers(tower, PLACES).save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    BitImageProcessor(size=size, crop_size=size, do_center_crop=False).save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write model and image processor to")
    main(parser.parse_args().folder)
