"""The gateway's client against a server on loopback that plays the gateway, or does worse."""
