"""istiod and the CA."""
