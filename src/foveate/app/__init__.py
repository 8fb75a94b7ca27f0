"""Browser app that asks one question with and without a plan and shows the tokens that each keeps.

`page` builds it from `gradio`, which is an extra. What the page shows is computed in the other files of this folder,
which know nothing of `gradio`: `choices` (which methods a model can follow), `views` (pictures, and what lies under a
click), `bars` (tokens and times) and `lines` (the same question as code).
"""
