"""Tests of Keyturn, and the servers, demo and bench that they share."""
