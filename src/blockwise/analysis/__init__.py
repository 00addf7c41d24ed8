"""Tables, statistics and figures of records."""
