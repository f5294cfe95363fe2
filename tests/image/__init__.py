"""The image, built by its own Dockerfile on a base made here, read file by file and run under runc."""
