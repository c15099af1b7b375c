"""That this file is here lets tests in the folders below import the helpers beside it."""
