"""The operator's side over MQTT: inventory, desired and reported configuration, commands."""
