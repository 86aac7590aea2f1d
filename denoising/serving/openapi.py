"""The service's interface for programs, as OpenAPI 3.1: what GET /openapi.json answers.

>>> document = openapi.document(limits)
"""

from denoising.serving.formats import KINDS

IMAGE = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
FORM = {
    "multipart/form-data": {
        "schema": {"type": "object", "properties": {"image": {"type": "string", "format": "binary"}}}
    }
}
SHARE = {"type": "number", "minimum": 0, "maximum": 1}
QUERY = {
    "strength": ("How much of the noise is removed.", SHARE | {"default": 1}),
    "detail": ("How much of the fine texture that went with the noise is given back.", SHARE | {"default": 0}),
    "chroma": ("How much of the colour noise is removed, apart from brightness.", SHARE | {"default": 1}),
    "model": ("A name of GET /models; auto measures the noise and takes what fits.", {"type": "string"}),
    "fast": ("With auto: a light network where there is one.", {"type": "integer", "enum": [0, 1], "default": 0}),
    "format": (
        "own: that of the upload; view: a PNG of 8 bits, to be shown.",
        {"enum": ["own", *KINDS], "default": "own"},
    ),
    "quality": ("Of a JPEG.", {"type": "integer", "minimum": 1, "maximum": 100, "default": 95}),
    "job": ("A name for GET and DELETE /jobs/{id}.", {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"}),
}
DENOISE = tuple(QUERY)  # the parameters of each request with an image
ANALYSE = ("model", "fast")
JUDGE = (*ANALYSE, "job")
REFUSALS = {
    "400": "a parameter, or the request itself, is malformed",
    "403": "a page of another site asks for it, or the Host is none of the service's names",
    "408": "the upload did not end in time",
    "409": "the job was cancelled, or its name is in use", "413": "the upload or the image is too large",
    "415": "no image, or of a format that is not read", "422": "the image is broken, or no network takes it",
    "503": "too many images are in work; Retry-After says when to ask again", "504": "not done in time",
}  # fmt: skip


def document():
    """The whole document."""
    why = {"Denoise-Model": "the weights that were taken", "Denoise-Why": "why, in one line"}
    headers = {name: {"description": text, "schema": {"type": "string"}} for name, text in why.items()}
    image = {"200": {"description": "the denoised image", "content": {"image/*": {}}, "headers": headers}}
    job = {"name": "id", "in": "path", "required": True, "schema": QUERY["job"][1]}
    events = {"200": {"description": "a line of JSON for each change, until the job ends", "content": {
        "text/event-stream": {}}}, "404": {"description": "no such job"}}  # fmt: skip
    cancelled = {
        "204": {"description": "it is being cancelled"},
        "403": {"description": REFUSALS["403"]},
        "404": {"description": "no such job, or it has ended"},
    }
    denoise = _post("Denoises an image.", DENOISE, image)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Denoising", "version": "1", "description": "docs/serving.md says more."},
        "paths": {
            "/": {"get": _get("The page for browsers.", "text/html"), "post": denoise | {"operationId": "denoiseForm"}},
            "/denoise": {"post": denoise | {"operationId": "denoise"}},
            "/analyse": {
                "post": _post("Measures an image's noise.", ANALYSE, _json("what was found"))
                | {"operationId": "analyse"}
            },
            "/judge": {
                "post": _post(
                    "Says how much structure denoising loses, and where.", JUDGE, _json("a verdict and a map")
                )
                | {"operationId": "judge"}
            },
            "/models": {"get": _get("The weights that are served.")},
            "/jobs/{id}": {
                "parameters": [job],
                "get": {"summary": "The progress of an image.", "responses": events},
                "delete": {"summary": "Cancels an image.", "responses": cancelled},
            },
            "/health": {"get": _get("For load balancers.")},
            "/metrics": {"get": _get("For Prometheus.", "text/plain")},
            "/openapi.json": {"get": _get("This document.")},
        },
    }


def _get(summary, kind="application/json"):
    return {"summary": summary, "responses": {"200": {"description": "", "content": {kind: {}}}}}


def _json(what):
    return {"200": {"description": what, "content": {"application/json": {}}}}


def _post(summary, names, responses):
    asked = [
        {"name": name, "in": "query", "description": text, "schema": schema}
        for name, (text, schema) in ((name, QUERY[name]) for name in names)
    ]
    error = {"content": {"application/json": {"schema": {"type": "object", "required": ["error"]}}}}
    refusals = {status: {"description": text} | error for status, text in REFUSALS.items()}
    body = {"required": True, "content": IMAGE | FORM}
    return {"summary": summary, "parameters": asked, "requestBody": body, "responses": responses | refusals}
