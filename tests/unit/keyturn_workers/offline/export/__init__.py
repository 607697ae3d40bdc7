"""Exports: names, manifests, destinations, and the run over all objects."""
