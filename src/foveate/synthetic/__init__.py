"""Rendered questions about rendered images, and the public easy-VQA: what the embedded model is trained on.

The modules use Pillow and numpy only, so that they run in worker processes that never touch torch. Each kind of
picture is drawn by one file: `textpages`, `documents`, `cards`, `receipts`, `tables`, `charts`, `signs`, `shapes`;
`fonts`, `words`, `questions` and `paper` are what they draw with.
"""

from foveate.synthetic.easy import easy_vqa
from foveate.synthetic.fonts import families, families_of
from foveate.synthetic.rendering import TASKS, render, smallest_size
from foveate.synthetic.sample import Character, Sample
from foveate.synthetic.textpages import render_text_page
from foveate.synthetic.writing import write_split

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
