"""Pretrained vision transformers of `transformers`, described in the terms of ViT-UHD.

One file a family turns a tower's configuration and tensors into the fields of a `ViTUHDConfig` and tensors under
ViT-UHD's names. What differs is small: names, the order of rotary channels, the shape of the patch kernel, and which
norm and MLP the blocks have.
"""

from foveate.models.vit_uhd.sources.reading import READERS, SUPPORTED, read_source
from foveate.models.vit_uhd.sources.tower import SourceSpec

__all__ = ["READERS", "SUPPORTED", "SourceSpec", "read_source"]
