import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from lethe.data.examples import Example
from lethe.similarity.texts import example_text, tfidf


def test_tfidf_is_the_cosine_of_the_mean_of_a_tasks_examples(tasks, upstream):
    actual = tfidf(tasks, upstream)
    texts = [e.example.text for e in upstream]
    every = texts + [example_text(e) for examples in tasks.values() for e in examples]
    weights = TfidfVectorizer().fit_transform(every).toarray()
    task = weights[4:8].mean(axis=0)
    expected = [
        task @ w / np.linalg.norm(task) / np.linalg.norm(w) if w.any() else 0 for w in weights[:4]
    ]
    np.testing.assert_allclose(actual.values[0], expected, rtol=1e-6)
    assert (actual.tasks, actual.example_ids) == (list(tasks), ["e0", "e1", "e2", "e3"])


def test_texts_of_the_same_words_are_near_and_of_no_common_word_are_at_0(tasks, upstream):
    values = tfidf(tasks, upstream).values
    assert values[0, 0] > values[0, 1] and values[1, 1] > values[1, 0]
    assert (values[:, 2:] == 0).all()


def test_the_text_of_an_example_holds_prompt_and_answer():
    assert example_text(Example("2 + 2 =\n", " 4")) == "2 + 2 =\n4"
    assert example_text(Example(text="plain ")) == "plain "
