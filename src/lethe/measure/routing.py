"""Which examples a routed fine-tune is used for, and the results of the base model for all others.

Whether a prompt is routed depends on the base model and the training prompts only. So it is decided
before the training, and the examples that are not routed keep the base model's results to the bit.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from lethe.config.model_settings import Recipe
from lethe.data.examples import Example, UpstreamExample
from lethe.data.tokens import Tokens
from lethe.engine.memory_routing import PromptRouter, feature_layer, fit_router, prompt_features
from lethe.engine.reader import Reader
from lethe.engine.scoring import Scores
from lethe.errors import LetheError
from lethe.matrix import rows
from lethe.measure.upstream_set import upstream_tokens


@dataclass(frozen=True)
class Routes:
    """The router of a fine-tune, and its decisions.

    Attributes
    ----------
    upstream
        True (N,) for upstream examples that are routed to the fine-tuned model.
    evaluation
        True (E,) for the task's evaluation examples that are.
    seconds
        Time that the router took.
    """

    router: PromptRouter
    upstream: np.ndarray
    evaluation: np.ndarray
    seconds: float

    @classmethod
    def of(
        cls,
        reader: Reader,
        recipe: Recipe,
        *,
        training: Sequence[Tokens],
        replayable: Sequence[UpstreamExample],
        upstream: Sequence[UpstreamExample],
        evaluation: Sequence[Example],
    ) -> Self | None:
        """Fits a router with the base model and routes all examples; None without a router.

        Parameters
        ----------
        reader
            The base model.
        training
            Tokens of the task's training examples.
        replayable
            Upstream examples that set the overlap a prompt needs.

        Raises
        ------
        LetheError
            If one of them is held out.
        """
        if (settings := recipe.routing) is None:
            return None
        if any(example.split == "heldout" for example in replayable):
            raise LetheError(
                "a router must not see held-out examples: give replayable examples only"
            )
        began = time.perf_counter()
        router = fit_router(
            reader.model,
            settings,
            training=training,
            replayable=list(upstream_tokens(reader, replayable).examples),
            seed=recipe.seed,
        )
        layer = feature_layer(reader.model, settings.layer)

        def route(examples: Sequence[Tokens]) -> np.ndarray:
            if not len(examples):
                return np.zeros(0, dtype=bool)
            features = prompt_features(reader.model, layer, list(examples), settings.prompt_tokens)
            return router.routed(features).cpu().numpy()

        own_tokens = reader.tokens(
            evaluation, max_tokens=recipe.max_tokens, truncation=recipe.truncation
        )
        return cls(
            router=router,
            upstream=route(upstream_tokens(reader, upstream).examples),
            evaluation=route(own_tokens.examples),
            seconds=time.perf_counter() - began,
        )

    def facts(self, upstream: Sequence[UpstreamExample]) -> dict[str, Any]:
        """The routing columns of a row.

        `heldout_routed` is the share of the held-out examples that are routed to the fine-tuned
        model, which is wrong for all of them. `eval_routed` is the share of the task's evaluation
        examples, for which it is right.
        """
        heldout = np.array([example.split == "heldout" for example in upstream], dtype=bool)
        return {
            "heldout_routed": _share(self.upstream[heldout]),
            "eval_routed": _share(self.evaluation),
            "routing_overlap": self.router.threshold,
            "routing_seconds": self.seconds,
        }

    def losses(self, scores: Scores, base: rows.Row) -> Scores:
        """The losses after the fine-tune, and those of the base model where it is not used."""
        losses = np.where(self.upstream, scores.losses, base.loss_before)
        return replace(scores, losses=losses.astype(np.float32))

    def answers(self, after: rows.Answers | None, base: rows.Answers | None) -> rows.Answers | None:
        """The answers after the fine-tune, and those of the base model where it is not used."""
        if after is None or base is None:
            return after
        right = np.where(self.upstream, after.exact_match_after, base.exact_match_after)
        f1 = np.where(self.upstream, after.token_f1_after, base.token_f1_after)
        text = []
        for routed, tuned_text, base_text in zip(self.upstream, after.text, base.text, strict=True):
            text.append(tuned_text if routed else base_text)
        return replace(after, exact_match_after=right, token_f1_after=f1, text=text)


def _share(routed: np.ndarray) -> float:
    return float(routed.mean()) if len(routed) else float("nan")
