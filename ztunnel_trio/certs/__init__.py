"""Workload certificates over their life."""
