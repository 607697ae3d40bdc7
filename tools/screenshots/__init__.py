"""Pictures of every page of the console, from a real deployment (`make screenshots`)."""
