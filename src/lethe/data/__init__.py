"""Examples: where they come from, how they are kept on disk, how they become tokens."""
