"""Media files as people have them, read with PyAV: what they hold, their picture at a constant rate, their sound.

Import from `data_tools.footage`.
"""
