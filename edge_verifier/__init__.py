"""What runs on the edge: engines, session table, batch planner, the service."""
