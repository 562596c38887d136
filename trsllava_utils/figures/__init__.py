"""Pictures and charts of all notebooks."""
