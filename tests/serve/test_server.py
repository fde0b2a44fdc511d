import os
import signal
import socket
import threading

import httpx2

from headrace.app.cluster.ports import free_port


def over(path):
    return httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path)), base_url="http://serve")


def stopped(process):
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err


def test_answers_on_its_socket_and_ends_on_sigterm(world, start_server):
    world.epoch([world.sale(0)])
    process = start_server()
    assert process.stdout.readline() == "ready\n"
    assert world.layout.serve.stat().st_mode & 0o777 == 0o600
    with over(world.layout.serve) as http:
        assert http.get("/v1/tables/sales").json()["rows"][0]["n"] == 0
        # It sees what was committed since.
        world.epoch([world.sale(1)])
        assert len(http.get("/v1/tables/sales").json()["rows"]) == 2
        assert http.get("/nothing").json()["error"]["code"] == "not_found"
        head = http.head("/v1/tables/sales")
        assert head.status_code == 200
        assert int(head.headers["content-length"]) > 100
        assert head.content == b""
        # The connection is still open, and idle.
        assert stopped(process) == (0, "stopped\n", "")
    assert not world.layout.serve.exists()


def test_ends_while_a_query_runs_and_another_waits(world, start_server):
    process = start_server()
    process.stdout.readline()
    asked = threading.Event()
    answers = []

    def ask():
        with over(world.layout.serve) as http:
            asked.set()
            try:
                answers.append(http.get("/endless", timeout=30).status_code)
            except httpx2.HTTPError as e:
                answers.append(type(e))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    asked.wait()
    with over(world.layout.serve) as http:
        while "headrace_serve_queries_waiting 0.0" in http.get("/metrics").text:
            pass
    code, out, _ = stopped(process)
    assert (code, out) == (0, "stopped\n")
    for thread in threads:
        thread.join()
    assert 200 not in answers


def test_listens_on_a_port_when_it_runs_alone(world, start_server):
    port = free_port()
    process = start_server("127.0.0.1", str(port))
    assert process.stdout.readline() == "ready\n"
    assert httpx2.get(f"http://127.0.0.1:{port}/ready").json()["ready"] is True
    assert stopped(process)[0] == 0


def test_a_port_that_is_taken_is_an_error_not_a_wait(world, start_server):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start_server("127.0.0.1", str(taken.getsockname()[1]))
        out, err = process.communicate(timeout=20)
    assert process.returncode == 1
    assert out == ""
    assert "cannot listen" in err


def test_a_socket_that_a_killed_server_left_is_no_obstacle(world, start_server):
    first = start_server()
    first.stdout.readline()
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert world.layout.serve.exists()
    second = start_server()
    assert second.stdout.readline() == "ready\n"
    with over(world.layout.serve) as http:
        assert http.get("/healthz").status_code == 200
