"""`python -m cli`: the same as `sled`, for environments without the script on the path."""

from cli.main import main

main()
