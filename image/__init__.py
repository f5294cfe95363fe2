"""How the container image is put together: the steps that the Dockerfile and the tests both run."""
