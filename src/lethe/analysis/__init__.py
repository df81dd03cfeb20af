"""What does Z look like? Its rank, the noise in it, and how it carries over between models.

May import `matrix` and `completion`; knows no torch.
"""
