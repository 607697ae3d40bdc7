"""Vectors that this project makes itself, as data, and the code that makes them again."""
