"""What runs on a device: drafters, the session machine, its journal, the agent."""
