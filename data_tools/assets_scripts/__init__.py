"""Scripts that rebuild the files under `flowact/assets` from their sources; run once by maintainers, never by users."""
