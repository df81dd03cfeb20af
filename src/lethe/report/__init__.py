"""How did the experiment come out? Findings from the workflow's tables, figures, and the page.

May import `config`, `data`, `matrix`, `completion`, `analysis` and `replay`. Imports no torch.
"""
