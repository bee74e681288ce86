"""From what a user gives to a problem that can be audited."""
