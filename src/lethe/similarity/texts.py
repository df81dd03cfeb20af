"""The text of an example, and the similarity of texts by the words they share."""

from collections.abc import Mapping, Sequence

import numpy as np

from lethe.data.examples import Example, UpstreamExample, ids_of
from lethe.matrix.forgetting_matrix import Matrix


def example_text(example: Example) -> str:
    """Returns plain text unchanged, and prompt and answer joined by a line break."""
    if example.text is not None:
        return example.text
    return f"{example.prompt.rstrip()}\n{example.answer.strip()}"


def tfidf(tasks: Mapping[str, Sequence[Example]], upstream: Sequence[UpstreamExample]) -> Matrix:
    """Computes the cosine (M, N) of tasks and upstream examples as bags of weighted words.

    Weights are term frequency times inverse document frequency (scikit-learn's TfidfVectorizer,
    its defaults) over all texts, upstream and tasks. A task is the mean over its examples. The
    cosine is 0 if they have no word in common.
    """
    # Imported here because it takes a second, which the other associations need not wait for.
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [example_text(example.example) for example in upstream]
    for task_examples in tasks.values():
        texts += [example_text(example) for example in task_examples]
    weights = TfidfVectorizer().fit_transform(texts)
    means = []
    start = len(upstream)
    for task_examples in tasks.values():
        end = start + len(task_examples)
        means.append(np.asarray(weights[start:end].mean(axis=0)).ravel())
        start = end
    means = np.stack(means)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    # Rows of upstream examples have norm 1 already, or 0 if they hold no word.
    cosines = (weights[: len(upstream)] @ (means / np.where(norms > 0, norms, 1)).T).T
    return Matrix(np.asarray(cosines, dtype=np.float32), list(tasks), ids_of(upstream))
