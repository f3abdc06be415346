"""From raw text to prepared data: units of work that any number of processes do in any order, and what they come to."""
