"""Sources that workers watch, on real servers."""
