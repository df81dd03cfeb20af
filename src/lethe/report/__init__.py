"""What is the result? Findings read from the tables of the workflow, figures, and the page.

May import `config`, `data`, `matrix`, `analysis` and `replay`. Imports no torch.
"""
