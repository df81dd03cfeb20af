"""What does Z look like? Its rank, its noise, and how it transfers between models.

This wing may import `config`, `data`, `matrix` and `completion`. It never imports torch.
"""

# Measures that are finer than loss, each with a matrix beside Z (`lethe.analysis.finer_measures`).
FINER_MEASURES = ("kl", "top1_changed", "top1_lost", "top1_gained", "entropy_change")
