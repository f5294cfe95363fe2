"""What istiod's resources mean: the payloads of the discovery stream read as entries of the mesh."""
