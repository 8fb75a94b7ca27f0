"""Server metrics in Prometheus format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from foveate.serving.result import Result

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Metrics of one server, in a separate registry.

    Args:
        waiting: Gives the number of requests in the queue.
        running: Gives the number of requests that are being answered.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "foveate_requests",
            "Requests by HTTP status; 499: the client disconnected.",
            ["status"],
            registry=self.registry,
        )
        self.images = Counter("foveate_images", "Images that were read.", registry=self.registry)
        self.clips = Counter("foveate_clips", "Clips that were read.", registry=self.registry)
        self.tokens_before = Counter(
            "foveate_visual_tokens_before", "Visual tokens before compression.", registry=self.registry
        )
        self.tokens_read = Counter(
            "foveate_visual_tokens_read",
            "Visual tokens that the language model worked on, the mean over its layers.",
            registry=self.registry,
        )
        self.prompt = Counter("foveate_prompt_tokens", "Prompt tokens after compression.", registry=self.registry)
        self.completion = Counter("foveate_completion_tokens", "Generated tokens.", registry=self.registry)
        self.batch = Histogram(
            "foveate_batch_size", "Requests per batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry
        )
        self.ttft = Histogram(
            "foveate_time_to_first_token_seconds",
            "From the complete request to the first token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.duration = Histogram(
            "foveate_request_seconds",
            "From the complete request to the last token.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        Gauge("foveate_queue", "Requests that wait.", registry=self.registry).set_function(waiting)
        Gauge("foveate_running", "Requests in progress.", registry=self.registry).set_function(running)

    def answered(self, result: Result, images: int, clips: int, seconds: float) -> None:
        """Record an answer with its images and clips and the time since its request was complete."""
        self.duration.observe(seconds)
        self.images.inc(images)
        self.clips.inc(clips)
        self.tokens_before.inc(result.images.before)
        self.tokens_read.inc(result.images.read)
        self.prompt.inc(result.prompt_tokens)
        self.completion.inc(result.completion_tokens)

    def text(self) -> bytes:
        """Return all metrics in the format of /metrics."""
        return generate_latest(self.registry)
