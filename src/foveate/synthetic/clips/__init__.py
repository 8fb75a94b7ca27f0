"""Rendered clips: shapes that move, appear, blink and leave, and signs that change, with questions about time.

`scene` holds what is in a clip and where it is at every second, `acts` makes scenes, `facts` asks about them,
`drawing` draws the frames, `captions` describes parts of a clip, and `rendering` puts the parts together.
"""

from foveate.synthetic.clips.rendering import CLIP_TASKS, ClipSample, render_clip, smallest_clip

__all__ = ["CLIP_TASKS", "ClipSample", "render_clip", "smallest_clip"]
