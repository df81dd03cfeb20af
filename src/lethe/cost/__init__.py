"""How much will it cost, and how much did it cost? Calibration of a model, plan and ledger.

May import all wings above: `config`, `data`, `engine`, `matrix`, `measure` and `replay`.
"""
