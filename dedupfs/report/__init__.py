"""The report as a page: what ``maintenance.overview`` has gathered, drawn and written as HTML.

Pure: numbers in, text out. Knows no store and no file. The only place that knows matplotlib and
jinja2, which come with the extra ``report``.
"""
