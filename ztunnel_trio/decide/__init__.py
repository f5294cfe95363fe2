"""Pure questions about the mesh: facts in, a closed union out."""
