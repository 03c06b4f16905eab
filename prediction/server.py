"""The web page of predict.py: pictures are dropped on it and answered, with the attention beside them.

For the user of this computer alone: bound to 127.0.0.1, deaf to pages of other sites, with bounds on all that it is sent.
Pictures stay in memory; no file is written.
"""

from __future__ import annotations

import base64
import errno
import io
import os
import signal
import threading
from typing import TYPE_CHECKING, Any, Dict, List, Tuple

from dataset.base import BadImageError, Encoded
from errors import UserError, printable
from insight.attention import patch_attention
from insight.overlay import overlay, shown_view
from prediction.answers import Chooser
from prediction.predictor import Predictor

if TYPE_CHECKING:
    from flask import Flask
    from PIL.Image import Image

HOST = "127.0.0.1"
NAMES = (
    HOST,
    "localhost",
)  # by which a browser here may call it; others mean that a site's name was bent to this address
MOST_BYTES = 20 * 2**20  # of a request
MOST_FILES = 8  # of a request
MOST_CONNECTIONS = 16  # each may hold a request's bytes in memory
NUM_THREADS = 4  # one asks the model; the others serve the page and turn away what is too large
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def serve(predictor: Predictor, chooser: Chooser, model_name: str, port: int) -> int:
    """Serves until Ctrl-C; gives the exit code. Raises UserError where the port is taken or the web library is missing."""
    server = open_server(build_app(predictor, chooser, model_name), port)
    print(f"http://{HOST}:{server.effective_port}/   (for this computer alone; Ctrl-C stops)", flush=True)
    server.run()  # ends after Ctrl-C
    return 128 + signal.SIGINT


def open_server(app: Flask, port: int) -> Any:
    """waitress, listening, not yet answering; port 0 takes a free one. Raises UserError."""
    try:
        import waitress
    except ImportError as error:
        raise _missing(error) from error
    try:
        server = waitress.create_server(
            app,
            host=HOST,
            port=port,
            ident=None,  # says nothing of versions
            threads=NUM_THREADS,
            connection_limit=MOST_CONNECTIONS,
            max_request_body_size=MOST_BYTES,
            # Beyond these it would write temporary files.
            inbuf_overflow=2 * MOST_BYTES,
            outbuf_overflow=4 * MOST_BYTES,
        )
    except OSError as error:
        raise UserError(_cannot_listen(error, port)) from error
    app.config["HOSTS"] = _hosts(server.effective_port)
    return server


def build_app(predictor: Predictor, chooser: Chooser, model_name: str) -> Flask:
    """The application, for a server at port 80 until its `HOSTS` are set. Raises UserError where Flask is missing."""
    try:
        import flask
    except ImportError as error:
        raise _missing(error) from error
    here = os.path.dirname(os.path.abspath(__file__))
    app = flask.Flask(__name__, static_folder=os.path.join(here, "page"), static_url_path="/page", template_folder=here)
    app.request_class = _in_memory(flask.Request)
    app.config.update(MAX_CONTENT_LENGTH=MOST_BYTES, HOSTS=_hosts(80))
    one_at_a_time = threading.Lock()

    @app.before_request
    def only_our_own_page() -> Any:
        hosts, request = app.config["HOSTS"], flask.request
        origin = request.headers.get("Origin")
        if request.headers.get("Host") not in hosts:
            return flask.jsonify(error="This page is for this computer alone."), 403
        if origin is not None and origin not in [f"http://{host}" for host in hosts]:
            return flask.jsonify(error="Only this server's own page may ask it."), 403
        return None

    @app.after_request
    def with_headers(response: Any) -> Any:
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    def page() -> str:
        return flask.render_template("page.html", **_about(predictor, model_name))

    @app.post("/predict")
    def predict() -> Any:
        files = flask.request.files.getlist("pictures")
        if not 1 <= len(files) <= MOST_FILES:
            return flask.jsonify(error=f"Send 1 to {MOST_FILES} pictures at a time, not {len(files)}."), 400
        with one_at_a_time:
            return flask.jsonify(answers=[_answer(predictor, chooser, file) for file in files])

    @app.errorhandler(413)
    def too_much(error: Any) -> Any:
        text = f"Too much at once: a request may have {MOST_FILES} pictures and {MOST_BYTES // 2**20} MB in all."
        return flask.jsonify(error=text), 413

    @app.errorhandler(500)
    def failed(error: Any) -> Any:
        cause = getattr(error, "original_exception", None)
        text = str(cause) if isinstance(cause, UserError) else "The server failed; its terminal says why."
        return flask.jsonify(error=text), 500

    return app


def _in_memory(base: Any) -> Any:
    """The library's request, whose uploads would be written to temporary files from 500 kB on."""

    class RequestInMemory(base):
        max_form_parts = 2 * MOST_FILES  # Flask's setting of that name came with 3.1

        def _get_file_stream(self, *sizes: Any, **details: Any) -> io.BytesIO:
            return io.BytesIO()

    return RequestInMemory


def _answer(predictor: Predictor, chooser: Chooser, file: Any) -> Dict[str, Any]:
    """One picture's answer, or why there is none."""
    name = printable(os.path.basename(file.filename or "picture"))
    try:
        view = predictor.see(Encoded(file.read(), name))
    except BadImageError as error:
        return {"name": name, "error": printable(error.reason)}
    labels = chooser.labels(predictor.predict(view[None])[0])
    attention = patch_attention(predictor.model, view[None])[0]
    return {
        "name": name,
        "labels": [label._asdict() for label in labels],
        "view": _data_url(shown_view(view)),
        "attention": _data_url(overlay(view, attention)),
    }


def _data_url(image: Image) -> str:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def _about(predictor: Predictor, model_name: str) -> Dict[str, Any]:
    """What the page says of the model."""
    arch = predictor.card.arch
    return {
        "model": printable(model_name),
        "size": f"{arch.image_size[1]} x {arch.image_size[0]}",
        "num_classes": arch.num_labels,
        "multi_label": predictor.card.multi_label,
        "most_files": MOST_FILES,
        "most_bytes": MOST_BYTES,
    }


def _hosts(port: int) -> Tuple[str, ...]:
    """The Host headers of browsers that were given one of our names."""
    hosts: List[str] = [f"{name}:{port}" for name in NAMES]
    return (*hosts, *NAMES) if port == 80 else tuple(hosts)


def _missing(error: ImportError) -> UserError:
    return UserError(
        f"--serve needs Flask and waitress, and this Python has no {error.name}.\n"
        "       Install what requirements.txt names: `make setup`, or pip install -r requirements.txt."
    )


def _cannot_listen(error: OSError, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"--port {port} is in use by another program. Give another, or 0 for a free one."
    return f"--port {port} cannot be opened ({error.strerror or error}). Give another, e.g. 8000."
