"""A build: recordings go down the recipe's steps, kept clips are made and packed, and a ledger remembers all that was found."""
