"""Rendered questions about rendered images, and the public easy-VQA: what the embedded model is trained on.

The modules use Pillow and numpy only, so that they run in worker processes that never touch torch. Each kind of
picture is drawn by one file: `textpages`, `documents`, `cards`, `receipts`, `tables`, `charts`, `signs`, `shapes`;
`fonts`, `words`, `questions` and `paper` are what they draw with.
"""

from .easy import easy_vqa
from .fonts import families, families_of
from .rendering import TASKS, render, smallest_size
from .sample import Character, Sample
from .textpages import render_text_page
from .writing import write_split

__all__ = [
    "TASKS",
    "Character",
    "Sample",
    "easy_vqa",
    "families",
    "families_of",
    "render",
    "render_text_page",
    "smallest_size",
    "write_split",
]
