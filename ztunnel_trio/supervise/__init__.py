"""Structured-concurrency parts with no domain in them."""
