"""Draft models for speculative decoding, and trees of drafted tokens. `foveate.runtime` runs them."""

from foveate.methods.decoding.draft import Draft, Drafter, Session, Target
from foveate.methods.decoding.kinds import draft_kinds, load_draft
from foveate.methods.decoding.tree import Shape, Tree, grow
from foveate.methods.decoding.vasparse import VASparse

__all__ = ["Draft", "Drafter", "Session", "Shape", "Target", "Tree", "VASparse", "draft_kinds", "grow", "load_draft"]
