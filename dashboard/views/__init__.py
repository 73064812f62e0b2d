"""A module per page, each with `page(store)`; `app.py` names them.

May import: shared, charts, clp_lightning (store, report, frontier; serving.playground when that page is open). Not called
`pages`: of a folder of that name beside its script Streamlit makes pages itself.
"""
