"""What the HTTP servers share, over loopback: limits of a connection, signals."""
