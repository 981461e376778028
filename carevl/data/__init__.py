"""Preference data from outside: containers, formats and images, all treated as untrusted.

The path of one row: `containers` streams it out of a file, `formats` recognises its columns and reads its question,
responses and preference, `references` and `images` fetch and check its image, and
`intake` makes the rows of the `images` and `items` tables. Whatever fails on the way becomes an error row.
"""
