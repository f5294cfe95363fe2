"""What the lab has no use for: the cancelling instrument, a runner for async tests."""
