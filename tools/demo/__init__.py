"""`make demo`: real files through a real broker into a real bucket, and what came of them."""
