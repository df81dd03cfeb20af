"""What should be replayed? Strategies, replay runs and their comparison. Trains nothing itself.

May import `config`, `data`, `engine`, `matrix`, `measure`, `completion` and `analysis`.
"""
