"""Associations of tasks and upstream examples that are read off the examples, not measured.

Each is a matrix (tasks x upstream examples) in the file form of Z. They are the baselines that
forgetting itself has to be predicted better than (paper, section 3 and Table 2).
"""

# Made of text alone, once an experiment; those made by a model; that made of Z.
OF_TEXT = ("text_tfidf", "text_encoder")
OF_MODEL = ("representation", "gradient", "weight_difference")
OF_Z = ("two_tower",)
