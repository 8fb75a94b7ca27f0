"""VQToken: the tokens of a clip as a few clusters, and where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveate.core.errors import FoveateError
from foveate.core.tokens import Grid
from foveate.models.connectors.configured import whole_number
from foveate.models.connectors.cross_attention import CrossAttention
from foveate.models.video_connectors import clustering
from foveate.models.video_connectors.connector import ClipShape, ConnectorOptions, Instruction, VideoConnector
from foveate.models.video_connectors.mlp import MLP, released_mlp

ADAPTIVE = ("silhouette", "elbow")


@dataclass(frozen=True)
class VQTokenOptions(ConnectorOptions):
    """Options of `VQToken`.

    Args:
        module: "paper": the attention of the paper; "released": the module that the authors ship.
        clusters: Clusters K of a clip; with `adaptive` the most of them.
        adaptive: How K is chosen for every clip, from `least_clusters` on: "silhouette" (the greatest one) or "elbow"
            (the sharpest bend of the distortion); None: it is `clusters`.
        least_clusters: Fewest clusters with `adaptive`.
        num_heads: Attention heads; they divide the width of the language model.
        map_size: (frames, rows, columns) that the map of a cluster is averaged to, "paper" alone.
        residual: Add the means of the clusters to the tokens, "paper" alone; the paper does not.
        places: Tokens of a frame N, "released" alone, whose linear layer reads a row of N labels.
        iterations: Of k-means, at most.
        seed: Of the first centroids.
    """

    module: Literal["paper", "released"] = "paper"
    clusters: int = 32
    adaptive: Literal["silhouette", "elbow"] | None = None
    least_clusters: int = 12
    num_heads: int = 8
    map_size: tuple[int, int, int] = (8, 9, 9)
    residual: bool = False
    places: int = 729
    iterations: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if self.module not in ("paper", "released"):
            raise FoveateError(f"module of vqtoken must be paper or released, not {self.module!r}.")
        for name in ("clusters", "least_clusters", "num_heads", "places", "iterations"):
            whole_number(name, getattr(self, name))
        whole_number("seed", self.seed, least=0)
        if self.adaptive not in (None, *ADAPTIVE):
            raise FoveateError(f"adaptive must be {', '.join(ADAPTIVE)} or null, not {self.adaptive!r}.")
        if self.adaptive is not None and not 2 <= self.least_clusters <= self.clusters:
            raise FoveateError(
                f"least_clusters must be from 2 to the {self.clusters} clusters, not {self.least_clusters}."
            )
        if not isinstance(self.map_size, tuple) or len(self.map_size) != 3:
            raise FoveateError(f"map_size must be [frames, rows, columns], not {self.map_size!r}.")
        for side in self.map_size:
            whole_number("each side of map_size", side)
        if not isinstance(self.residual, bool):
            raise FoveateError(f"residual must be true or false, not {self.residual!r}.")


class VQToken(VideoConnector[VQTokenOptions]):
    """Clusters all tokens of a clip, and makes one token of every cluster by attention to where the others are.

        x = projected features (T N, d);  label_i = k-means of x / |x|, by cosine similarity
        B_k = mean of the x_i of cluster k                                   codebook (K, d)
        M_k = MLP(map of cluster k)                                          1 where a place has label k, else 0
        tokens = MHA(Q = B, K = B, V = M)

    VQToken: Neural Discrete Token Representation Learning for Extreme Token Reduction in Video Large Language Models
    (Zhang et al., arXiv 2503.16980), on the projector of LLaVA-OneVision. Tokens stand for no part of a frame.

    The paper flattens the map of labels and applies an MLP to it, whose input grows with the clip and whose output
    depends on the numbers of the labels. Here the MLP reads the map of one cluster, averaged to `map_size`, so that
    clips of any length fit, and clusters are numbered in the order of their first tokens.

    `module="released"` is the code of the authors' repository, which is another module: one post-norm decoder layer of
    torch with 8 heads, whose targets are the rows of the map, N labels of a frame as numbers, and whose memory are the
    means of the normalized tokens. Rows and means are repeated to the same number, so that a clip has max(T, K) tokens,
    in which labels count as magnitudes. Its k-means++ is seeded here and random there; its call with a fixed K has
    names of arguments that its k-means does not take. In its adaptive mode "silhouette" ignores the labels, so that K
    is always the first that is tried (12), and "elbow" counts from 4 and not from the first K; both are right here.
    """

    name: ClassVar[str] = "vqtoken"
    title: ClassVar[str] = (
        "VQToken: Neural Discrete Token Representation Learning for Extreme Token Reduction in Video Large Language "
        "Models"
    )
    paper: ClassVar[str] = "arXiv 2503.16980"
    spatial: ClassVar[bool] = False
    options_class: ClassVar = VQTokenOptions
    released_types: ClassVar[tuple[str, ...]] = ("llava_qwen",)
    released_keys: ClassVar = {
        **released_mlp(r"^model\.mm_projector", "projector"),
        r"^model\.cross_attention\.transformer_decoder\.": "decoder.",
        r"^model\.cross_attention\.to_q_proj\.": "rows.",
    }

    def __init__(self, vision_hidden_size: int, text_hidden_size: int, **options: Any) -> None:
        super().__init__(vision_hidden_size, text_hidden_size, **options)
        width, heads = text_hidden_size, self.options.num_heads
        if width % heads:
            raise FoveateError(f"the {heads} heads of vqtoken do not divide the width {width} of the language model.")
        self.projector = MLP(vision_hidden_size, width)
        if self.options.module == "released":
            self.rows = nn.Linear(self.options.places, width)
            self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(width, heads, batch_first=True), 1)
        else:
            frames, rows, columns = self.options.map_size
            self.maps = MLP(frames * rows * columns, width)
            self.attention = CrossAttention(width, heads)

    @classmethod
    def released_options(cls, config: Any) -> dict[str, Any]:
        """See `ConfiguredModule.released_options`."""
        return {"module": "released"}

    @property
    def static_cost(self) -> bool:
        """See `VideoConnector.static_cost`: k-means ends after a number of steps that depends on the clip."""
        return False

    @property
    def static_count(self) -> bool:
        """See `VideoConnector.static_count`."""
        return self.options.adaptive is None

    def shape(self, frames: int, grid: Grid, budget: int | None) -> ClipShape:
        """See `VideoConnector.shape`: one row.

        Raises:
            FoveateError: There are fewer tokens than clusters, or the released module reads frames of another size.
        """
        options = self.options
        if frames * grid.size < options.clusters:
            raise FoveateError(
                f"the connector vqtoken makes {options.clusters} clusters, and this clip has {frames * grid.size} "
                "tokens."
            )
        released = options.module == "released"
        if released and grid.size != options.places:
            raise FoveateError(
                f"the released module of vqtoken reads frames of {options.places} tokens, and these have {grid.size}."
            )
        return ClipShape(1, 1, max(frames, options.clusters) if released else options.clusters)

    def connect(
        self, features: Tensor, grid: Grid, shape: ClipShape, timestamps: Tensor | None, text: Instruction | None
    ) -> Tensor:
        """See `VideoConnector.connect`."""
        tokens = self.projector(features)
        if self.options.module == "released":
            labels, count = self.cluster(tokens, self.generator(tokens.device))
            return self._decoded(tokens, labels, count)
        labels, _ = self.cluster(tokens, self.generator(tokens.device))
        labels = clustering.by_first_token(labels.flatten())
        count = self.options.clusters if self.static_count else int(labels.max()) + 1
        maps = self.maps_of(labels, count, len(features), grid)
        return self.attend(clustering.means(tokens.flatten(0, 1), labels, count), maps)

    def generator(self, device: torch.device) -> torch.Generator:
        """A generator with the seed of the options."""
        return torch.Generator(device).manual_seed(self.options.seed)

    @torch.no_grad()
    def cluster(self, tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """Cluster projected tokens.

        Args:
            tokens: `(T, N, d)`.
            generator: Of the first centroids.

        Returns:
            The label `(T, N)` of every token, and the number of clusters.
        """
        options = self.options
        x = F.normalize(tokens.flatten(0, 1).float(), dim=-1)
        if options.adaptive is None:
            labels, _ = clustering.kmeans(x, options.clusters, options.iterations, generator)
            return labels.view(tokens.shape[:2]), options.clusters
        tried = range(options.least_clusters, options.clusters + 1)
        found = [clustering.kmeans(x, count, options.iterations, generator) for count in tried]
        if options.adaptive == "elbow":
            best = clustering.elbow((clustering.distortion(x, *one) for one in found), tried.start)
        else:
            scores = [clustering.silhouette(x, *one) for one in found]
            best = tried[scores.index(max(scores))]
        return found[best - tried.start][0].view(tokens.shape[:2]), best

    def maps_of(self, labels: Tensor, count: int, frames: int, grid: Grid) -> Tensor:
        """Maps `(K, frames * rows * columns)` of clusters with labels `(T N,)`, averaged to `map_size`."""
        dtype = self.maps.linear_1.weight.dtype
        places = F.one_hot(labels, count).to(dtype).T.view(count, 1, frames, *grid)
        return F.adaptive_avg_pool3d(places, self.options.map_size).flatten(1)

    def attend(self, codebook: Tensor, maps: Tensor) -> Tensor:
        """Tokens `(K, d)` of a codebook `(K, d)` and the maps of its clusters."""
        mixed = self.attention(codebook[None], codebook[None], self.maps(maps)[None])[0]
        return codebook + mixed if self.options.residual else mixed

    def _decoded(self, tokens: Tensor, labels: Tensor, count: int) -> Tensor:
        """Output `(max(T, K), d)` of the released module."""
        flat = tokens.flatten(0, 1)
        codebook = clustering.means(flat / flat.norm(dim=-1, keepdim=True), labels.flatten(), count)
        rows = labels.to(tokens.dtype)
        most = max(len(rows), len(codebook))
        rows, codebook = (x[torch.arange(most, device=x.device) % len(x)] for x in (rows, codebook))
        return self.decoder(self.rows(rows)[None], codebook[None])[0]
