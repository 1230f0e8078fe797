"""Numerical studies behind the figures: how bounds scale, what α does, how wide certificates are.

Every function returns plain dictionaries and lists ("tidy" rows); ``python -m opdtheory.studies DIR``
writes all of them as JSON, and ``opdtheory run`` knows each by name.
"""
