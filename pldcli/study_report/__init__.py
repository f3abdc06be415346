"""What a study came to: its runs grouped and compared, as tables, pictures, a report, and JSON."""
