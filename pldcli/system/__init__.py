"""What the operating system gives: files, processes, signals, memory, and what hardware it runs on."""
