"""`python -m pldcli` and `torchrun -m pldcli`."""

from pldcli.cli import main

if __name__ == "__main__":
    main()
