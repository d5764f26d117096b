"""The route through optimum, for model types that edgekit has no decoder for."""
