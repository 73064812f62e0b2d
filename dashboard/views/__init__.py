"""A module per page: its name is the page's, `PLACE` its place among them, `page(store)` draws it; `app.py` finds it.

May import: shared, charts, clp_lightning (store, report, frontier; serving.playground when that page is open). Not called
`pages`: of a folder of that name beside its script Streamlit makes pages itself.
"""
