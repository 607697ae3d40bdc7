"""Tests of sign-in, sessions and the protection of requests, without a server."""
