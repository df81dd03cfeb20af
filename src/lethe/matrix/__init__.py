"""What lies on disk? The contracts of rows and of Z, matrices of the user's own, streams, moments.

May import `config` and `data`; knows no torch.
"""
