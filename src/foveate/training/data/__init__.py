"""Rendered questions about rendered images, and the public easy-VQA: what the embedded model is trained on.

Needs Pillow and numpy only, never torch, so that it runs in worker processes.
"""

from .easy import easy_vqa
from .rendering import TASKS, render, smallest_size
from .sample import Character, Sample
from .textpages import render_text_page

__all__ = ["TASKS", "Character", "Sample", "easy_vqa", "render", "render_text_page", "smallest_size"]
