"""Master keys, wherever they are held, and the KEKs derived from them (SPEC 2.2, 11)."""
