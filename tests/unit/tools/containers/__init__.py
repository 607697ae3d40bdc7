"""The tests of the images themselves: what decides in them, without an engine."""
