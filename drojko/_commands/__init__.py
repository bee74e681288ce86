"""What the command line runs: tables read from files, and the demonstration."""
