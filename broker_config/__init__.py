"""Generates Mosquitto's configuration and ACL from the topic table; runs a private Mosquitto."""
