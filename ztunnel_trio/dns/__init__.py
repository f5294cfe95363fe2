"""Port 15053: the pods' resolver."""
