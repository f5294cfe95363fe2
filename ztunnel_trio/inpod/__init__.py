"""Pods come and go: the protocol with istio-cni, performed."""
