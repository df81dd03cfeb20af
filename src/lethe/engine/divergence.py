"""KL(base || model) at chosen positions, without an array of all tokens by all words.

The divergence of one position is the sum over the vocabulary of p0 (log p0 - log p), where p0 is
the distribution of the base model and p that of the trained one, at temperature 1 and in float32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

# Logits of one model that are held at once: 32 MB in float32.
HELD_LOGITS = 1 << 23
# Products of fewer tokens than this waste the processor, so the vocabulary is sliced instead.
LEAST_TOKENS = 64
# exp of it is still a number in float32.
_LARGEST_EXPONENT = 80.0


class Words:
    """Logits of some tokens, one slice of the vocabulary at a time.

    A vocabulary that is one slice is multiplied once, a larger one at each of the two passes.

    Parameters
    ----------
    states
        Inputs of the output layer (S, hidden).
    weight, bias
        The output layer's (V, hidden) and (V,); `bias` may be None.
    size
        Words per slice.
    """

    def __init__(
        self, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, size: int
    ):
        self._states, self._weight, self._bias = states, weight, bias
        vocabulary = len(weight)
        self.slices = [(i, min(i + size, vocabulary)) for i in range(0, vocabulary, size)]
        self._only: torch.Tensor | None = None

    def logits(self, start: int, end: int) -> torch.Tensor:
        """Logits (S, end - start) of the words from `start` to `end`, in float32."""
        if self._only is not None:
            return self._only
        bias = None if self._bias is None else self._bias[start:end]
        logits = F.linear(self._states, self._weight[start:end], bias).float()
        if len(self.slices) == 1:
            self._only = logits
        return logits

    def normaliser(self) -> torch.Tensor:
        """Log of the sum over the vocabulary of exp(logit) (S,)."""
        parts = [self.logits(start, end).logsumexp(1) for start, end in self.slices]
        return torch.stack(parts).logsumexp(0)


@dataclass(frozen=True)
class Slope:
    """One slice's part of the divergence.

    `divergence` (S,) in nats, and `by_logit` (S, end - start), the derivative by the model's logits
    of the words from `start` to `end`.
    """

    start: int
    end: int
    divergence: torch.Tensor
    by_logit: torch.Tensor


@dataclass(frozen=True)
class StateTargets:
    """Distributions as the inputs of the base model's output layer, and the layer's weights."""

    states: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def part(self, start: int, end: int) -> "StateTargets":
        """The same for the positions from `start` to `end`."""
        return StateTargets(self.states[start:end], self.weight, self.bias)

    def logits(self) -> torch.Tensor:
        """The base model's logits (S, V) in float32; take parts if there are many positions."""
        return F.linear(self.states, self.weight, self.bias).float()

    def slopes(self, model: Words, size: int) -> Iterator[Slope]:
        """The divergence from these positions' distributions to the model's, by slices."""
        base = Words(self.states, self.weight, self.bias, size)
        base_normaliser = base.normaliser()[:, None]
        normaliser = model.normaliser()[:, None]
        for start, end in model.slices:
            base_log = base.logits(start, end) - base_normaliser
            log = model.logits(start, end) - normaliser
            share = base_log.exp()
            divergence = (share * base_log.sub_(log)).sum(1)
            yield Slope(start, end, divergence, log.exp_().sub_(share))


@dataclass(frozen=True)
class LogitTargets:
    """Distributions as the base model's logits (S, V)."""

    logits: torch.Tensor

    def __len__(self) -> int:
        return len(self.logits)

    def divergence(self, logits: torch.Tensor) -> torch.Tensor:
        """The divergence (S,) of a model with these logits (S, V), differentiable."""
        base_log = self.logits.float().log_softmax(1)
        return (base_log.exp() * (base_log - logits.float().log_softmax(1))).sum(1)


