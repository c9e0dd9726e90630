"""What a model is: layer graphs, stable names, longest-shared-prefix queries."""
