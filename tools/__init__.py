"""What developers run: servers, demo, bench, load, chaos, and the checks of what is shipped."""
