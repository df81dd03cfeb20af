"""Which texts does the model read? Sources of examples, records, prompts, tokens and loss masks.

May import `config`.
"""
