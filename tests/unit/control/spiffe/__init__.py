"""SPIFFE clients against the stand-in agent."""
