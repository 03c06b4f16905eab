"""The page's server: what it answers, and every bound on what it is sent."""

from __future__ import annotations

import base64
import http.client
import io
import json
import socket
import threading
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch
from PIL import Image

from errors import UserError
from prediction import server
from prediction.answers import Chooser
from prediction.predictor import Predictor
from tests.prediction.models import predictor_of, save_model, write_picture

flask = pytest.importorskip("flask", reason="the web page's library is not installed")
pytest.importorskip("waitress", reason="the web page's library is not installed")


@pytest.fixture
def predictor(tmp_path: Path) -> Predictor:
    return predictor_of(save_model(tmp_path / "step"), max_image_pixels=100_000)


@pytest.fixture
def client(predictor: Predictor) -> Any:
    return server.build_app(predictor, Chooser(predictor.card), "runs/<b>mine</b>").test_client()


def upload(client: Any, *files: Tuple[str, bytes], **details: Any) -> Any:
    data = {"pictures": [(io.BytesIO(content), name) for name, content in files]}
    return client.post("/predict", data=data, content_type="multipart/form-data", **details)


def picture(tmp_path: Path, number: int = 0, size: Tuple[int, int] = (20, 18)) -> bytes:
    return write_picture(tmp_path / f"{number}.png", number, size).read_bytes()


