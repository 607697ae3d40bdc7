"""What stays readable: objects of every release and of the earlier system, keyrings of 0.10."""
