"""Which upstream examples to replay, and how they are mixed into fine-tuning."""
