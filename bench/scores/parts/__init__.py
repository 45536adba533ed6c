"""What score families share: readings, the evidence, tables of groups, plain scores."""
