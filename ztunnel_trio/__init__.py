"""Istio ambient's node proxy, the zero-trust tunnel, in Python on Trio."""

__version__ = "0.1.0"
