"""How is a model run? Loading, batches, scoring, generation, training and its losses, checkpoints.

Also the machine below: devices, several processes, progress. May import `config` and `data`.
"""
