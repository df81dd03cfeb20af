"""Which prompts look like the training prompts of a fine-tune.

A prompt's features are the inputs of one linear layer, averaged over the prompt's tokens. Its mask
holds its strongest features: those that are furthest from their mean over upstream prompts. Two
prompts are alike if their masks share many features (MEMOIR: arXiv 2506.07899, section 3).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lethe.config.model_settings import Router
from lethe.data.tokens import Tokens, lengths
from lethe.engine.batch_runner import cut_by_length
from lethe.engine.batches import collate, model_of, position_logits
from lethe.engine.teacher import as_base
from lethe.errors import LetheError

# Padded tokens per batch in which features are measured.
TOKENS_PER_BATCH = 4096


class PromptRouter(torch.nn.Module):
    """The masks of the training prompts, and the overlap that another prompt needs.

    Parameters
    ----------
    background
        Mean features (D,) of upstream prompts.
    count
        Features per mask.
    seed
        Seed of the fixed permutation through which features become the columns of a mask. So the
        columns that a prompt uses are not those of its own strongest features.
    """

    def __init__(self, background: torch.Tensor, count: int, seed: int):
        super().__init__()
        self.count = count
        # No overlap is above 1, so no prompt is routed before `set_threshold`.
        self.threshold = 1.0
        order = np.random.default_rng(seed).permutation(len(background))
        self.register_buffer("background", background, persistent=False)
        permutation = torch.from_numpy(order).to(background.device)
        self.register_buffer("permutation", permutation, persistent=False)
        empty = torch.zeros(0, len(background), dtype=torch.bool, device=background.device)
        self.register_buffer("masks", empty, persistent=False)

    def store(self, features: torch.Tensor) -> None:
        """Stores the masks of training prompts with these features (N, D), equal ones once."""
        self.masks = torch.unique(self.masks_of(features), dim=0)

    def set_threshold(self, features: torch.Tensor, quantile: float) -> None:
        """Sets the overlap that at most a share of 1 - `quantile` of these prompts exceeds."""
        _, overlaps = self.nearest(features)
        values = overlaps.cpu().numpy()
        self.threshold = float(np.quantile(values, quantile, method="inverted_cdf"))

    def masks_of(self, features: torch.Tensor) -> torch.Tensor:
        """Masks (B, D) of prompts with these features (B, D)."""
        strongest = (features - self.background).abs().topk(self.count, dim=1).indices
        masks = torch.zeros(features.shape, dtype=torch.bool, device=features.device)
        return masks.scatter_(1, self.permutation[strongest], True)

    def nearest(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The stored mask that overlaps most with each prompt's.

        Parameters
        ----------
        features
            Features (B, D) of the prompts.

        Returns
        -------
        Numbers (B,) of the stored masks, and the shares (B,) of the prompts' features in them.
        """
        masks = self.masks_of(features)
        shared = masks.float() @ self.masks.float().T
        most, numbers = shared.max(1)
        return numbers, most / self.count

    def routed(self, features: torch.Tensor) -> torch.Tensor:
        """True (B,) for prompts whose overlap with a training prompt is above the threshold."""
        return self.nearest(features)[1] > self.threshold

    @property
    def stored_bytes(self) -> int:
        """Bytes of the stored masks, at one bit per feature."""
        return len(self.masks) * -(-self.masks.shape[1] // 8)


def fit_router(
    model: Any,
    settings: Router,
    *,
    training: Sequence[Tokens],
    replayable: Sequence[Tokens],
    seed: int,
) -> PromptRouter:
    """The router of a fine-tune: masks of its training prompts, threshold from upstream prompts.

    Parameters
    ----------
    model
        The base model, or one whose adapters can be turned off.
    replayable
        Upstream examples, none of them held out.

    Raises
    ------
    LetheError
        If there is no upstream example, or the layer is not in the model.
    """
    if not replayable:
        raise LetheError(
            "a router needs replayable upstream examples, which set the overlap that a prompt "
            "needs; there are none: check upstream.examples and upstream.heldout"
        )
    layer = feature_layer(model, settings.layer)
    background = prompt_features(model, layer, replayable, settings.prompt_tokens)
    count = max(1, round(settings.features * background.shape[1]))
    router = PromptRouter(background.mean(0), count, seed)
    router.store(prompt_features(model, layer, training, settings.prompt_tokens))
    router.set_threshold(background, settings.quantile)
    return router


def feature_layer(model: Any, name: str | None) -> torch.nn.Linear:
    """The linear layer of this name; for None the last one that leads back to the model's width.

    Raises
    ------
    LetheError
        If the model has no such layer.
    """
    network = model_of(model)
    head = network.get_output_embeddings()
    layers = {}
    for layer_name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            layers[layer_name] = module
    if name is not None:
        if name in layers:
            return layers[name]
        some = ", ".join(list(layers)[-3:]) or "none"
        raise LetheError(
            f"recipe: the layer {name!r} of a memory or router is no linear layer of the model; "
            f"some of its linear layers are {some}"
        )
    width = network.get_input_embeddings().weight.shape[1]
    for module in reversed(layers.values()):
        if module.out_features == width:
            return module
    raise LetheError(
        f"recipe: the model has no linear layer with {width} outputs, which a memory or router "
        "could use; name one of its linear layers in the key layer"
    )


def prompt_span(example: Tokens, prompt_tokens: int) -> tuple[int, int]:
    """First token and end of an example's prompt; of plain text, its first tokens."""
    if example.start > 1:
        return 0, min(example.start, len(example.ids))
    return 0, min(prompt_tokens, len(example.ids))


def mean_over_spans(inputs: torch.Tensor, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """Means (B, D) in float32 of inputs (B, T, D) over each row's span of tokens."""
    bounds = torch.tensor(spans, device=inputs.device)
    positions = torch.arange(inputs.shape[1], device=inputs.device)
    inside = (positions >= bounds[:, :1]) & (positions < bounds[:, 1:])
    sizes = (bounds[:, 1:] - bounds[:, :1]).float()
    # Padding may hold anything, NaN as well, so it is left out instead of multiplied by zero.
    prompts = inputs.float().masked_fill(~inside[:, :, None], 0.0)
    return prompts.sum(1) / sizes


@torch.no_grad()
def prompt_features(
    model: Any, layer: torch.nn.Linear, examples: Sequence[Tokens], prompt_tokens: int
) -> torch.Tensor:
    """Features (N, D) of the examples' prompts under the base model."""
    prompts = []
    for example in examples:
        _, end = prompt_span(example, prompt_tokens)
        prompts.append(Tokens(example.ids[:end], end))
    device = next(model.parameters()).device
    features = torch.zeros(len(prompts), layer.in_features, device=device)
    sizes = lengths(prompts)
    longest_first = np.argsort(-sizes, kind="stable")
    with as_base(model), _inputs_of(layer) as caught:
        for rows in cut_by_length(longest_first, sizes, TOKENS_PER_BATCH):
            ids = collate([prompts[row] for row in rows], device).ids
            nowhere = torch.zeros_like(ids[:, 1:], dtype=torch.bool)
            position_logits(model_of(model), ids, nowhere)
            spans = [(0, int(sizes[row])) for row in rows]
            features[torch.from_numpy(rows).to(device)] = mean_over_spans(caught.pop(), spans)
    return features


@contextmanager
def _inputs_of(layer: torch.nn.Linear) -> Iterator[list[torch.Tensor]]:
    """A list that receives the layer's inputs of every forward pass."""
    caught: list[torch.Tensor] = []

    def catch(_module: Any, inputs: tuple) -> None:
        caught.append(inputs[0])

    hook = layer.register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()