@dataclass(frozen=True)
class StoredTargets:
    """The base model's most probable words of every position, and the mass of all others.

    The others count as one word whose probability is their sum. So the divergence is never above
    the true one, and equal to it where the two models agree on the others' shares.

    Parameters
    ----------
    log_shares
        Log-probabilities (S, k) of the words in `words`.
    words
        Their indices (S, k).
    log_rest
        Log of the others' mass (S,); minus infinity if k is the whole vocabulary.
    """

    log_shares: torch.Tensor
    words: torch.Tensor
    log_rest: torch.Tensor

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def of(cls, logits: torch.Tensor, top_k: int | None) -> "StoredTargets":
        """Keeps the `top_k` most probable words of logits (S, V), or all of them for None."""
        vocabulary = logits.shape[1]
        log = logits.float().log_softmax(1)
        log_shares, words = log.topk(min(top_k or vocabulary, vocabulary), dim=1, sorted=False)
        rest = log.scatter_(1, words, -torch.inf).logsumexp(1)
        return cls(log_shares, words.int(), rest)

    @classmethod
    def joined(cls, parts: Sequence["StoredTargets"], device: torch.device) -> "StoredTargets":
        """The positions of all parts, one part after the other, on a device."""
        return cls(
            torch.cat([part.log_shares for part in parts]).to(device),
            torch.cat([part.words for part in parts]).to(device),
            torch.cat([part.log_rest for part in parts]).to(device),
        )

    def part(self, start: int, end: int) -> "StoredTargets":
        """The same for the positions from `start` to `end`."""
        return StoredTargets(
            self.log_shares[start:end], self.words[start:end], self.log_rest[start:end]
        )

    def slopes(self, model: Words, size: int) -> Iterator[Slope]:
        """The divergence from these positions' distributions to the model's, by slices."""
        normaliser = model.normaliser()
        rest_normaliser = self._rest_normaliser(model)
        # Without other words both logarithms are minus infinity: their part of the sum is 0.
        has_rest = torch.isfinite(self.log_rest) & torch.isfinite(rest_normaliser)
        rest_gap = self.log_rest - (rest_normaliser - normaliser)
        rest_gap = torch.where(has_rest, rest_gap, 0.0)
        # The base model's other words are spread as the trained model spreads them.
        rest_ratio = torch.where(has_rest, rest_gap.clamp(max=_LARGEST_EXPONENT).exp(), 0.0)
        shares = self.log_shares.exp()
        divergence = self.log_rest.exp() * rest_gap
        for start, end in model.slices:
            log = model.logits(start, end) - normaliser[:, None]
            places, inside = self._places(start, end)
            own_log = log.gather(1, places)
            gap = torch.where(inside, self.log_shares - own_log, 0.0)
            divergence = divergence + (shares * gap).sum(1)
            by_logit = log.exp_().mul_(1 - rest_ratio[:, None])
            _write(by_logit, places, inside, own_log.exp() - shares)
            yield Slope(start, end, divergence, by_logit)
            divergence = torch.zeros_like(divergence)

    def divergence(self, logits: torch.Tensor) -> torch.Tensor:
        """The divergence (S,) of a model with these logits (S, V), differentiable."""
        log, words = logits.float().log_softmax(1), self.words.long()
        divergence = (self.log_shares.exp() * (self.log_shares - log.gather(1, words))).sum(1)
        if words.shape[1] == logits.shape[1]:
            return divergence
        rest = log.scatter(1, words, -torch.inf).logsumexp(1)
        return divergence + self.log_rest.exp() * (self.log_rest - rest)

    def _rest_normaliser(self, model: Words) -> torch.Tensor:
        """Log of the sum of exp(logit) over the words that are not in `words` (S,)."""
        parts = []
        for start, end in model.slices:
            places, inside = self._places(start, end)
            logits = model.logits(start, end).clone()
            _write(logits, places, inside, torch.full_like(self.log_shares, -torch.inf))
            parts.append(logits.logsumexp(1))
        return torch.stack(parts).logsumexp(0)

    def _places(self, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns (S, k) of the words within a slice, and whether they are inside it.

        A word outside gets column 0.
        """
        words = self.words.long()
        inside = (words >= start) & (words < end)
        return torch.where(inside, words - start, 0), inside


def _write(
    logits: torch.Tensor, places: torch.Tensor, inside: torch.Tensor, values: torch.Tensor
) -> None:
    """Writes values (S, k) into their columns of logits, in place, where they are inside."""
    if inside.all():
        logits.scatter_(1, places, values)
        return
    rows, numbers = inside.nonzero(as_tuple=True)
    logits[rows, places[rows, numbers]] = values[rows, numbers]


# The base model's distributions at S positions: of a model whose logits are its output layer's,
# of another one, or stored beforehand.
Targets = StateTargets | LogitTargets | StoredTargets


class _Divergence(torch.autograd.Function):
    """Weighted sum of divergences, and each of them.

    The gradient is computed in the forward pass, chunk by chunk, while the chunk's logits are
    there. It is as large as the states and the output layer, never as the logits of all tokens.
    """

    @staticmethod
    def forward(ctx, states, weight, bias, scales, targets):
        reduced = torch.is_autocast_enabled(states.device.type)
        dtype = torch.get_autocast_dtype(states.device.type) if reduced else weight.dtype
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        by_states = torch.zeros_like(states, dtype=torch.float32) if needs_states else None
        by_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        by_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        divergences = torch.zeros(len(states), device=states.device)
        tokens = max(LEAST_TOKENS, HELD_LOGITS // len(weight))
        size = HELD_LOGITS // tokens
        for first in range(0, len(states), tokens):
            rows = slice(first, first + tokens)
            chunk = states[rows].to(dtype)
            words = Words(chunk, weight, bias, size)
            for slope in targets.part(first, first + tokens).slopes(words, size):
                divergences[rows] += slope.divergence
                if not (needs_states or needs_weight or needs_bias):
                    continue
                by_logit = slope.by_logit.mul_(scales[rows, None])
                columns = slice(slope.start, slope.end)
                if needs_bias:
                    by_bias[columns] += by_logit.sum(0)
                by_logit = by_logit.to(dtype)
                if needs_states:
                    by_states[rows] += by_logit @ weight[columns].to(dtype)
                if needs_weight:
                    _add_product(by_weight[columns], by_logit.T, chunk)
        ctx.save_for_backward(by_states, by_weight, by_bias)
        ctx.dtypes = (states.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(divergences)
        return (divergences * scales).sum(), divergences

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, factor, _divergences):
        gradients = []
        for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True):
            gradients.append(None if gradient is None else (gradient * factor).to(dtype))
        return (*gradients, None, None)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Adds left @ right to `total`, which is float32, in place."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def weighted_divergence(
    states: torch.Tensor, head: Any, targets: StateTargets | StoredTargets, scales: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over positions of scale x KL(base || model), and the divergences themselves.

    At most HELD_LOGITS logits of either model are held at a time. Gradients reach the states and
    the output layer through the first result only.

    Parameters
    ----------
    states
        Inputs of the trained model's output layer (S, hidden).
    head
        The output layer, a plain `torch.nn.Linear`.
    targets
        The base model's distributions at the S positions.
    scales
        Factor (S,) of each position.

    Returns
    -------
    The sum, and the divergences (S,) in nats.
    """
    return _Divergence.apply(states, head.weight, head.bias, scales, targets)
