"""The protocol as a whole, under a scheduler that means ill, and with its guards taken out."""
