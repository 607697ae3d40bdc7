"""Unit tests of the workers' pure parts and of what runs on the in-memory bucket."""
