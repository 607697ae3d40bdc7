"""Requests to control workers, on real servers: enrollments, rotations, deletes, dead letters."""
