"""What the text of an example is, and how alike texts are by the words they share."""

from collections.abc import Mapping, Sequence

import numpy as np

from lethe.data.examples import Example, UpstreamExample
from lethe.matrix.forgetting_matrix import Matrix


def text_of(example: Example) -> str:
    """Plain text as it is; prompt and answer with a line break between."""
    if example.text is not None:
        return example.text
    return f"{example.prompt.rstrip()}\n{example.answer.strip()}"


def tfidf(tasks: Mapping[str, Sequence[Example]], upstream: Sequence[UpstreamExample]) -> Matrix:
    """Cosine (M, N) of tasks and upstream examples as bags of weighted words.

    Weights are term frequency times inverse document frequency (scikit-learn's TfidfVectorizer,
    its defaults) over all texts, upstream and tasks. A task is the mean over its examples. No
    word in common: 0.
    """
    # Imported here: it takes a second that the other associations need not wait for.
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [text_of(example.example) for example in upstream]
    texts += [text_of(example) for examples in tasks.values() for example in examples]
    weights = TfidfVectorizer().fit_transform(texts)
    examples, rest = weights[: len(upstream)], weights[len(upstream) :]
    ends = np.cumsum([len(examples) for examples in tasks.values()])
    parts = [rest[end - len(t) : end] for end, t in zip(ends, tasks.values(), strict=True)]
    means = np.stack([np.asarray(part.mean(axis=0)).ravel() for part in parts])
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    # Rows of upstream examples have norm 1 already, or 0 if they hold no word.
    cosines = (examples @ (means / np.where(norms > 0, norms, 1)).T).T
    ids = [example.example_id for example in upstream]
    return Matrix(np.asarray(cosines, dtype=np.float32), list(tasks), ids)
