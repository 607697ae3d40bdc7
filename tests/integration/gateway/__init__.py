"""The gateway as a process, on a real bucket: attacked, and asked as its readers ask it."""
