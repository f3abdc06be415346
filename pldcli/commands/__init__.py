"""One thin file per subcommand: parse, load the configuration, call one function, print the result."""
