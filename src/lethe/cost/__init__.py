"""What will it cost, and what did it? Calibration of a model, the plan, the ledger.

May import every wing above: `config`, `data`, `engine`, `matrix`, `measure` and `replay`.
"""
