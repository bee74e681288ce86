"""What an audit found, as a table and as a page."""
