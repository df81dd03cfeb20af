"""Which files hold forgetting, and how are they read? Rows, Z, your own matrices, streams, moments.

This wing may import `config` and `data`. It never imports torch.
"""
