"""Streams: frames are encoded and cached as they arrive, and questions are answered at any moment."""

from foveate.methods.encoder.stc_cacher import STCCacher
from foveate.streaming.files import frames_of
from foveate.streaming.policies import (
    CachedStep,
    CachePolicy,
    KeepAll,
    SinkWindow,
    SlidingWindow,
    TokenThinning,
    UniformThinning,
    parse_policy,
)
from foveate.streaming.session import Stream, stream

__all__ = [
    "CachePolicy",
    "CachedStep",
    "KeepAll",
    "STCCacher",
    "SinkWindow",
    "SlidingWindow",
    "Stream",
    "TokenThinning",
    "UniformThinning",
    "frames_of",
    "parse_policy",
    "stream",
]
