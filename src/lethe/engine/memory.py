"""A second matrix beside one linear layer, which only prompts like the training prompts use.

The layer's output becomes W x + M (mask * x). W and everything else are frozen, and M is zero at
the start. The mask is that of the training prompt which is most like the example's prompt. If none
is enough like it, M takes no part, and the model is the base model to the bit (MEMOIR:
arXiv 2506.07899, section 3).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from lethe.data.tokens import Tokens
from lethe.engine.memory_routing import PromptRouter, mean_over_spans, prompt_span
from lethe.errors import LetheError


class MemoryModel(torch.nn.Module):
    """A frozen model with a trained matrix beside one of its linear layers.

    In training, every example uses the stored mask that is nearest to its own: new examples use
    their own, and replayed ones the mask that they would use if they were routed wrongly. In
    evaluation only examples above the router's threshold use the matrix.

    The batch's prompts must be announced before each pass (`announce_prompts`). A pass without
    prompts is the base model's.

    Parameters
    ----------
    model
        The base model. Its parameters are frozen, and its layer gets a hook.
    layer
        The linear layer, a module of the model.
    router
        The masks of the training prompts; None: every example uses the whole matrix.
    prompt_tokens
        Tokens of plain text that stand in for a prompt.
    """

    def __init__(
        self, model: Any, layer: torch.nn.Linear, router: PromptRouter | None, prompt_tokens: int
    ):
        super().__init__()
        self.model = model.requires_grad_(False)
        zeros = torch.zeros_like(layer.weight, dtype=torch.float32)
        self.memory = torch.nn.Parameter(zeros)
        self.router = router
        self.prompt_tokens = prompt_tokens
        self._disabled = False
        self._spans: list[tuple[int, int]] | None = None
        # The rows and masks of an answer's prompt hold for all tokens that follow it.
        self._routes_of_prompt: tuple[torch.Tensor, torch.Tensor] | None = None
        self._generates = False
        layer.register_forward_hook(self._add_memory)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """The model's own outputs."""
        return self.model(*arguments, **options)

    def get_base_model(self) -> Any:
        """The transformers model, whose layer has the memory in place."""
        return self.model

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside the context, the model is the base model to the bit."""
        before = self._disabled
        self._disabled = True
        try:
            yield
        finally:
            self._disabled = before

    def announce_prompts(self, examples: Sequence[Tokens]) -> None:
        """Sets the prompts of the next forward pass, whose rows are these examples."""
        self._spans = [prompt_span(example, self.prompt_tokens) for example in examples]

    @contextmanager
    def answering(self, spans: Sequence[tuple[int, int]]) -> Iterator[None]:
        """Routes a generation by its prompts.

        Parameters
        ----------
        spans
            First token and end of each row's prompt, counted in the left-padded batch.
        """
        self._spans = list(spans)
        self._generates = True
        try:
            yield
        finally:
            self._spans = None
            self._routes_of_prompt = None
            self._generates = False

    @property
    def stored_bytes(self) -> int:
        """Bytes that are kept beside the base model: the matrix, and the masks."""
        masks = 0 if self.router is None else self.router.stored_bytes
        return self.memory.numel() * self.memory.element_size() + masks

    def _add_memory(
        self, _layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor
    ) -> torch.Tensor | None:
        """The layer's output (B, T, width) plus that of the memory; None leaves it unchanged."""
        if self._disabled:
            return None
        states = inputs[0]
        if self.router is None:
            return output + F.linear(states.to(self.memory.dtype), self.memory).to(output.dtype)
        routes = self._routes(states)
        if routes is None or not len(routes[0]):
            return None
        rows, masks = routes
        part = states[rows] * masks[:, None, :].to(states.dtype)
        added = F.linear(part.to(self.memory.dtype), self.memory)
        # Rows that are not routed stay to the bit, because nothing is added to them.
        return output.index_add(0, rows, added.to(output.dtype))

    def _routes(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The rows (R,) that use the memory, and their masks (R, D); None without prompts."""
        if self._routes_of_prompt is not None:
            return self._routes_of_prompt
        if self._spans is None:
            return None
        if states.dim() != 3 or len(states) != len(self._spans):
            raise LetheError(
                f"recipe.memory: the layer's input has the shape {tuple(states.shape)}, not "
                f"{len(self._spans)} rows of tokens; name another layer in recipe.memory.layer"
            )
        with torch.no_grad():
            numbers, overlaps = self.router.nearest(mean_over_spans(states, self._spans))
            rows = torch.arange(len(states), device=states.device)
            if not self.model.training:
                rows = rows[overlaps > self.router.threshold]
            routes = rows, self.router.masks[numbers[rows]]
        if self._generates:
            self._routes_of_prompt = routes
        return routes
