"""A run directory in, figures, tables and one page out.

Takes what run/ has written and gives PNGs, text, LaTeX and HTML. Whatever was
not measured is left out. Never touches a device: a report can be made anywhere.
"""
