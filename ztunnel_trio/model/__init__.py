"""Frozen values: parse, format, compare; nothing else."""
