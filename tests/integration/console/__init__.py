"""The console in a real browser, against real workers, broker and storage."""
