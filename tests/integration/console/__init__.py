"""The example of a web application, in a real browser against real servers."""
