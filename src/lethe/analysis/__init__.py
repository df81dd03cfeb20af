"""What does Z look like? Its rank, its noise, and how it transfers between models.

This wing may import `matrix` and `completion`. It never imports torch.
"""
