"""What came out? Findings read from the workflow's tables, figures, and the page.

May import `config`, `data`, `matrix`, `analysis` and `replay`; knows no torch.
"""
