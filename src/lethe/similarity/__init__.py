"""Can forgetting be read off the examples? Associations by text, representation and gradient.

These are the baselines that prediction is compared with. May import `config`, `data`, `engine`,
`matrix` and `measure`.
"""

# Made of text alone, once an experiment; those made by a model; that made of Z.
OF_TEXT = ("text_tfidf", "text_encoder")
OF_MODEL = ("representation", "gradient", "weight_difference")
OF_Z = ("two_tower",)
