"""What every part shares: errors, wire types, files, processes. Imports nothing of the project."""
