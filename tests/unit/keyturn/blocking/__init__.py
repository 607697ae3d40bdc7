"""Blocking clients, files by URL, and the storage of Django, on a gateway in memory."""
