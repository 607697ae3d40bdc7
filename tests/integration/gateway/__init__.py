"""The gateway as a process, on a real bucket: attacked, and used as its readers use it."""
