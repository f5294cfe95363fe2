"""Istio ambient's node proxy, the zero-trust tunnel, in Python on Trio."""

__version__ = "0.2.0"
