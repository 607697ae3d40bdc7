"""A deployment on real servers, driven from outside: for tests and for the other tools."""
