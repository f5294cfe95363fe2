"""Trio and the kernel; knows nothing of meshes."""
