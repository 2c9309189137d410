"""What a run did, for people to read: the closing text, a table and plots."""
