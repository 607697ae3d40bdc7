"""What stays readable: what each release stored and sent."""