def decoded(url: str) -> Image.Image:
    assert url.startswith("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))


def test_an_upload_is_answered_as_the_command_answers(client: Any, predictor: Predictor, tmp_path: Path) -> None:
    content = picture(tmp_path)
    response = upload(client, ("my cat.png", content))
    assert response.status_code == 200
    (answer,) = response.json["answers"]
    (batch,) = predictor.predict_files([str(tmp_path / "0.png")])
    wanted = Chooser(predictor.card).labels(batch[0].probabilities)
    assert answer["name"] == "my cat.png"
    assert [one["name"] for one in answer["labels"]] == [one.name for one in wanted]
    assert [one["probability"] for one in answer["labels"]] == pytest.approx([one.probability for one in wanted])
    assert decoded(answer["view"]).size == decoded(answer["attention"]).size == (192, 192)


def test_a_bad_picture_is_answered_beside_its_name_and_the_others_as_usual(client: Any, tmp_path: Path) -> None:
    files = [("a.png", picture(tmp_path)), ("b.jpg", b"<html>"), ("c.png", b""), ("d.png", picture(tmp_path, 1))]
    response = upload(client, *files)
    assert response.status_code == 200
    answers: List[Dict[str, Any]] = response.json["answers"]
    assert [one["name"] for one in answers] == ["a.png", "b.jpg", "c.png", "d.png"]
    assert ["error" in one for one in answers] == [False, True, True, False]
    assert "not an image" in answers[1]["error"]


def test_a_picture_of_too_many_pixels_is_not_decoded(client: Any, tmp_path: Path) -> None:
    (answer,) = upload(client, ("a.png", picture(tmp_path, size=(400, 300)))).json["answers"]
    assert "120,000" in answer["error"] or "more than max_image_pixels" in answer["error"]


def test_a_request_may_hold_so_many_files(client: Any, tmp_path: Path) -> None:
    content = picture(tmp_path)
    assert upload(client, *[("a.png", content)] * server.MOST_FILES).status_code == 200
    response = upload(client, *[("a.png", content)] * (server.MOST_FILES + 1))
    assert response.status_code == 400
    assert "1 to 8" in response.json["error"]
    assert upload(client).status_code == 400
    assert upload(client, *[("a.png", content)] * (2 * server.MOST_FILES + 1)).status_code == 413


def test_a_request_may_hold_so_many_bytes(client: Any) -> None:
    response = upload(client, ("a.png", bytes(server.MOST_BYTES)))
    assert response.status_code == 413
    assert "20 MB" in response.json["error"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:81", "127.0.0.1.evil.example", "", "localhost:80:80"])
def test_a_name_that_is_not_this_computers_is_turned_away(client: Any, tmp_path: Path, host: str) -> None:
    assert client.get("/", headers={"Host": host}).status_code == 403
    assert upload(client, ("a.png", picture(tmp_path)), headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(("origin", "status"), [("http://127.0.0.1", 200), ("http://evil.example", 403), ("null", 403)])
def test_pages_of_other_sites_may_not_ask(client: Any, tmp_path: Path, origin: str, status: int) -> None:
    response = upload(client, ("a.png", picture(tmp_path)), headers={"Origin": origin})
    assert response.status_code == status


def test_every_answer_bears_the_security_headers(client: Any) -> None:
    for response in (client.get("/"), client.get("/page/page.js"), client.get("/none"), client.post("/predict")):
        assert "script-src 'self'" in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-store"


def test_the_page_escapes_names_and_needs_nothing_from_elsewhere(client: Any) -> None:
    text = client.get("/").text
    assert "&lt;b&gt;mine" in text
    assert "<b>mine" not in text
    for path in ("/", "/page/page.css", "/page/page.js"):
        source = client.get(path).text
        assert "//" not in source.replace("// ", "")
        assert "innerHTML" not in source
    assert client.get("/page/../server.py").status_code == 404


def forbidden(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a temporary file")


@pytest.fixture
def listening(predictor: Predictor, monkeypatch: Any) -> Iterator[Any]:
    """A real server that cannot make temporary files; the library would, from 500 kB on."""
    monkeypatch.setattr("werkzeug.formparser.SpooledTemporaryFile", forbidden)
    monkeypatch.setattr("waitress.buffers.TempfileBasedBuffer", forbidden)
    opened = server.open_server(server.build_app(predictor, Chooser(predictor.card), "mine"), 0)
    thread = threading.Thread(target=opened.run)
    thread.start()
    yield opened
    opened._map.clear()  # its loop ends when there is nothing to wait for
    opened.trigger.pull_trigger()  # wakes it up, to see that
    thread.join(timeout=10)
    assert not thread.is_alive()
    opened.task_dispatcher.shutdown()
    opened.close()


def posted(listening: Any, content: bytes, host: str = "127.0.0.1") -> Any:
    """Status and answer of an upload over a real connection."""
    body = (
        b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a.png"\r\n\r\n' + content + b"\r\n--x--\r\n"
    )
    connection = http.client.HTTPConnection(server.HOST, listening.effective_port, timeout=30)
    headers = {"Content-Type": "multipart/form-data; boundary=x", "Host": f"{host}:{listening.effective_port}"}
    connection.request("POST", "/predict", body, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response, text


def test_large_uploads_stay_in_memory(listening: Any, tmp_path: Path) -> None:
    response, text = posted(listening, picture(tmp_path) + bytes(5 * 10**6))
    assert (response.status, "Server" in response.headers) == (200, False)
    assert "labels" in json.loads(text)["answers"][0]


def test_it_listens_to_this_computer_by_its_own_names_alone(listening: Any, tmp_path: Path) -> None:
    assert listening.socket.getsockname() == ("127.0.0.1", int(listening.effective_port))
    assert posted(listening, picture(tmp_path), "localhost")[0].status == 200
    assert posted(listening, picture(tmp_path), "evil.example")[0].status == 403


def test_a_body_beyond_the_limit_is_not_read(listening: Any) -> None:
    port = listening.effective_port
    lines = ["POST /predict HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {server.MOST_BYTES + 1}", "", ""]
    with socket.create_connection((server.HOST, port), timeout=10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert b" 413 " in connection.recv(100)


def test_one_picture_is_looked_at_at_a_time(predictor: Predictor, tmp_path: Path, monkeypatch: Any) -> None:
    running, most = [0], [0]
    ask = predictor.predict

    def counted(views: torch.Tensor) -> torch.Tensor:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threading.Event().wait(0.02)
        running[0] -= 1
        return ask(views)

    monkeypatch.setattr(predictor, "predict", counted)
    app = server.build_app(predictor, Chooser(predictor.card), "mine")
    content = picture(tmp_path)
    threads = [threading.Thread(target=lambda: upload(app.test_client(), ("a.png", content))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_a_model_whose_answers_are_not_finite_is_told(client: Any, predictor: Predictor, tmp_path: Path) -> None:
    with torch.no_grad():
        predictor.model.head.bias.fill_(float("nan"))
    response = upload(client, ("a.png", picture(tmp_path)))
    assert response.status_code == 500
    assert "not finite" in response.json["error"]


def test_a_port_in_use_is_told(predictor: Predictor) -> None:
    with socket.socket() as taken:
        taken.bind((server.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port} is in use"):
            server.serve(predictor, Chooser(predictor.card), "mine", port)


@pytest.mark.parametrize("library", ["flask", "waitress"])
def test_a_missing_library_is_told(predictor: Predictor, monkeypatch: Any, library: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(UserError, match=f"no {library}"):
        server.serve(predictor, Chooser(predictor.card), "mine", 0)
