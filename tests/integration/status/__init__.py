"""Reports of workers, on a real broker and a real bucket."""
