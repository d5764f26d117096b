"""Parts of the program that trains the bundled model; development only, needs torch."""
