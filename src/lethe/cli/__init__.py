"""What can be done from a terminal? The command `lethe`: one file per verb, each calls a wing.

May import all wings. Nothing imports it but `python -m lethe`. It holds no maths.
"""
