"""What did one fine-tune forget? The job behind a row of Z, exact match, repeats with other seeds.

May import `config`, `data`, `engine` and `matrix`, whose row files it fills.
"""
