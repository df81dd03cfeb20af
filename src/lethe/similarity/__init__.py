"""Can similarity predict forgetting? Associations by text, representation and gradient.

An association is a matrix with one row per task and one column per upstream example, like Z. These
associations are the baselines for prediction. May import `config`, `data`, `engine`, `matrix` and
`measure`.
"""

# Text associations are made once per experiment, model associations once per model. The last kind
# is learned from Z.
OF_TEXT = ("text_tfidf", "text_encoder")
OF_MODEL = ("representation", "gradient", "weight_difference")
OF_Z = ("two_tower",)
